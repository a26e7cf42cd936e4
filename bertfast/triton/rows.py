"""What kernels that hold whole rows in registers share: device functions of layer norm and dropout, and the table of their tiles.

Used by dropout_add_norm and embedding_sum_norm. The table is predicted from compiled code, never measured.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from bertfast.ops import rng as dropout_bits
from bertfast.triton import random
from bertfast.triton.launch import next_power_of_2

MAX_COLS = 4096  # a row lives in registers: 16 elements a thread at 8 warps
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RowTile:
    """A program's tile: ROWS rows of BLOCK columns at once, on `warps` warps."""

    rows: int
    block: int
    warps: int


# BLOCK columns to (forward rows, backward rows, warps). Warps lie along a row, 8 elements a thread (16 bytes of bfloat16): only so
# does a thread keep the same columns in all rows, and parameters and their partial gradients cost
# 8 registers each. Several rows a tile share the parameters' loads and the reductions' barriers.
# Backward holds three inputs and three sums, so fewer rows.
_TILES = {
    256: (4, 2, 1),  # twice the rows take 218 registers in embedding_sum_norm: too few warps would be resident
    512: (4, 2, 2),
    1024: (4, 2, 4),  # BERT-base (a quarter of the lanes idle at 768: issue slots, not bytes) and BERT-large
    2048: (2, 1, 8),
    4096: (1, 1, 8),
}
# Backward warps on a multiprocessor: 128 registers a thread let in 16. Each program leaves a row of partial sums to be added.
RESIDENT_WARPS = 16
# At least so many tiles a program: below, writing and adding partial sums takes over a tenth of the bytes.
TILES_PER_PROGRAM = 16


def _block(cols: int) -> int:
    """Columns of a tile: a power of two, at least one warp of 8 elements a thread."""
    return max(256, next_power_of_2(cols))


def forward_tile(cols: int, rows: int, multiprocessors: int) -> RowTile:
    """One row a program while that fills the multiprocessors less than four times: latency matters, not loads of parameters."""
    most, _, warps = _TILES[_block(cols)]
    return RowTile(1 if rows <= 4 * multiprocessors else most, _block(cols), warps)


def backward_tile(cols: int) -> RowTile:
    _, rows, warps = _TILES[_block(cols)]
    return RowTile(rows, _block(cols), warps)


def backward_programs(rows: int, tile: RowTile, multiprocessors: int) -> int:
    """How many programs share the rows: at least one a multiprocessor, at most what is resident, never more than tiles."""
    tiles = -(-rows // tile.rows)
    wanted = min(RESIDENT_WARPS // tile.warps * multiprocessors, -(-tiles // TILES_PER_PROGRAM))
    return min(tiles, max(multiprocessors, wanted))


def taken(*tensors: Any) -> bool:
    """Whether the kernels take these dtypes and the first one's width; the reference takes the others."""
    for t in tensors:  # twice as fast as all() of a generator
        if t is not None and t.dtype not in DTYPES:
            return False
    return tensors[0].shape[-1] <= MAX_COLS


def contiguous(*tensors: Any) -> tuple[Any, ...]:
    """Each tensor contiguous; None stays None."""
    return tuple([t if t is None or t.is_contiguous() else t.contiguous() for t in tensors])


def dropout_numbers(p: float) -> tuple[int, float]:
    """(threshold, 1 / keep rate)."""
    return dropout_bits.threshold_rows(p), 1.0 / dropout_bits.keep_rate_rows(p)


@triton.jit
def load_columns(ptr, col, E: tl.constexpr):
    """A [1, BLOCK] parameter as float32, 0 past E."""
    return tl.load(ptr + col, mask=col < E, other=0.0).to(tl.float32)


@triton.jit
def normalise(z, mask, eps, E: tl.constexpr):
    """(z - mean) and rstd of rows; the variance of what is centred, so that large means cost no accuracy."""
    mean = tl.sum(z, 1)[:, None] / E
    centred = tl.where(mask, z - mean, 0.0)
    variance = tl.sum(centred * centred, 1)[:, None] / E
    return centred, mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def normalise_backward(dy, xhat, weight, rstd, E: tl.constexpr):
    """Gradient of z from that of y; dy is 0 in columns past E."""
    g = dy * weight
    first = tl.sum(g, 1)[:, None] / E
    second = tl.sum(g * xhat, 1)[:, None] / E
    return rstd * (g - first - xhat * second)


@triton.jit
def drop(t, rng_ptr, row, threshold, scale, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """t * scale where kept, else 0. row: [ROWS, 1] int64."""
    seed, offset = random.load_state(rng_ptr)
    keep = random.rows_keep(seed, offset, row, tl.arange(0, BLOCK // 8)[None, :], threshold, ROWS, BLOCK)
    return tl.where(keep, t * scale, 0.0)
