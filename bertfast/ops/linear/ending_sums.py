"""Candidate for linear's backward: the bias gradient's column sum with rows on their way ahead of their use, in one launch.

In a graph of a step on an H200 the owner took 39.7 us of 16384 x 2304 in bfloat16, which is 1.9 TB/s, and 3.8 us for its second
launch: each program waits for its rows. Here the next rows are on their way while the present ones are added, programs are
as few as keep the device busy, and the last of them add the partial sums (`triton.ending`). The gradient is of the weight's dtype,
so that a float32 bias of a model under autocast needs no cast and loses no digits.
"""

from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.linear.triton import weight_gradients
from bertfast.triton import ending, launch, tables

TABLES = tables.load("linear.ending_sums", Path(__file__).with_suffix(".json"))
PROGRAMS = 4  # a multiprocessor, at least, where there are rows enough


@triton.jit(do_not_specialize=["rows"])
def ending_column_sum_kernel(
    x_ptr, partial_ptr, counter_ptr, out_ptr, rows,
    F: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """The sums of a chunk of rows in a block of columns. Programs beside one another share rows."""
    chunk = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]  # [1, COLS]
    total = tl.zeros((ROWS, COLS), tl.float32)
    first = chunk * CHUNK
    for row in tl.range(first, min(first + CHUNK, rows), ROWS, num_stages=STAGES):
        r = row + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
        place = r.to(tl.int64) * F + col
        total += tl.load(x_ptr + place, mask=(r < rows) & (col < F), other=0.0).to(tl.float32)
    out = tl.program_id(0) * COLS + tl.arange(0, COLS)
    tl.store(partial_ptr + chunk.to(tl.int64) * F + out, tl.sum(total, 0), mask=out < F)
    if counter_ptr is not None:
        ending.end(partial_ptr, counter_ptr, out_ptr, tl.program_id(0), chunk, tl.num_programs(1), F, COLS, DEEP)


def chunk_rows(rows: int, blocks: int, tile: tables.Tile, processors: int) -> int:
    """Rows that a program adds: the tile's, halved until PROGRAMS of them are there for each multiprocessor."""
    chunk = tile["chunk"]
    while chunk > tile["rows"] and blocks * launch.cdiv(rows, chunk) < PROGRAMS * processors:
        chunk //= 2
    return chunk


def column_sum(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[F], the sum over the rows of x [T, F] (float32, float16 or bfloat16, contiguous), in `dtype`, x's where it is None."""
    rows, cols = x.shape
    out = torch.empty(cols, dtype=dtype or x.dtype, device=x.device)
    if not rows:
        return out.zero_()
    tile = TABLES.find("column_sum", launch.architecture(x.device))
    blocks = launch.cdiv(cols, tile["cols"])
    chunk = chunk_rows(rows, blocks, tile, launch.multiprocessors(x.device))
    parts = launch.cdiv(rows, chunk)
    partial, counter = ending.partials(parts, cols, x.device), ending.counter_of(x, blocks, parts)
    sizes = {"ROWS": tile["rows"], "COLS": tile["cols"], "STAGES": tile["stages"]}
    constants = {"F": cols, "CHUNK": chunk, **sizes, "DEEP": counter is not None and ending.is_deep(parts)}
    args = (x, partial, counter, None if counter is None else out, rows)
    launch.launch(ending_column_sum_kernel, (blocks, parts), args, constants, warps=tile["warps"])
    if counter is None:
        ending.add_up(partial, parts, out, tile["cols"], tile["warps"])
    return out


def linear_bwd(
    dy: Tensor, x: Tensor, weight: Tensor, has_bias: bool, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if not has_bias:
        dbias = dy.new_empty(0)
    elif dy.dtype == torch.float64:
        dbias = dy.sum(0)
    else:
        dbias = column_sum(dy.contiguous(), weight.dtype)
    return *weight_gradients(dy, x, weight, needs_dx, needs_dweight), dbias
