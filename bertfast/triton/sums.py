"""Sums over rows in float32, in an order that only the shape decides: bias gradients and other sums over all tokens.

First stage: programs leave partial sums [parts, outs, columns], those of `column_sum` or of a kernel that meets the rows anyway,
as a norm's backward does. Second stage, `add_up`: a program owns COLS columns of one output and adds PARTS partial rows at a
time. No atomics, so the same bits every time. Kernels with other last work to do call the second stage's device functions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.triton.launch import cdiv, launch

# First stage: 256 columns are 32 threads of 16 bytes in 16-bit types, so four warps read four rows at once. Predicted, never
# measured.
_CHUNK_COLS, _CHUNK_ROWS = 256, 8
# Second stage: 32 columns are one 128-byte line of float32, and PARTS of them are in flight in a program. At E = 768 with four
# outputs that makes 96 programs; a sum takes a few microseconds. Predicted, never measured.
COLS, WARPS = 32, 4
_MANY, _FEW = 128, 32


def chunk_rows(rows: int) -> int:
    """Rows that one program of a first stage adds. Predicted, never measured, at F = 3072, which is 12 blocks of columns:

    96 programs at 128 rows, 1,536 at 8,192 (an H200 holds 800 of them), 3 MB of partial sums at 65,536.
    """
    return 16 if rows <= 1024 else 64 if rows <= 16384 else 256


def chunks(rows: int) -> int:
    return cdiv(rows, chunk_rows(rows))


@triton.jit(do_not_specialize=["rows"])
def column_sum_chunks_kernel(
    x_ptr, partial_ptr, rows, F: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    chunk = tl.program_id(0)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    first = chunk * CHUNK
    total = tl.zeros((ROWS, COLS), tl.float32)
    for row in range(first, min(first + CHUNK, rows), ROWS):
        r = row + tl.arange(0, ROWS)[:, None]
        place = r.to(tl.int64) * F + col
        total += tl.load(x_ptr + place, mask=(r < rows) & (col < F), other=0.0).to(tl.float32)
    out = tl.program_id(1) * COLS + tl.arange(0, COLS)
    tl.store(partial_ptr + chunk.to(tl.int64) * F + out, tl.sum(total, 0), mask=out < F)


@triton.jit
def column_total(partial_ptr, out, col, parts, STRIDE: tl.constexpr, OUTS: tl.constexpr, PARTS: tl.constexpr):
    """Columns `col` of output `out` of partial [parts, OUTS, STRIDE], added over parts. Padding is read too: rows stay whole."""
    part = tl.arange(0, PARTS)[:, None]
    total = tl.zeros((PARTS, col.shape[0]), tl.float32)
    for start in range(0, parts, PARTS):
        place = (part.to(tl.int64) + start) * (OUTS * STRIDE) + out * STRIDE + col[None, :]
        total += tl.load(partial_ptr + place, mask=(start + part < parts) & (col[None, :] < STRIDE), other=0.0)
    return tl.sum(total, 0)


@triton.jit
def store_total(first_ptr, second_ptr, rest_ptr, out, col, total, E: tl.constexpr, OUTS: tl.constexpr):
    """Outputs 0 and 1 go to their own tensors, the others to the rows of a third."""
    if out == 0:
        tl.store(first_ptr + col, total.to(first_ptr.dtype.element_ty), mask=col < E)
    elif OUTS > 1:
        if out == 1:
            tl.store(second_ptr + col, total.to(second_ptr.dtype.element_ty), mask=col < E)
        elif OUTS > 2:
            tl.store(rest_ptr + (out - 2) * E + col, total.to(rest_ptr.dtype.element_ty), mask=col < E)


@triton.jit(do_not_specialize=["parts"])
def sums_kernel(
    partial_ptr,
    first_ptr,
    second_ptr,
    rest_ptr,
    parts,
    E: tl.constexpr,
    STRIDE: tl.constexpr,
    OUTS: tl.constexpr,
    PARTS: tl.constexpr,
    COLS: tl.constexpr,
):
    out = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = column_total(partial_ptr, out, col, parts, STRIDE, OUTS, PARTS)
    store_total(first_ptr, second_ptr, rest_ptr, out, col, total, E, OUTS)


def add_up(partial: Tensor, first: Tensor, second: Tensor | None = None, rest: Tensor | None = None) -> None:
    """Sums over the first dimension of float32 partial sums, contiguous; zeros where it is 0.

    Args:
        partial: [parts, outs, columns], or [parts, columns] for one output; columns past the outputs' width are left out.
        first, second: [E], outputs 0 and 1.
        rest: [outs - 2, E], the others; [E] where it is one.
    """
    outs = partial.shape[1] if partial.dim() == 3 else 1
    size, stride, parts = first.shape[0], partial.shape[-1], partial.shape[0]
    launch(
        sums_kernel,
        (cdiv(size, COLS), outs),
        (partial, first, second, rest, parts),
        {"E": size, "STRIDE": stride, "OUTS": outs, "PARTS": _MANY if parts > _FEW else _FEW, "COLS": COLS},
        warps=WARPS,
    )


def sum_partials(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """[F] of `dtype` from float32 partial sums [chunks, F]; zeros where there are no chunks."""
    out = torch.empty(partial.shape[1], dtype=dtype, device=partial.device)
    add_up(partial, out)
    return out


def column_sum(x: Tensor) -> Tensor:
    """[F], the sum over the rows of x [T, F] (float32, float16 or bfloat16, contiguous), in x's dtype."""
    rows, cols = x.shape
    count = chunks(rows)
    partial = torch.empty(count, cols, dtype=torch.float32, device=x.device)
    constants = {"F": cols, "CHUNK": chunk_rows(rows), "ROWS": _CHUNK_ROWS, "COLS": _CHUNK_COLS}
    launch(column_sum_chunks_kernel, (count, cdiv(cols, _CHUNK_COLS)), (x, partial, rows), constants)
    return sum_partials(partial, x.dtype)
