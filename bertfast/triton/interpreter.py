"""Fixes four operations of Triton's interpreter; used by tests without a GPU. Kernels on a GPU meet none of this.

The interpreter keeps bfloat16 as uint16 bit patterns and its dot multiplies those integers: wrong by orders of magnitude,
without an error. Other bfloat16 arithmetic is not fixed: kernels load, then convert to float32. Masks that are a conjunction with
a scalar come out as integers, which the atomics of 3.9's interpreter refuse ("mask has unsupported dtype"). Its casts to bfloat16
truncate, which biases sums of what was stored; here they round to the nearest, as on a GPU. Its casts to FP8
lose the carry into the exponent, small numbers and NaN; here torch casts, and saturates as GPUs with FP8 do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl

from bertfast.triton import private


def fix() -> None:
    """Let interpreted dots upcast bfloat16 first, atomics take any mask, and casts of float32 to FP8 round. Idempotent."""
    builder = private.interpreter_builder()
    if not getattr(builder, "_bertfast_fixed", False):
        builder.create_dot = _upcast_dot(builder.create_dot)
        builder.create_atomic_rmw = _boolean_mask(builder.create_atomic_rmw)
        builder.create_fp_trunc = _round_to_bfloat16(builder.create_fp_trunc)
        builder.create_fp_to_fp = _cast_to_fp8(builder.create_fp_to_fp)
        builder._bertfast_fixed = True


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


def _round_to_bfloat16(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_fp_trunc(self: Any, source: Any, kind: Any) -> Any:
        result = original(self, source, kind)
        if kind.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            stored = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
            result.data = stored.view(torch.int16).numpy().view(np.uint16).reshape(source.data.shape)
        return result

    return create_fp_trunc


def _cast_to_fp8(original: Callable[..., Any]) -> Callable[..., Any]:
    formats = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}

    def create_fp_to_fp(self: Any, source: Any, kind: Any, *rest: Any) -> Any:
        result = original(self, source, kind, *rest)
        dtype = formats.get(kind.scalar)
        if dtype is not None and source.dtype.scalar == tl.float32:
            largest = torch.finfo(dtype).max
            stored = torch.from_numpy(source.data).clamp(-largest, largest).to(dtype)
            result.data = stored.view(torch.uint8).numpy().reshape(source.data.shape)
        return result

    return create_fp_to_fp
