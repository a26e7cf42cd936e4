"""fp8_gelu on GPUs: bias_gelu's passes, whose results leave them in FP8, row by row and transposed.

Forward: a program a tile. Backward: a program walks down a chunk of rows and keeps the sums of its columns, as bias_gelu does.
Rows: a program a row, kept in registers until its scale is known. The transposed copy: bertfast.triton.fp8_words.
GELU's erf form in 16-bit types is that of `linear_gelu.cheap_erf`: its relative error of 7e-5 is nothing beside FP8's 2^-4.
"""

from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.fp8 import LARGEST
from bertfast.ops.fp8_gelu import reference
from bertfast.ops.linear_gelu import cheap_erf
from bertfast.triton import fp8_words as words
from bertfast.triton import gelu as exact
from bertfast.triton import sums, tables
from bertfast.triton.launch import architecture, cdiv, launch

TABLES = tables.load("fp8_gelu", Path(__file__).with_name("launch.json"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MANY_ROWS = 4096  # from here on a chunk of several tiles a program leaves programs for every multiprocessor


@triton.jit
def gelu(v, TANH: tl.constexpr, CHEAP: tl.constexpr):
    if CHEAP:
        y = cheap_erf.gelu(v)
    else:
        y = exact.gelu(v, TANH)
    return y


@triton.jit
def gelu_gradient(v, TANH: tl.constexpr, CHEAP: tl.constexpr):
    if CHEAP:
        slope = cheap_erf.gelu_gradient(v)
    else:
        slope = exact.gelu_gradient(v, TANH)
    return slope


@triton.jit(do_not_specialize=["rows"])
def fp8_gelu_fwd_kernel(
    pre_ptr, bias_ptr, scale_ptr, amax_ptr, y_ptr, yt_ptr, rows,
    F: tl.constexpr, QUADS: tl.constexpr, COLS: tl.constexpr, WHOLE: tl.constexpr, TANH: tl.constexpr, CHEAP: tl.constexpr,
):  # fmt: skip
    quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)[:, None]  # [QUADS, 1]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]  # [1, COLS]
    loaded = ()  # all four rows are asked for before the first is worked on
    for step in tl.static_range(4):
        mask = words.inside(quad, step, rows, 4, WHOLE) & (col < F)
        pre = tl.load(pre_ptr + words.place(quad, step, col, F), mask=mask, other=0.0)  # [QUADS, COLS]
        loaded = loaded + (pre,)  # type: ignore[assignment]
    bias = tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)  # [1, COLS]
    inverse = words.inverse_of(scale_ptr)
    word = tl.zeros((QUADS, COLS), tl.uint32)
    largest = tl.zeros((QUADS, COLS), tl.float32)
    for step in tl.static_range(4):
        mask = words.inside(quad, step, rows, 4, WHOLE) & (col < F)
        y = gelu(loaded[step].to(tl.float32) + bias, TANH, CHEAP)
        if not WHOLE:
            y = tl.where(mask, y, 0.0)
        largest = words.larger(largest, y)
        stored = (y * inverse).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + words.place(quad, step, col, F), stored, mask=mask)
        if yt_ptr is not None:
            if WHOLE:
                word = words.push(word, stored)
            else:
                words.store_bytes(yt_ptr, stored, quad * 4 + step, col, rows, mask)
    if yt_ptr is not None:
        if WHOLE:
            words.store_words(yt_ptr, word, quad, col, rows, F)
    if WHOLE:  # all rows of a quad are there or none: one selection for the four of them
        largest = tl.where(words.inside(quad, 0, rows, 4, WHOLE) & (col < F), largest, 0.0)
    words.raise_amax(amax_ptr, largest)


@triton.jit(do_not_specialize=["rows"])
def fp8_gelu_bwd_kernel(
    dy_ptr, pre_ptr, bias_ptr, scale_ptr, amax_ptr, dpre_ptr, dpret_ptr, partial_ptr, rows,
    F: tl.constexpr, CHUNK: tl.constexpr, QUADS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
    WHOLE: tl.constexpr, TANH: tl.constexpr, CHEAP: tl.constexpr,
):  # fmt: skip
    """dpre of a chunk of rows and some columns, and the sums of these columns. Programs beside one another share rows."""
    chunk = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]  # [1, COLS]
    bias = tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)  # [1, COLS]
    inverse = words.inverse_of(scale_ptr)
    total = tl.zeros((QUADS, COLS), tl.float32)
    largest = tl.zeros((QUADS, COLS), tl.float32)
    begin = chunk * (CHUNK // 4)
    for first in tl.range(begin, min(begin + CHUNK // 4, tl.cdiv(rows, 4)), QUADS, num_stages=STAGES):
        quad = first + tl.arange(0, QUADS)[:, None]  # [QUADS, 1]
        word = tl.zeros((QUADS, COLS), tl.uint32)
        for step in tl.static_range(4):
            mask = words.inside(quad, step, rows, 4, WHOLE) & (col < F)
            place = words.place(quad, step, col, F)
            dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [QUADS, COLS]
            pre = tl.load(pre_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [QUADS, COLS]
            # Past the last row dy is 0, but an infinite bias would make NaN of it.
            dpre = tl.where(mask, dy * gelu_gradient(pre + bias, TANH, CHEAP), 0.0)
            total += dpre
            largest = words.larger(largest, dpre)
            stored = (dpre * inverse).to(dpre_ptr.dtype.element_ty)
            tl.store(dpre_ptr + place, stored, mask=mask)
            if dpret_ptr is not None:
                if WHOLE:
                    word = words.push(word, stored)
                else:
                    words.store_bytes(dpret_ptr, stored, quad * 4 + step, col, rows, mask)
        if dpret_ptr is not None:
            if WHOLE:
                words.store_words(dpret_ptr, word, quad, col, rows, F)
    out = tl.program_id(0) * COLS + tl.arange(0, COLS)
    tl.store(partial_ptr + chunk.to(tl.int64) * F + out, tl.sum(total, 0), mask=out < F)
    words.raise_amax(amax_ptr, largest)


@triton.jit
def fp8_gelu_rows_kernel(
    pre_ptr, bias_ptr, y_ptr, scale_ptr,
    F: tl.constexpr, LARGEST: tl.constexpr, TANH: tl.constexpr, CHEAP: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    results = ()  # the row stays in registers until its scale is known
    largest = tl.zeros((PIECE,), tl.float32)
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)  # [PIECE]
        pre = tl.load(pre_ptr + row * F + col, mask=col < F, other=0.0).to(tl.float32)  # [PIECE]
        bias = tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)  # [PIECE]
        y = gelu(pre + bias, TANH, CHEAP)  # 0 past the last column
        largest = words.larger(largest, y)
        results = results + (y,)  # type: ignore[assignment]
    scale = words.row_scale(words.bits_of_largest(largest, 0), LARGEST)
    inverse = tl.div_rn(1.0, scale)
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)  # [PIECE]
        tl.store(y_ptr + row * F + col, (results[piece] * inverse).to(y_ptr.dtype.element_ty), mask=col < F)
    tl.store(scale_ptr + row, scale)


def taken(pre: Tensor) -> bool:
    return pre.dtype in DTYPES and architecture(pre.device) >= words.HAS_FP8


def _form(pre: Tensor, tanh: bool) -> dict[str, bool]:
    return {"TANH": tanh, "CHEAP": not tanh and pre.dtype != torch.float32}


def fp8_gelu_fwd(
    pre: Tensor, bias: Tensor, tanh: bool, scale: Tensor, amax: Tensor, dtype: torch.dtype, transposed: bool
) -> tuple[Tensor, Tensor]:
    if not taken(pre):
        return reference.forward(pre, bias, tanh, scale, amax, dtype, transposed)
    pre, bias = pre.contiguous(), bias.contiguous()
    rows, cols = pre.shape
    tile = TABLES.find("forward", architecture(pre.device))
    y = torch.empty_like(pre, dtype=dtype)
    yt = y.new_empty((cols, rows) if transposed else (0,))
    grid = cdiv(rows, 4 * tile["quads"]), cdiv(cols, tile["cols"])
    constants = {"F": cols, "QUADS": tile["quads"], "COLS": tile["cols"], "WHOLE": rows % 16 == 0, **_form(pre, tanh)}
    args = (pre, bias, scale, amax, y, yt if transposed else None, rows)
    launch(fp8_gelu_fwd_kernel, grid, args, constants, warps=tile["warps"])
    return y, yt


def fp8_gelu_bwd(
    dy: Tensor,
    pre: Tensor,
    bias: Tensor,
    tanh: bool,
    scale: Tensor,
    amax: Tensor,
    dtype: torch.dtype,
    transposed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not taken(pre):
        return reference.backward(dy, pre, bias, tanh, scale, amax, dtype, transposed)
    dy, pre, bias = dy.contiguous(), pre.contiguous(), bias.contiguous()
    rows, cols = pre.shape
    tile = TABLES.find("backward", architecture(pre.device))
    chunk = tile["chunk"] if rows >= MANY_ROWS else 4 * tile["quads"]
    dpre = torch.empty_like(pre, dtype=dtype)
    dpret = dpre.new_empty((cols, rows) if transposed else (0,))
    grid = cdiv(cols, tile["cols"]), cdiv(rows, chunk)
    partial = torch.empty(grid[1], cols, dtype=torch.float32, device=pre.device)
    sizes = {"F": cols, "CHUNK": chunk, "QUADS": tile["quads"], "COLS": tile["cols"], "STAGES": tile["stages"]}
    args = (dy, pre, bias, scale, amax, dpre, dpret if transposed else None, partial, rows)
    constants = {**sizes, "WHOLE": rows % 16 == 0, **_form(pre, tanh)}
    launch(fp8_gelu_bwd_kernel, grid, args, constants, warps=tile["warps"])
    return dpre, dpret, sums.sum_partials(partial, bias.dtype)


def fp8_gelu_rows(pre: Tensor, bias: Tensor, tanh: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if not taken(pre) or pre.shape[1] > words.MAX_COLS:
        return reference.rows(pre, bias, tanh, dtype)
    pre, bias = pre.contiguous(), bias.contiguous()
    rows, cols = pre.shape
    piece = words.piece_of(cols)
    y = torch.empty_like(pre, dtype=dtype)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=pre.device)
    sizes = {"PIECE": piece, "PIECES": cdiv(cols, piece)}
    constants = {"F": cols, "LARGEST": LARGEST[dtype], **_form(pre, tanh), **sizes}
    launch(fp8_gelu_rows_kernel, (rows,), (pre, bias, y, scale), constants, warps=piece // 256)
    return y, scale
