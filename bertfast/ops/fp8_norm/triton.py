"""fp8_norm on GPUs: dropout_add_norm's passes, whose results leave them in FP8 as well, row by row and transposed.

Tiles are dropout_add_norm's, warps along a row, a few rows at a time. A program takes 32 rows before it writes their transposed
copy, so that its pieces are whole sectors of L2, and reads their FP8 numbers back for it: kept in registers until then they took
128 to 240 on sm_90, which lets 8 to 16 warps in. Of L2's requests for 32 elements in bfloat16 there are 9 forward
and 11 backward, one of them the reading back; pieces of 16 bytes out of registers would be as many. Memory sees 8 and 10.
"""

from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.fp8 import LARGEST
from bertfast.ops.fp8_norm import reference
from bertfast.ops.rng import numbers_rows
from bertfast.triton import fp8_words as words
from bertfast.triton import random, sums, tables
from bertfast.triton.launch import architecture, cdiv, launch, multiprocessors, next_power_of_2
from bertfast.triton.rows import contiguous, drop, forward_tile, load_columns, normalise, normalise_backward
from bertfast.triton.rows import taken as taken_by_rows

TABLES = tables.load("fp8_norm", Path(__file__).with_name("launch.json"))
COLS = tl.constexpr(
    128
)  # of a tile that is transposed: with 256 its registers let three programs of backward in instead of four


@triton.jit
def _place(row, col, E: tl.constexpr):
    """Where elements of a [rows, E] matrix lie, said to be 8 in a row: for stores of one byte each Triton would choose 16, another
    layout than that of the loads, and move all between the two."""
    return tl.max_contiguous(row * E + col, (1, 8))


@triton.jit
def _normalised(
    inputs, row, col, there, eps, threshold, scale, E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """y [ROWS, BLOCK] of some rows, 0 past column E, mean and rstd [ROWS, 1].

    inputs: x, bias, residual, weight, norm_bias and rng, the last None without dropout.
    row: [ROWS, 1] int64; there: [ROWS, 1], whether it is one.
    """
    x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr = inputs
    mask = there & (col < E)
    place = _place(row, col, E)
    z = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    if bias_ptr is not None:
        z += load_columns(bias_ptr, col, E)
    if rng_ptr is not None:
        z = drop(z, rng_ptr, row, threshold, scale, ROWS, BLOCK)
    if residual_ptr is not None:
        z += residual
    centred, mean, rstd = normalise(z, mask, eps, E)
    y = centred * rstd * load_columns(weight_ptr, col, E) + load_columns(norm_bias_ptr, col, E)
    return y, mean, rstd


@triton.jit(do_not_specialize=["rows", "threshold"])
def fp8_norm_fwd_kernel(
    x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr, scale_ptr, amax_ptr,
    y_ptr, mean_ptr, rstd_ptr, y8_ptr, y8t_ptr, rows, eps, threshold, scale,
    E: tl.constexpr, WHOLE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    inverse = words.inverse_of(scale_ptr)
    largest = tl.zeros((1, BLOCK), tl.float32)
    begin = tl.program_id(0) * TILE
    for first in tl.range(begin, begin + TILE, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)[:, None].to(tl.int64)  # [ROWS, 1]
        there = row < rows
        mask = there & (col < E)
        place = _place(row, col, E)
        inputs = (x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr)
        y, mean, rstd = _normalised(inputs, row, col, there, eps, threshold, scale, E, ROWS, BLOCK)
        tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(mean_ptr + row, mean, mask=there)
        tl.store(rstd_ptr + row, rstd, mask=there)
        largest = words.largest_of_rows(largest, tl.where(there, y, 0.0))
        tl.store(y8_ptr + place, (y * inverse).to(y8_ptr.dtype.element_ty), mask=mask)
    if y8t_ptr is not None:
        words.transpose_rows(y8_ptr, y8t_ptr, begin, rows, E, TILE, COLS, WHOLE)
    words.raise_amax(amax_ptr, largest)


@triton.jit(do_not_specialize=["rows", "threshold"])
def fp8_norm_rows_kernel(
    x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr, y_ptr, y8_ptr, scale_ptr,
    rows, eps, threshold, scale, E: tl.constexpr, LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    mask = (row < rows) & (col < E)
    inputs = (x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr)
    y, _, _ = _normalised(inputs, row, col, row < rows, eps, threshold, scale, E, ROWS, BLOCK)
    row_scale = words.row_scale(words.bits_of_largest(tl.abs(y), 1), LARGEST)[:, None]  # [ROWS, 1]
    place = _place(row, col, E)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y8_ptr + place, (y * tl.div_rn(1.0, row_scale)).to(y8_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row, row_scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "threshold"])
def fp8_norm_bwd_kernel(
    dy_ptr, x_ptr, bias_ptr, residual_ptr, weight_ptr, mean_ptr, rstd_ptr, rng_ptr, scale_ptr, amax_ptr,
    dx_ptr, dxt_ptr, dresidual_ptr, partial_ptr, rows, threshold, scale,
    E: tl.constexpr, DROPOUT: tl.constexpr, OUTS: tl.constexpr, WHOLE: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    weight = load_columns(weight_ptr, col, E)
    inverse = words.inverse_of(scale_ptr)
    dweight = tl.zeros((1, BLOCK), tl.float32)
    dnorm_bias = tl.zeros((1, BLOCK), tl.float32)
    dbias = tl.zeros((1, BLOCK), tl.float32)
    largest = tl.zeros((1, BLOCK), tl.float32)
    tiles = tl.cdiv(tl.cdiv(rows, TILE) - tl.program_id(0), tl.num_programs(0))  # of this program
    for turn in tl.range(
        0, tiles * (TILE // ROWS), num_stages=STAGES, disable_licm=True
    ):  # one loop: two would be unrolled into each other
        step = turn % (TILE // ROWS)
        begin = (tl.program_id(0) + turn // (TILE // ROWS) * tl.num_programs(0)) * TILE
        row = begin + step * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)  # [ROWS, 1]
        there = row < rows
        mask = there & (col < E)
        place = _place(row, col, E)
        z = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
        mean = tl.load(mean_ptr + row, mask=there, other=0.0)  # [ROWS, 1]
        rstd = tl.load(rstd_ptr + row, mask=there, other=0.0)  # 0: rows past the end add nothing to the sums
        if bias_ptr is not None:
            z += load_columns(bias_ptr, col, E)
        if DROPOUT:
            seed, offset = random.load_state(rng_ptr)
            keep = random.rows_keep(seed, offset, row, tl.arange(0, BLOCK // 8)[None, :], threshold, ROWS, BLOCK)
            z = tl.where(keep, z * scale, 0.0)
        if residual_ptr is not None:
            z += residual
        xhat = (z - mean) * rstd
        dz = normalise_backward(dy, xhat, weight, rstd, E)
        dweight += tl.sum(dy * xhat, 0)[None, :]
        dnorm_bias += tl.sum(dy, 0)[None, :]
        if residual_ptr is not None:
            tl.store(dresidual_ptr + place, dz.to(dresidual_ptr.dtype.element_ty), mask=mask)
        if DROPOUT:
            dz = tl.where(keep, dz * scale, 0.0)
        dz = tl.where(mask, dz, 0.0)
        if OUTS > 2:
            dbias += tl.sum(dz, 0)[None, :]
        largest = words.largest_of_rows(largest, dz)
        tl.store(dx_ptr + place, (dz * inverse).to(dx_ptr.dtype.element_ty), mask=mask)
        if dxt_ptr is not None:
            if step == TILE // ROWS - 1:
                words.transpose_rows(dx_ptr, dxt_ptr, begin, rows, E, TILE, COLS, WHOLE)
    partial_ptr += tl.program_id(0) * OUTS * E
    tl.store(partial_ptr + col, dweight, mask=col < E)
    tl.store(partial_ptr + E + col, dnorm_bias, mask=col < E)
    if OUTS > 2:
        tl.store(partial_ptr + 2 * E + col, dbias, mask=col < E)
    words.raise_amax(amax_ptr, largest)


def taken(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take these dtypes, this width and this device; the reference takes the others."""
    return architecture(x.device) >= words.HAS_FP8 and taken_by_rows(x, *others)


def _tile_rows(rows: int, device: torch.device) -> int:
    """Rows of a program's transposed piece: 32, whole sectors, where they make three programs a multiprocessor, else 16."""
    return 32 if rows >= 32 * 3 * multiprocessors(device) else 16


def _block(cols: int) -> int:
    return max(256, next_power_of_2(cols))


def fp8_norm_fwd(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dropout_p: float,
    rng: Tensor | None,
    scale: Tensor,
    amax: Tensor,
    dtype: torch.dtype,
    transposed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not taken(x, bias, residual, weight, norm_bias):
        args = (x, bias, residual, weight, norm_bias, eps, dropout_p, rng, scale, amax, dtype, transposed)
        return reference.forward(*args)
    x, bias, residual, weight, norm_bias = contiguous(x, bias, residual, weight, norm_bias)
    rows, cols = x.shape
    block, tile_rows = _block(cols), _tile_rows(rows, x.device)
    tile = TABLES.find("forward", architecture(x.device), block=block)
    y = torch.empty_like(x, dtype=reference.stream_dtype(x, residual))
    mean = torch.empty(rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    y8 = torch.empty_like(x, dtype=dtype)
    y8t = y8.new_empty((cols, rows) if transposed else (0,))
    dropout = rng is not None and dropout_p > 0.0
    launch(
        fp8_norm_fwd_kernel,
        (cdiv(rows, tile_rows),),
        (
            *(x, bias, residual, weight, norm_bias, rng if dropout else None, scale, amax),
            *(y, mean, rstd, y8, y8t if transposed else None, rows, eps, *numbers_rows(dropout_p)),
        ),
        {
            "E": cols,
            "WHOLE": rows % 16 == 0,
            "TILE": tile_rows,
            "ROWS": tile["rows"],
            "BLOCK": block,
            "STAGES": tile["stages"],
        },
        warps=tile["warps"],
    )
    return y, mean, rstd, y8, y8t


def fp8_norm_rows(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dropout_p: float,
    rng: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    if not taken(x, bias, residual, weight, norm_bias):
        return reference.rows(x, bias, residual, weight, norm_bias, eps, dropout_p, rng, dtype)
    x, bias, residual, weight, norm_bias = contiguous(x, bias, residual, weight, norm_bias)
    rows, cols = x.shape
    tile = forward_tile(cols, rows, x.device)
    y = torch.empty_like(x, dtype=reference.stream_dtype(x, residual))
    y8 = torch.empty_like(x, dtype=dtype)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    dropout = rng is not None and dropout_p > 0.0
    launch(
        fp8_norm_rows_kernel,
        (cdiv(rows, tile.rows),),
        (
            *(x, bias, residual, weight, norm_bias, rng if dropout else None, y, y8, scale),
            *(rows, eps, *numbers_rows(dropout_p)),
        ),
        {"E": cols, "LARGEST": LARGEST[dtype], "ROWS": tile.rows, "BLOCK": tile.block},
        warps=tile.warps,
    )
    return y, y8, scale


def fp8_norm_bwd(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    rng: Tensor | None,
    scale: Tensor,
    amax: Tensor,
    dtype: torch.dtype,
    transposed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not taken(x, dy, bias, residual, weight):
        args = (dy, x, bias, residual, weight, mean, rstd, dropout_p, rng, scale, amax, dtype, transposed)
        return reference.backward(*args)
    dy, x, bias, residual, weight, mean, rstd = contiguous(dy, x, bias, residual, weight, mean, rstd)
    rows, cols = x.shape
    block, tile_rows = _block(cols), _tile_rows(rows, x.device)
    tile = TABLES.find("backward", architecture(x.device), block=block)
    dx8 = torch.empty_like(x, dtype=dtype)
    dx8t = dx8.new_empty((cols, rows) if transposed else (0,))
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    dweight, dnorm_bias = torch.empty_like(weight), torch.empty_like(weight)
    programs = min(cdiv(rows, tile_rows), tile["resident_warps"] // tile["warps"] * multiprocessors(x.device))
    outs = 2 if bias is None else 3
    partial = torch.empty((programs, outs, cols), dtype=torch.float32, device=x.device)
    dropout = rng is not None and dropout_p > 0.0
    launch(
        fp8_norm_bwd_kernel,
        (programs,),
        (
            *(dy, x, bias, residual, weight, mean, rstd, rng if dropout else None, scale, amax),
            *(dx8, dx8t if transposed else None, dresidual, partial, rows, *numbers_rows(dropout_p)),
        ),
        {
            "E": cols,
            "DROPOUT": dropout,
            "OUTS": outs,
            "WHOLE": rows % 16 == 0,
            "TILE": tile_rows,
            "ROWS": tile["rows"],
            "BLOCK": block,
            "STAGES": tile["stages"],
        },
        warps=tile["warps"],
    )
    sums.add_up(partial, dweight, dnorm_bias, None if bias is None else dbias)
    return dx8, dx8t, dresidual, dbias, dweight, dnorm_bias
