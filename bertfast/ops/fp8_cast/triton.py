"""fp8_cast on GPUs: a pass that reads a tensor once and writes it in FP8, row by row and transposed (bertfast.triton.fp8_words).

fp8_cast          a program a tile; the largest magnitude by one atomic a program
fp8_cast_rows     a program a row, kept in registers until its scale is known
fp8_cast_weights  torch's largest magnitudes of all weights, in a few launches, then fp8_cast's kernel for each weight: its columns
                  are a constant of the code, and the start of a launch in a graph is short beside a weight's bytes
fp8_update_scales a lane a tensor
"""

from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast import _torch
from bertfast.ops.fp8 import LARGEST
from bertfast.ops.fp8_cast import reference
from bertfast.triton import fp8_words as words
from bertfast.triton import tables
from bertfast.triton.launch import architecture, cdiv, launch

TABLES = tables.load("fp8_cast", Path(__file__).with_name("launch.json"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LANES = 128


@triton.jit(do_not_specialize=["rows"])
def fp8_cast_kernel(
    x_ptr, scale_ptr, amax_ptr, y_ptr, yt_ptr, rows,
    C: tl.constexpr, QUADS: tl.constexpr, COLS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)[:, None]  # [QUADS, 1]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]  # [1, COLS]
    inverse = words.inverse_of(scale_ptr)
    word = tl.zeros((QUADS, COLS), tl.uint32)
    largest = tl.zeros((QUADS, COLS), tl.float32)
    for step in tl.static_range(4):
        mask = words.inside(quad, step, rows, 4, WHOLE) & (col < C)
        place = words.place(quad, step, col, C)
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [QUADS, COLS]
        largest = words.larger(largest, x)
        stored = (x * inverse).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + place, stored, mask=mask)
        if yt_ptr is not None:
            if WHOLE:
                word = words.push(word, stored)
            else:
                words.store_bytes(yt_ptr, stored, quad * 4 + step, col, rows, mask)
    if yt_ptr is not None:
        if WHOLE:
            words.store_words(yt_ptr, word, quad, col, rows, C)
    if amax_ptr is not None:
        words.raise_amax(amax_ptr, largest)


@triton.jit
def fp8_cast_rows_kernel(
    x_ptr, y_ptr, scale_ptr, C: tl.constexpr, LARGEST: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    pieces = ()  # the row stays in registers until its scale is known
    largest = tl.zeros((PIECE,), tl.float32)
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)  # [PIECE]
        x = tl.load(x_ptr + row * C + col, mask=col < C, other=0.0).to(tl.float32)  # [PIECE]
        largest = words.larger(largest, x)
        pieces = pieces + (x,)  # type: ignore[assignment]
    scale = words.row_scale(words.bits_of_largest(largest, 0), LARGEST)
    inverse = tl.div_rn(1.0, scale)
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)  # [PIECE]
        tl.store(y_ptr + row * C + col, (pieces[piece] * inverse).to(y_ptr.dtype.element_ty), mask=col < C)
    tl.store(scale_ptr + row, scale)


@triton.jit(do_not_specialize=["count"])
def fp8_update_scales_kernel(
    history_ptr, amax_ptr, scale_ptr, largest_ptr, count, factor, STEPS: tl.constexpr, LANES: tl.constexpr
):
    number = tl.program_id(0) * LANES + tl.arange(0, LANES)  # [LANES] tensors
    mask = number < count
    newest = tl.load(history_ptr + number, mask=mask, other=0.0)  # [LANES]
    amax = tl.load(amax_ptr + number, mask=mask, other=0.0)  # [LANES]
    shifted = tl.where(tl.abs(amax) < float("inf"), amax, newest)
    top = shifted
    for step in tl.static_range(STEPS):
        place = history_ptr + step * count + number
        older = tl.load(place, mask=mask, other=0.0)  # [LANES]
        tl.store(place, shifted, mask=mask)
        shifted = older
        if step < STEPS - 1:
            top = tl.maximum(top, older)
    scale = tl.load(scale_ptr + number, mask=mask, other=1.0)  # [LANES]
    largest = tl.load(largest_ptr + number, mask=mask, other=1.0)  # [LANES]
    tl.store(scale_ptr + number, tl.where(top > 0.0, tl.div_rn(top * factor, largest), scale), mask=mask)
    tl.store(amax_ptr + number, tl.zeros((LANES,), tl.float32), mask=mask)


def taken(x: Tensor) -> bool:
    return x.dtype in DTYPES and architecture(x.device) >= words.HAS_FP8


def fp8_cast(x: Tensor, scale: Tensor, amax: Tensor, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, Tensor]:
    if not taken(x):
        return reference.cast(x, scale, amax, dtype, transposed)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    yt = y.new_empty(x.shape[::-1] if transposed else (0,))
    _cast(x.contiguous(), scale, amax, y, yt if transposed else None)
    return y, yt


def _cast(x: Tensor, scale: Tensor, amax: Tensor | None, y: Tensor, yt: Tensor | None) -> None:
    """x [T, C], contiguous, to y [T, C] and yt [C, T]."""
    rows, cols = x.shape
    tile = TABLES.find("cast", architecture(x.device))
    grid = cdiv(rows, 4 * tile["quads"]), cdiv(cols, tile["cols"])
    constants = {"C": cols, "QUADS": tile["quads"], "COLS": tile["cols"], "WHOLE": rows % 16 == 0}
    launch(fp8_cast_kernel, grid, (x, scale, amax, y, yt, rows), constants, warps=tile["warps"])


def fp8_cast_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if not taken(x) or x.shape[1] > words.MAX_COLS:
        return reference.cast_rows(x, dtype)
    x = x.contiguous()
    rows, cols = x.shape
    piece = words.piece_of(cols)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    constants = {"C": cols, "LARGEST": LARGEST[dtype], "PIECE": piece, "PIECES": cdiv(cols, piece)}
    launch(fp8_cast_rows_kernel, (rows,), (x, y, scale), constants, warps=piece // 256)
    return y, scale


def fp8_cast_weights(weights: list[Tensor], scales: Tensor, casts: list[Tensor], transposed: list[Tensor]) -> None:
    if not all(taken(weight) and weight.is_contiguous() for weight in weights):
        reference.cast_weights(weights, scales, casts, transposed)
        return
    amax = torch.stack(_torch.foreach("norm")(weights, float("inf"))).float()  # [n]
    largest = LARGEST[casts[0].dtype]
    scales.copy_(torch.where((amax > 0) & amax.isfinite(), amax / largest, 1.0))
    for number, (weight, cast) in enumerate(zip(weights, casts, strict=True)):
        _cast(weight, scales[number], None, cast, transposed[number] if transposed else None)


def fp8_update_scales(history: Tensor, amax: Tensor, scale: Tensor, largest: Tensor, margin: float) -> None:
    count = amax.shape[0]
    constants = {"STEPS": history.shape[0], "LANES": _LANES}
    args = (history, amax, scale, largest, count, 2.0**margin)
    launch(fp8_update_scales_kernel, (cdiv(count, _LANES),), args, constants)
