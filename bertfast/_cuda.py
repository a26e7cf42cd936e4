"""Finds and loads bertfast/libbertfast_cuda.so, products on sm_90 by CUTLASS (csrc/cuda). No build makes it unasked.

The library has plain C functions over raw pointers and depends on neither torch nor Python, so one file serves all versions of
both, and it registers no op. `bertfast/ops/linear/cutlass_launch.py` calls it.
"""

import ctypes
import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("libbertfast_cuda.so")
BUILD = Path(__file__).parents[1] / "csrc" / "cuda" / "build.py"  # in a checkout
NOT_POSSIBLE = 3  # its exit status where nvcc or CUTLASS's headers are not here
_FIX = "`make cuda` builds it where nvcc is, or BERTFAST_BUILD=cuda pip install --no-build-isolation -e . with the extra `cuda`"


class Launch(ctypes.Structure):
    """`bertfast::Launch` of csrc/cuda/products.h."""

    _fields_ = (
        ("device", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    )


@cache
def sources(script: Path = BUILD) -> str | None:
    """The digest of csrc/cuda and of CUTLASS's version, by the build script of a checkout; None where there is none."""
    if not script.exists():
        return None
    spec = importlib.util.spec_from_file_location("bertfast_cuda_build", script)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build.digest()


@cache
def built_from() -> str | None:
    """The digest of the sources that the library was built from, read from the file; None without one."""
    if not LIBRARY.exists():
        return None
    digest = re.search(rb"bertfast-cuda-digest:([0-9a-f]+)", LIBRARY.read_bytes())
    return digest[1].decode() if digest is not None else ""


@cache
def _opened() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


@cache
def absence() -> str | None:
    """Why there is no library to run, and the way to fix it; None where there is one."""
    if built_from() is None:
        return f"{LIBRARY.name} was not built: {_FIX}"
    if built_from() != (sources() or built_from()):
        return f"{LIBRARY.name} was built from other sources than those in csrc/cuda: {_FIX}"
    try:
        _opened()
    except OSError as error:
        return f"{LIBRARY.name} cannot be loaded: {error}. {_FIX} again"
    return None


def forget() -> None:
    """Look again at the next question: a library was built meanwhile."""
    for kept in (sources, built_from, _opened, absence, function, dweight_workspace):
        kept.cache_clear()


@cache
def function(name: str, pointers: int, sizes: int) -> Callable[..., bytes]:
    """`bertfast_NAME` of csrc/cuda/products.h, which takes a `Launch` by reference, that many pointers and that many sizes.

    It returns why it launched nothing, and b"" where it did.
    """
    function = getattr(_opened(), f"bertfast_{name}")
    function.restype = ctypes.c_char_p
    function.argtypes = (ctypes.POINTER(Launch), *[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * sizes)
    return function


@cache
def dweight_workspace(multiprocessors: int, tokens: int, rows: int, columns: int) -> int:
    """Bytes that `linear_dweight` needs beside its tensors."""
    function = getattr(_opened(), "bertfast_linear_dweight_workspace")  # noqa: B009  an attribute of a C library
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_int32, *[ctypes.c_int64] * 3)
    return function(multiprocessors, tokens, rows, columns)
