"""packing on a GPU: unpad gathers rows, repad gathers them back through an inverse index and writes the zeros in the same pass.

Rows are copied as integers of the widest unit that their bytes allow, so every dtype is the same kernel and no bit changes.
A program copies a [ROWS, COLS] tile of the output. Nothing is saved: each op is the other's gradient and takes the same indices.
"""

from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.packing import reference
from bertfast.triton import launch, mailbox, tables
from bertfast.triton.launch import cdiv, next_power_of_2

BAD_INDEX = tl.constexpr(
    mailbox.meaning(7, IndexError, "packing: the index at position {place} is outside the rows of the padded batch")
)
NOBODY = tl.constexpr(-1)  # a row of the padded batch that no token has
POISON = tl.constexpr(2**31 - 1)  # a row where a bad index was clamped to
UNITS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
TABLES = tables.load("packing", Path(__file__).with_name("launch.json"))


@triton.jit(do_not_specialize=["tokens", "rows"])
def unpad_kernel(
    x_ptr, indices_ptr, y_ptr, box_ptr, tokens, rows, UNITS_ROW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = place < tokens
    row = tl.load(indices_ptr + place, mask=inside, other=0).to(tl.int64)
    good = (row >= 0) & (row < rows)
    wanted = inside[:, None] & (col < UNITS_ROW)[None, :]
    # All bits set is NaN in every float dtype: what a bad index gets.
    x = tl.load(x_ptr + row[:, None] * UNITS_ROW + col[None, :], mask=wanted & good[:, None], other=-1)
    tl.store(y_ptr + place[:, None] * UNITS_ROW + col[None, :], x, mask=wanted)
    first = tl.min(tl.where(inside & (good == 0), place, tokens.to(tl.int64)))
    mailbox.report(box_ptr, BAD_INDEX, first, first < tokens)


@triton.jit(do_not_specialize=["tokens", "rows"])
def invert_kernel(inverse_ptr, indices_ptr, box_ptr, tokens, rows, PLACES: tl.constexpr):
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    inside = place < tokens
    row = tl.load(indices_ptr + place, mask=inside, other=0).to(tl.int64)
    good = (row >= 0) & (row < rows)
    # An integer maximum does not depend on order: of repeated indices the last one wins, as index_copy_ does on a CPU.
    clamped = tl.minimum(tl.maximum(row, 0), tl.maximum(rows.to(tl.int64) - 1, 0))
    tl.atomic_max(inverse_ptr + clamped, tl.where(good, place, POISON), mask=inside & (rows > 0), sem="relaxed")
    first = tl.min(tl.where(inside & (good == 0), place, tokens))
    mailbox.report(box_ptr, BAD_INDEX, first, first < tokens)


@triton.jit(do_not_specialize=["rows"])
def repad_kernel(x_ptr, inverse_ptr, y_ptr, rows, UNITS_ROW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = row < rows
    place = tl.load(inverse_ptr + row, mask=inside, other=NOBODY)
    wanted = inside[:, None] & (col < UNITS_ROW)[None, :]
    real = (place >= 0) & (place != POISON)
    x = tl.load(x_ptr + place.to(tl.int64)[:, None] * UNITS_ROW + col[None, :], mask=wanted & real[:, None], other=0)
    x = tl.where((place == POISON)[:, None], -1, x).to(x.dtype)
    tl.store(y_ptr + row[:, None] * UNITS_ROW + col[None, :], x, mask=wanted)


@triton.jit(do_not_specialize=["tokens", "batch", "seqlen", "steps"])
def bounds_kernel(indices_ptr, bounds_ptr, tokens, batch, seqlen, steps, BOUNDS: tl.constexpr):
    """bounds[b] = how many of the rising indices lie before sequence b: a binary search a thread."""
    b = tl.program_id(0) * BOUNDS + tl.arange(0, BOUNDS)
    begin = b.to(tl.int64) * seqlen
    low = tl.zeros((BOUNDS,), tl.int64)
    high = low + tokens
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        before = tl.load(indices_ptr + middle, mask=open_ & (b <= batch), other=0) < begin
        low = tl.where(open_ & before, middle + 1, low)
        high = tl.where(open_ & (before == 0), middle, high)
    tl.store(bounds_ptr + b, low.to(tl.int32), mask=b <= batch)


def _units(x: Tensor) -> tuple[Tensor, int]:
    """Contiguous x as [rows, units] of the widest integer of up to 4 bytes that divides its rows, and the units of a row.

    The compiler joins four of them into one access of 16 bytes where a row has a multiple of 16 bytes.
    """
    x = x.contiguous()
    row = x.shape[1] * x.element_size()
    begin = x.storage_offset() * x.element_size()
    size = next(size for size in UNITS if row % size == 0 and begin % size == 0)
    if x.stride() != (x.shape[1], 1):
        x = x.as_strided(x.shape, (x.shape[1], 1))  # contiguous says nothing about the stride of a lone row or column
    return x.view(UNITS[size]), row // size


def _tile(units: int, size: int, device: torch.device) -> tuple[int, int, int]:
    """(ROWS, COLS, warps): columns that divide a row where some power of two from 128 up does, so many kilobytes in all."""
    tile = TABLES.find("copy", launch.architecture(device))
    most = tile["most_cols"]
    exact = next((cols for cols in (512, 256, 128) if cols <= most and units % cols == 0), None)
    cols = exact or min(next_power_of_2(units), most)
    return max(1, min(1024 * tile["kilobytes"] // (cols * size), 64)), cols, tile["warps"]


def _copies(x: Tensor, rows: int) -> bool:
    """Whether the kernels take it: places are int32, and a row must have bytes."""
    return x.dim() == 2 and x.shape[1] > 0 and max(x.shape[0], rows) < 2**31 - 1 and not x.is_complex()


def pack_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """torch's nonzero, which waits for the device because the number of tokens is a shape, and one kernel for the bounds."""
    # Recorded on meta tensors: as if every token were real.
    indices = mask.new_empty(mask.numel(), dtype=torch.int64) if mask.is_meta else mask.flatten().nonzero().flatten()
    batch, seqlen = mask.shape
    bounds = mask.new_empty(batch + 1, dtype=torch.int32)
    steps = mask.numel().bit_length() + 1
    tile = TABLES.find("bounds", launch.architecture(mask.device))
    args, count = (indices, bounds, indices.shape[0], batch, seqlen, steps), tile["bounds"]
    launch.launch(bounds_kernel, (cdiv(batch + 1, count),), args, {"BOUNDS": count}, warps=tile["warps"])
    return indices, bounds


def _check(x: Tensor, indices: Tensor, rows: int) -> None:
    if launch.INTERPRETED and not x.is_meta:
        reference.check_indices(indices, rows)
    else:
        mailbox.check(x.device)


def unpad(x: Tensor, indices: Tensor) -> Tensor:
    tokens = indices.shape[0]
    if not _copies(x, tokens):
        return reference.unpad(x, indices)
    _check(x, indices, x.shape[0])
    y = x.new_empty(tokens, x.shape[1])
    source, units = _units(x)
    target = y.view(source.dtype)
    rows, cols, warps = _tile(units, source.element_size(), x.device)
    args = (source, indices.contiguous(), target, mailbox.box(x.device), tokens, x.shape[0])
    grid = (cdiv(tokens, rows), cdiv(units, cols))
    launch.launch(unpad_kernel, grid, args, {"UNITS_ROW": units, "ROWS": rows, "COLS": cols}, warps=warps)
    return y


def repad(x: Tensor, indices: Tensor, rows: int) -> Tensor:
    """Three launches, two of them over 4 bytes a row.

    Filling with zeros and scattering is one launch less, about 2 us, but writes the tokens' rows twice: from about 9 MB of
    tokens on, 5,600 of BERT-base, the inverse index wins (predicted at 4.3 TB/s, never measured).
    """
    tokens = indices.shape[0]
    if not _copies(x, rows) or x.shape[0] != tokens:
        return reference.repad(x, indices, rows)
    _check(x, indices, rows)
    y = x.new_empty(rows, x.shape[1])
    source, units = _units(x)
    target = y.view(source.dtype)
    inverse = torch.full((rows,), NOBODY.value, dtype=torch.int32, device=x.device)
    args = (inverse, indices.contiguous(), mailbox.box(x.device), tokens, rows)
    tile = TABLES.find("invert", launch.architecture(x.device))
    places = tile["places"]
    launch.launch(invert_kernel, (cdiv(tokens, places),), args, {"PLACES": places}, warps=tile["warps"])
    tile_rows, cols, warps = _tile(units, source.element_size(), x.device)
    grid = (cdiv(rows, tile_rows), cdiv(units, cols))
    constants = {"UNITS_ROW": units, "ROWS": tile_rows, "COLS": cols}
    launch.launch(repad_kernel, grid, (source, inverse, target, rows), constants, warps=warps)
    return y
