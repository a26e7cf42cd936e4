"""Makes Triton's interpreter multiply bfloat16 correctly in `tl.dot`; used by tests without a GPU.

The interpreter (3.6) keeps bfloat16 as uint16 bit patterns and its dot multiplies those integers: wrong by orders of magnitude,
without an error. Other bfloat16 arithmetic is not mended: kernels load, then convert to float32.
"""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def mend() -> None:
    """Upcast bfloat16 operands of every interpreted dot to float32 first. Idempotent."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder.create_dot, "_upcasts_bf16", False):
        return
    original = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        def upcast(t: Any) -> Any:
            if t.dtype.scalar != tl.bfloat16:
                return t
            return self.create_fp_ext(t, tl.block_type(tl.float32, list(t.data.shape)))

        return original(self, upcast(a), upcast(b), d, *rest)

    create_dot._upcasts_bf16 = True  # type: ignore[attr-defined]
    builder.create_dot = create_dot
