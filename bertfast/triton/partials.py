"""Adds up what the programs of a kernel left behind: [programs, OUTS, E] float32 to OUTS rows of E, in fixed order.

So gradients of parameters need no atomics and repeat bit for bit. Each program here owns COLS columns of one output and adds PARTS
partial rows at a time; rows 0 and 1 go to their own tensors, the others to the rows of a third one.
"""

import triton
import triton.language as tl
from torch import Tensor

from bertfast.triton.launch import cdiv, launch

# 128 partial rows of 128 bytes in flight in each program; the whole reduction is a few microseconds. Predicted, never measured.
PARTS, COLS, WARPS = 128, 32, 4


@triton.jit(do_not_specialize=["programs"])
def partials_kernel(
    partial_ptr,
    first_ptr,
    second_ptr,
    rest_ptr,
    programs,
    E: tl.constexpr,
    OUTS: tl.constexpr,
    PARTS: tl.constexpr,
    COLS: tl.constexpr,
):
    out = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    part = tl.arange(0, PARTS)[:, None]
    total = tl.zeros((PARTS, COLS), tl.float32)
    for start in range(0, programs, PARTS):
        mask = (start + part < programs) & (col[None, :] < E)
        place = (part.to(tl.int64) + start) * (OUTS * E) + out * E + col[None, :]
        total += tl.load(partial_ptr + place, mask=mask, other=0.0)
    sums = tl.sum(total, 0)
    if out == 0:
        tl.store(first_ptr + col, sums.to(first_ptr.dtype.element_ty), mask=col < E)
    elif out == 1:
        tl.store(second_ptr + col, sums.to(second_ptr.dtype.element_ty), mask=col < E)
    elif OUTS > 2:
        tl.store(rest_ptr + (out - 2) * E + col, sums.to(rest_ptr.dtype.element_ty), mask=col < E)


def add_up(partial: Tensor, first: Tensor, second: Tensor, rest: Tensor | None) -> None:
    """Sum partial [programs, outs, E] over programs into first [E], second [E] and rest [outs - 2, E]; zeros for no program."""
    programs, outs, size = partial.shape
    launch(
        partials_kernel,
        (cdiv(size, COLS), outs),
        (partial, first, second, rest, programs),
        {"E": size, "OUTS": outs, "PARTS": PARTS, "COLS": COLS},
        warps=WARPS,
    )
