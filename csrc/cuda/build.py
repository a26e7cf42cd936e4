"""Builds bertfast/libbertfast_cuda.so: products on sm_90 by CUTLASS, which bertfast/_cuda.py loads. It runs alone, without torch.

    python csrc/cuda/build.py [FILE]

Needed are nvcc 12 or newer and CUTLASS's headers in the pinned version, from the package nvidia-cutlass or from the folder that
BERTFAST_CUTLASS names (what the package has in cutlass_library/source: include and tools/util/include, or one of them that holds
both). No GPU is needed. What comes out depends neither on torch nor on Python: a library that was built elsewhere can be copied.
Each source takes most of a minute and up to 4 GB, so two at a time (BERTFAST_CUDA_JOBS). Objects stay in build/cuda, or where
BERTFAST_KERNEL_CACHE says, under a digest of all that they depend on.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent.resolve()
ROOT = SOURCES.parents[1]
LIBRARY = "libbertfast_cuda.so"
PACKAGE, VERSION = "nvidia-cutlass", "4.2.0"  # the wheel is 4.2.0.0; its licence is BSD-3-Clause
NOT_POSSIBLE = 3  # exit status where something that the build needs is not here
OLDEST_NVCC = 12  # the first that knows sm_90a
FLAGS = [
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "--expt-relaxed-constexpr",
    "-gencode",
    "arch=compute_90a,code=sm_90a",  # wgmma is of this architecture alone, and has no PTX that a later one could compile
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
]


class Missing(Exception):
    """What the build needs and did not find, and what to do about it."""


def find_nvcc() -> str:
    """The CUDA compiler: where CUDA_HOME or CUDA_PATH say, on PATH, in the usual folder, or where torch finds a toolkit."""
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*(Path(folder) / "bin" / "nvcc" for folder in folders), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for place in places:
        if place and os.access(place, os.X_OK):
            return str(place)
    if importlib.util.find_spec("torch") is not None:
        from torch.utils.cpp_extension import CUDA_HOME

        if CUDA_HOME and os.access(nvcc := Path(CUDA_HOME) / "bin" / "nvcc", os.X_OK):
            return str(nvcc)
    raise Missing("no nvcc found: install the CUDA toolkit (12 or newer), or set CUDA_HOME to its folder")


def nvcc_release(nvcc: str) -> str:
    """Such as "13.0"."""
    got = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", got.stdout)
    if release is None:
        raise Missing(
            f"{nvcc} --version names no release: {(got.stdout + got.stderr).strip()[-300:] or 'it printed nothing'}"
        )
    if int(release[1].split(".")[0]) < OLDEST_NVCC:
        raise Missing(
            f"{nvcc} is CUDA {release[1]}, which knows no sm_90a: install {OLDEST_NVCC} or newer, or set CUDA_HOME to it"
        )
    return release[1]


def cutlass_version(include: Path) -> str:
    """Of the headers in a folder, such as "4.2.0"."""
    text = (include / "cutlass" / "version.h").read_text(encoding="utf-8")
    return ".".join(re.search(rf"#define CUTLASS_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR", "PATCH"))


def find_headers() -> list[Path]:
    """The folders to include from, in which CUTLASS's pinned version lies."""
    named = os.environ.get("BERTFAST_CUTLASS")
    if named:
        source = Path(named)
    else:
        spec = importlib.util.find_spec("cutlass_library")
        if spec is None or not spec.submodule_search_locations:
            raise Missing(
                f"CUTLASS's headers are not here: pip install --no-deps {PACKAGE}=={VERSION}.0, or set BERTFAST_CUTLASS to a "
                "folder that has them (cutlass_library/source of that package)"
            )
        source = Path(spec.submodule_search_locations[0]) / "source"
    candidates = (source, source / "include", source / "tools" / "util" / "include")
    folders = [folder for folder in candidates if (folder / "cutlass").is_dir()]
    for header in ("cutlass/version.h", "cutlass/util/packed_stride.hpp"):
        if not any((folder / header).is_file() for folder in folders):
            raise Missing(f"{source} has no {header}: CUTLASS's folders include and tools/util/include belong there")
    version = cutlass_version(next(folder for folder in folders if (folder / "cutlass/version.h").is_file()))
    if version != VERSION:
        raise Missing(
            f"{source} has CUTLASS {version}, and the kernels were written for {VERSION}: "
            f"pip install --no-deps {PACKAGE}=={VERSION}.0"
        )
    return folders


def requirements() -> tuple[str, str, list[Path]]:
    """nvcc, its release and the folders to include from.

    Raises:
        Missing: where one of them is not here, or is of a version that will not do.
    """
    nvcc = find_nvcc()
    return nvcc, nvcc_release(nvcc), find_headers()


def digest() -> str:
    """Twelve digits that stand for the kernels: the sources, how they are compiled and the version of CUTLASS."""
    total = hashlib.sha256(repr((FLAGS, VERSION)).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cu", ".cuh", ".h"):
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:12]


def _object(nvcc: str, release: str, headers: list[Path], source: Path, cache: Path) -> Path:
    """The object of one source, compiled or from the cache."""
    total = hashlib.sha256(repr((release, FLAGS, VERSION, digest() if source.stem == "info" else "")).encode())
    for path in [source, *sorted(SOURCES.glob("*.cuh")), *sorted(SOURCES.glob("*.h"))]:
        total.update(path.name.encode() + path.read_bytes())
    kept = cache / f"{source.stem}-{total.hexdigest()[:16]}.o"
    if not kept.exists():
        print(f"bertfast: nvcc {source.name}", flush=True)
        part = kept.with_suffix(f".{os.getpid()}.o")
        includes = [word for folder in headers for word in ("-I", str(folder))]
        command = [nvcc, *FLAGS, f'-DBERTFAST_CUDA_DIGEST="{digest()}"', *includes, "-c", str(source), "-o", str(part)]
        subprocess.run(command, check=True)
        part.replace(kept)
    return kept


def build(library: Path) -> Path:
    """Compile what changed and link it.

    Raises:
        Missing: as `requirements`.
        subprocess.CalledProcessError: where a compiler fails; it has said why.
    """
    nvcc, release, headers = requirements()
    cache = Path(os.environ.get("BERTFAST_KERNEL_CACHE") or ROOT / "build" / "cuda")
    cache.mkdir(parents=True, exist_ok=True)
    jobs = int(os.environ.get("BERTFAST_CUDA_JOBS") or 2)
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(
            pool.map(lambda source: _object(nvcc, release, headers, source, cache), sorted(SOURCES.glob("*.cu")))
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    part = library.with_suffix(f".{os.getpid()}.so")
    # The CUDA runtime is linked in: the library then asks the driver alone for symbols, and loads where there is no GPU.
    subprocess.run([nvcc, "-shared", "-cudart", "static", *map(str, objects), "-o", str(part)], check=True)
    part.replace(library)
    return library


if __name__ == "__main__":
    try:
        built = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bertfast" / LIBRARY)
    except Missing as missing:
        print(f"bertfast: {missing}", file=sys.stderr)
        raise SystemExit(NOT_POSSIBLE) from None
    print(f"bertfast: built {built}, {built.stat().st_size / 1e6:.1f} MB, sources {digest()}")
