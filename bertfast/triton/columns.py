"""Sums over the rows of [T, F], such as bias gradients: float32, in an order that only the shape decides.

First stage: a program adds a chunk of rows of a block of columns, giving partial sums [chunks, F]. Second stage: one program a
block of columns adds the chunks. No atomics, so the same bits every time. Kernels that make their own partial sums on the
way, as bias_gelu's backward does, use the second stage alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.triton.launch import cdiv, launch

# 256 columns are 32 threads of 16 bytes in 16-bit types, so four warps read four rows at once. Predicted, never measured.
COLS, ROWS = 256, 8
# Second stage: 32 columns are one 128-byte line of float32; 96 programs at F = 3072. Predicted, never measured.
_SUM_COLS, _SUM_ROWS = 32, 32


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


@triton.jit(do_not_specialize=["chunks"])
def column_sum_kernel(partial_ptr, out_ptr, chunks, F: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    total = tl.zeros((ROWS, COLS), tl.float32)
    for row in range(0, chunks, ROWS):
        r = row + tl.arange(0, ROWS)[:, None]
        total += tl.load(partial_ptr + r.to(tl.int64) * F + col, mask=(r < chunks) & (col < F), other=0.0)
    out = tl.program_id(0) * COLS + tl.arange(0, COLS)
    tl.store(out_ptr + out, tl.sum(total, 0), mask=out < F)


def sum_partials(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """[F] of `dtype` from float32 partial sums [chunks, F]; zeros where there are no chunks."""
    count, cols = partial.shape
    out = torch.empty(cols, dtype=dtype, device=partial.device)
    constants = {"F": cols, "ROWS": _SUM_ROWS, "COLS": _SUM_COLS}
    launch(column_sum_kernel, (cdiv(cols, _SUM_COLS),), (partial, out, count), constants)
    return out


def column_sum(x: Tensor) -> Tensor:
    """[F], the sum over the rows of x [T, F] (float32, float16 or bfloat16, contiguous), in x's dtype."""
    rows, cols = x.shape
    count = chunks(rows)
    partial = torch.empty(count, cols, dtype=torch.float32, device=x.device)
    constants = {"F": cols, "CHUNK": chunk_rows(rows), "ROWS": ROWS, "COLS": COLS}
    launch(column_sum_chunks_kernel, (count, cdiv(cols, COLS)), (x, partial, rows), constants)
    return sum_partials(partial, x.dtype)
