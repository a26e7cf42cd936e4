"""Makes Triton's interpreter patch its language once, not at every call of a device function.

Triton 3.6 to 3.9 go through all members of triton.language, of its tensors and of its mathematics whenever a kernel calls a
function, such as tl.sum: a third of the time that interpreted tests took. What the patches do is the same each time.
"""

from collections.abc import Callable

import triton.language as tl
from triton.runtime import interpreter


def patch_once() -> None:
    """Idempotent. Without these private names of Triton nothing is changed: tests are slower and say the same."""
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
