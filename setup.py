"""Builds bertfast._C ahead of time. BERTFAST_BUILD=auto (default) | cpu | cuda | none decides what is built.

cuda builds the products of csrc/cuda as well (csrc/cuda/build.py says what that needs); nothing else does.
Every csrc/cpu/*_kernels.cpp is compiled once for each instruction set and linked into the one extension; the choice
between them is made at run time. auto builds the CPU extension where a compiler is found and goes on without one.

The kernels know nothing of torch or Python, so their objects serve every version of both: BERTFAST_KERNEL_CACHE names a folder
that keeps them, each under a digest of its command, its compiler and all sources (`make matrix` builds seven times).
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent.resolve()
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
        if choice() == "cuda":
            cuda = cuda_build()
            package = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
            cuda.build(package.resolve() / "bertfast" / cuda.LIBRARY)

    def compile_kernels(self, command: list[str]) -> None:
        """Run one compiler command, whose last word is the object, or take that from the cache."""
        folder = os.environ.get("BERTFAST_KERNEL_CACHE")
        if not folder:
            self.spawn(command)
            return
        kept = Path(folder) / f"{digest(command[:-1])}.o"
        if not kept.exists():
            self.spawn(command)
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(f".{os.getpid()}")
            shutil.copyfile(command[-1], part)
            part.replace(kept)
        shutil.copyfile(kept, command[-1])


def digest(command: list[str]) -> str:
    """Of everything that an object of the kernels depends on: its command, the compiler and every source and header."""
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
(ROOT / "bertfast" / "_build_info.py").write_text(f'"""Written by setup.py."""\n\nTORCH = "{torch.__version__}"\n')
setup(
    ext_modules=[extension()] if build else [],
    cmdclass={"build_ext": BuildKernels.with_options(use_ninja=True)} if build else {},
)
