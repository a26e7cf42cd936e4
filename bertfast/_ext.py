"""Finds and loads the C++ extension `bertfast._C`. Absent is not broken: without it the eager references own the CPU.

Loading registers the C++ kernels with the dispatcher. An extension that is there but does not load is an error that names
both versions, never a silent fallback; set BERTFAST_DISABLE_EXT=1 to run without it on purpose.
"""

import importlib.util
import os
from types import ModuleType

import torch

_module: ModuleType | None = None


def load() -> ModuleType | None:
    """Load `bertfast._C` once. None where it was not built or is disabled; ImportError where it cannot be loaded."""
    global _module
    if _module is not None or os.environ.get("BERTFAST_DISABLE_EXT") == "1":
        return _module
    if importlib.util.find_spec("bertfast._C") is None:
        return None
    try:
        from bertfast import _C
    except ImportError as error:
        from bertfast import _build_info

        raise ImportError(
            f"bertfast._C was built against torch {_build_info.TORCH} and cannot be loaded by torch {torch.__version__}: {error}. "
            "Rebuild it with `pip install --no-build-isolation -e .`, or set BERTFAST_DISABLE_EXT=1 to run on the slower "
            "eager references."
        ) from error
    _module = _C
    return _module


def absence() -> tuple[str, str] | None:
    """Why there is no extension, and the way to fix it; None where it is loaded."""
    if _module is not None:
        return None
    if os.environ.get("BERTFAST_DISABLE_EXT") == "1":
        return "BERTFAST_DISABLE_EXT=1 is set", "unset it to use the C++ kernels"
    return "bertfast._C was not built", "install g++ 11 or newer, then `pip install --no-build-isolation -e .`"


def why_absent() -> str | None:
    """`absence` in one line."""
    found = absence()
    return None if found is None else ": ".join(found)
