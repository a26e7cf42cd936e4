"""Mends two operations of Triton's interpreter; used by tests without a GPU. Kernels on a GPU meet none of this.

The interpreter keeps bfloat16 as uint16 bit patterns and its dot multiplies those integers: wrong by orders of magnitude,
without an error. Other bfloat16 arithmetic is not mended: kernels load, then convert to float32. Masks that are a conjunction with
a scalar come out as integers, which the atomics of 3.9's interpreter refuse ("mask has unsupported dtype").
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl

from bertfast.triton import private


def mend() -> None:
    """Let interpreted dots upcast bfloat16 to float32 first, and interpreted atomics take any mask. Idempotent."""
    builder = private.interpreter_builder()
    if not getattr(builder, "_bertfast_mended", False):
        builder.create_dot = _upcast_dot(builder.create_dot)
        builder.create_atomic_rmw = _boolean_mask(builder.create_atomic_rmw)
        builder._bertfast_mended = True


def _upcast_dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        def upcast(t: Any) -> Any:
            if t.dtype.scalar != tl.bfloat16:
                return t
            return self.create_fp_ext(t, tl.block_type(tl.float32, list(t.data.shape)))

        return original(self, upcast(a), upcast(b), d, *rest)

    return create_dot


def _boolean_mask(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_atomic_rmw(self: Any, operation: Any, pointer: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(np.bool_)
        return original(self, operation, pointer, value, mask, *rest)

    return create_atomic_rmw
