"""What kernels that hold whole rows in registers share: device functions of layer norm and dropout, and the table of their tiles.

Used by dropout_add_norm and embedding_sum_norm, whose cases tune the table (rows.json) together.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from bertfast.triton import random, tables
from bertfast.triton.launch import architecture, multiprocessors, next_power_of_2

MAX_COLS = 4096  # a row lives in registers: 16 elements a thread at 8 warps
TABLES = tables.load("rows", Path(__file__).with_name("rows.json"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class RowTile(NamedTuple):
    """A program's tile: ROWS rows of BLOCK columns at once, on `warps` warps; the rest is of backward, see `backward_programs`."""

    rows: int
    warps: int
    block: int
    resident_warps: int = 0
    tiles_per_program: int = 0


def _block(cols: int) -> int:
    """Columns of a tile: a power of two, at least one warp of 8 elements a thread."""
    return max(256, next_power_of_2(cols))


def _find(table: str, cols: int, arch: int) -> RowTile:
    block = _block(cols)
    return RowTile(**TABLES.find(table, arch, block=block), block=block)


_found = cache(_find)


def _tile(table: str, cols: int, device: torch.device) -> RowTile:
    return (_find if tables.watched() else _found)(table, cols, architecture(device))


def forward_tile(cols: int, rows: int, device: torch.device) -> RowTile:
    """One row a program while that fills the multiprocessors less than four times: latency matters, not loads of parameters."""
    tile = _tile("forward", cols, device)
    return tile._replace(rows=1) if rows <= 4 * multiprocessors(device) else tile


def backward_tile(cols: int, device: torch.device) -> RowTile:
    return _tile("backward", cols, device)


def backward_programs(rows: int, tile: RowTile, device: torch.device) -> int:
    """How many programs share the rows: at least one a multiprocessor, at most what is resident, never more than tiles.

    Each leaves a row of partial sums to be added, so it should have `tiles_per_program`.
    """
    tiles, processors = -(-rows // tile.rows), multiprocessors(device)
    wanted = min(tile.resident_warps // tile.warps * processors, -(-tiles // tile.tiles_per_program))
    return min(tiles, max(processors, wanted))


def taken(*tensors: Any) -> bool:
    """Whether the kernels take these dtypes and the first one's width; the reference takes the others."""
    for t in tensors:  # twice as fast as all() of a generator
        if t is not None and t.dtype not in DTYPES:
            return False
    return tensors[0].shape[-1] <= MAX_COLS


def contiguous(*tensors: Any) -> tuple[Any, ...]:
    """Each tensor contiguous; None stays None."""
    for t in tensors:
        if t is not None and not t.is_contiguous():
            return tuple([t if t is None else t.contiguous() for t in tensors])
    return tensors


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
