"""Builds bertfast._C ahead of time. BERTFAST_BUILD=auto (default) | cpu | cuda | none decides what is built.

cuda builds the products of csrc/cuda as well (csrc/cuda/build.py says what that needs); nothing else does.
Every csrc/cpu/*_kernels.cpp is compiled once for each instruction set and linked into the one extension; the choice
between them is made at run time. auto builds the CPU extension where a compiler is found and goes on without one.

BERTFAST_KERNEL_CACHE names a folder that keeps what was compiled, each file under a digest of all that it depends on; make names
build/kept, so that an installation, a wheel and a source distribution of the same sources compile once. The kernels know nothing of
torch or Python, so their objects serve every version of both (`make matrix` builds seven times).
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent.resolve()
DAYS_KEPT = 14  # unused, in BERTFAST_KERNEL_CACHE
BASE_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"]
ISA_FLAGS = {
    "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    "avx512": AVX512,
    "avx2": ["-mavx2", "-mfma"],
    "portable": [],
}
if platform.machine() not in ("x86_64", "AMD64"):
    ISA_FLAGS = {name: [] for name in ISA_FLAGS}


class BuildKernels(BuildExtension):
    """Compiles the kernels once per instruction set before torch's builder compiles the host functions."""

    def build_extensions(self):
        built = Path(self.get_ext_fullpath(self.extensions[0].name))
        kept = cached(f"{extension_digest()}.so")
        if kept is not None and kept.exists():
            print(f"bertfast: the extension of these very sources was built before, taking {kept}")
            built.parent.mkdir(parents=True, exist_ok=True)
            take(kept, built)
        else:
            self.compile_extension()
            if kept is not None:
                keep(built, kept)
        if choice() == "cuda":
            self.cuda_library = cuda_build().build(Path(self.build_lib).resolve() / "bertfast" / cuda_build().LIBRARY)

    def compile_extension(self) -> None:
        kernels = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/*_kernels.cpp"))
        compiler = os.environ.get("CXX", "c++")
        objects, commands = [], []
        for isa, flags in ISA_FLAGS.items():
            folder = Path(self.build_temp).resolve() / isa
            folder.mkdir(parents=True, exist_ok=True)
            for source in kernels:
                objects.append(str(folder / f"{Path(source).stem}.o"))
                commands.append(
                    [compiler, *BASE_FLAGS, *flags, f"-DBERTFAST_ISA={isa}", "-c", source, "-o", objects[-1]]
                )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.compile_kernels, commands))
        for extension in self.extensions:
            extension.extra_objects.extend(objects)
        super().build_extensions()

    def copy_extensions_to_source(self):
        """Called for an installation in place, which is built elsewhere first."""
        super().copy_extensions_to_source()
        if choice() == "cuda":
            shutil.copyfile(self.cuda_library, ROOT / "bertfast" / self.cuda_library.name)

    def compile_kernels(self, command: list[str]) -> None:
        """Run one compiler command, whose last word is the object, or take that from the cache."""
        kept = cached(f"{digest(command[:-1])}.o")
        if kept is None:
            self.spawn(command)
            return
        if not kept.exists():
            self.spawn(command)
            keep(Path(command[-1]), kept)
        take(kept, Path(command[-1]))


def cached(name: str) -> Path | None:
    """Where the cache has a file of this name, or would have it; None where there is no cache."""
    folder = os.environ.get("BERTFAST_KERNEL_CACHE")
    return Path(folder) / name if folder else None


def keep(file: Path, kept: Path) -> None:
    """Put a file into the cache, whole or not at all, and forget what nobody has used for a while."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    shutil.copyfile(file, part)
    part.replace(kept)
    for other in kept.parent.iterdir():
        if other.suffix in (".o", ".so") and other.stat().st_mtime < time.time() - DAYS_KEPT * 86400:
            other.unlink(missing_ok=True)


def take(kept: Path, file: Path) -> None:
    shutil.copyfile(kept, file)
    os.utime(kept)


def extension_digest() -> str:
    """Of everything that the extension depends on: sources, compiler, its environment, torch, Python, and this file."""
    names = ("CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")
    parts = [os.environ.get("CXX", "c++"), *(f"{name}={os.environ.get(name)}" for name in names)]
    parts += [torch.__version__, torch.version.git_version, sysconfig.get_config_var("SOABI")]
    return digest([*parts, hashlib.sha256((ROOT / "setup.py").read_bytes()).hexdigest()])


def digest(command: list[str]) -> str:
    """Of everything that an object of the kernels depends on: its command, whose first word is the compiler, and all sources."""
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    content = hashlib.sha256(repr(command).encode() + version)
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".h", ".cpp") and path.parent.name != "cuda":
            content.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return content.hexdigest()


def cuda_build() -> ModuleType:
    """csrc/cuda/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("cuda_build", ROOT / "csrc" / "cuda" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def choice() -> str:
    """What BERTFAST_BUILD asks for."""
    asked = os.environ.get("BERTFAST_BUILD", "auto")
    if asked not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"BERTFAST_BUILD={asked}: use auto, cpu, cuda or none")
    return asked


def builds() -> bool:
    """Whether to build; an explicit wish that cannot be met is an error, not a silent fallback."""
    asked = choice()
    has_compiler = shutil.which(os.environ.get("CXX", "c++")) is not None
    if asked in ("cpu", "cuda") and not has_compiler:
        raise SystemExit(f"BERTFAST_BUILD={asked}: no C++ compiler found; install g++ 11 or newer or set CXX")
    if asked == "cuda":
        cuda = cuda_build()
        try:
            cuda.requirements()
        except cuda.Missing as missing:
            raise SystemExit(f"BERTFAST_BUILD=cuda: {missing}") from None
    if asked == "auto" and not has_compiler:
        print("bertfast: no C++ compiler found, going on without the extension (the eager references will be used)")
    return has_compiler and asked != "none"


def extension() -> CppExtension:
    sources = [
        str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.cpp")) if not path.stem.endswith("_kernels")
    ]
    return CppExtension(
        "bertfast._C",
        sources,
        extra_compile_args=["-O2", "-std=c++20", "-fopenmp", f'-DBERTFAST_TORCH_VERSION="{torch.__version__}"'],
        extra_link_args=["-fopenmp"],
    )


build = builds()
info, written = ROOT / "bertfast" / "_build_info.py", f'"""Written by setup.py."""\n\nTORCH = "{torch.__version__}"\n'
if not info.exists() or info.read_text() != written:  # another process may be reading it
    info.write_text(written)
setup(
    ext_modules=[extension()] if build else [],
    cmdclass={"build_ext": BuildKernels.with_options(use_ninja=True)} if build else {},
)
