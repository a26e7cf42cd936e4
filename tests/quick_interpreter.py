"""Leaves out work of Triton's interpreter that changes no result: interpreted tests take half the time.

Triton 3.6 to 3.9 go through all members of triton.language, of its tensors and of its mathematics whenever a kernel calls a
function, such as tl.sum, and patch the same things again. And each sum or product of integers is computed in 64 bits as well to
see an overflow, for an assertion that is only made where `debug` is set.
"""

import dataclasses
from collections.abc import Callable

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Idempotent. Where a private name of Triton is gone, nothing is changed: tests are slower and say the same."""
    _patch_once()
    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if getattr(options, "debug", True) is False and hasattr(options, "sanitize_overflow"):
        builder.options = dataclasses.replace(options, sanitize_overflow=False)


def _patch_once() -> None:
    original = getattr(interpreter, "_patch_lang", None)
    scope = getattr(interpreter, "_LangPatchScope", None)
    if original is None or scope is None or getattr(original, "patches_once", False):
        return
    modules: dict[Callable, frozenset[str]] = {}  # of a function: the modules of the language that its file names
    patched: set[str] = set()

    def patch(function: Callable) -> object:
        if function not in modules:
            known = [m.__name__ for m in function.__globals__.values() if m is tl or m is tl.core]
            modules[function] = frozenset(known)
        if not modules[function] <= patched:
            original(function)  # its scope, which would undo the patches when the kernel ends, is let go
            patched.update(modules[function])
        return scope()

    patch.patches_once = True  # type: ignore[attr-defined]
    interpreter._patch_lang = patch
