"""fp8_norm on GPUs: dropout_add_norm's passes, whose results leave them in FP8 as well, row by row and transposed.

Forward: a warp takes a row, in pieces of its columns (all lanes work at 768 columns, and a row's sums need no shared memory), and a
program of 8 warps 32 rows, four each, so that the transposed copy is written in whole sectors of 32 bytes. Backward keeps
dropout_add_norm's tile, in which warps lie along a row, since a warp a row would need 96 registers for the parameters' sums at 1,024 columns;
a program takes 16 rows before it writes their transposed copy, in halves of a sector. The two halves come from programs that
run beside one another and meet in L2; of its requests that is 11 instead of 10 for each 32 elements.
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
from bertfast.triton.rows import contiguous, load_columns, normalise_backward
from bertfast.triton.rows import taken as taken_by_rows

TABLES = tables.load("fp8_norm", Path(__file__).with_name("launch.json"))
HAS_FP8 = 89  # the least architecture with instructions for e4m3


@triton.jit
def _keep(seed, offset, row, piece, threshold, ROWS: tl.constexpr, PIECE: tl.constexpr):
    """Which elements of a piece of rows dropout keeps: the bits of dropout_add_norm."""
    group = piece * (PIECE // 8) + tl.arange(0, PIECE // 8)[None, :]  # [1, PIECE / 8]
    return random.rows_keep(seed, offset, row, group, threshold, ROWS, PIECE)


@triton.jit
def _normalised(
    inputs, row, there, eps, threshold, scale,
    E: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """y of some rows, a [ROWS, PIECE] float32 for each piece of their columns, mean and rstd [ROWS, 1].

    inputs: pointers to x, bias, residual, weight, norm_bias and rng; row: [ROWS, 1] int64; there: [ROWS, 1], whether it is one.
    """
    x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr = inputs
    if DROPOUT:
        seed, offset = random.load_state(rng_ptr)
    loaded = ()  # a row's pieces are all asked for before the first is worked on
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
        x = tl.load(x_ptr + row * E + col, mask=there & (col < E), other=0.0)  # [ROWS, PIECE]
        residual = x
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + row * E + col, mask=there & (col < E), other=0.0)  # [ROWS, PIECE]
        loaded = loaded + ((x, residual),)
    total = tl.zeros((ROWS, PIECE), tl.float32)
    sums_in = ()
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
        z = loaded[piece][0].to(tl.float32)
        if bias_ptr is not None:
            z += load_columns(bias_ptr, col, E)
        if DROPOUT:
            z = tl.where(_keep(seed, offset, row, piece, threshold, ROWS, PIECE), z * scale, 0.0)
        if residual_ptr is not None:
            z += loaded[piece][1].to(tl.float32)
        total += z  # 0 past the last column
        sums_in = sums_in + (z,)
    mean = tl.sum(total, 1)[:, None] / E
    total = tl.zeros((ROWS, PIECE), tl.float32)
    centred = ()
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
        difference = tl.where(col < E, sums_in[piece] - mean, 0.0)
        total += difference * difference
        centred = centred + (difference,)
    rstd = 1.0 / tl.sqrt(tl.sum(total, 1)[:, None] / E + eps)
    results = ()
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
        y = centred[piece] * rstd * load_columns(weight_ptr, col, E) + load_columns(norm_bias_ptr, col, E)
        results = results + (y,)
    return results, mean, rstd


@triton.jit(do_not_specialize=["rows", "threshold"])
def fp8_norm_fwd_kernel(
    x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr, scale_ptr, amax_ptr,
    y_ptr, mean_ptr, rstd_ptr, y8_ptr, y8t_ptr, rows, eps, threshold, scale,
    E: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr,
    QUADS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)[:, None]  # [QUADS, 1]
    inverse = words.inverse_of(scale_ptr)
    largest = tl.zeros((QUADS, PIECE), tl.float32)
    packed = ()
    for _ in tl.static_range(PIECES):
        packed = packed + (tl.zeros((QUADS, PIECE), tl.uint32),)
    for step in tl.range(0, 4, num_stages=STAGES):
        row = quad.to(tl.int64) * 4 + step  # [QUADS, 1]
        there = words.inside(quad, step, rows, 4, WHOLE)
        inputs = (x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr)
        results, mean, rstd = _normalised(inputs, row, there, eps, threshold, scale, E, DROPOUT, QUADS, PIECE, PIECES)
        tl.store(mean_ptr + row, mean, mask=there)
        tl.store(rstd_ptr + row, rstd, mask=there)
        shifted = ()
        for piece in tl.static_range(PIECES):
            col = piece * PIECE + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
            mask = there & (col < E)
            y = results[piece]
            largest = words.larger(largest, tl.where(there, y, 0.0))  # past the last column it is 0
            stored = (y * inverse).to(y8_ptr.dtype.element_ty)
            tl.store(y_ptr + row * E + col, y.to(y_ptr.dtype.element_ty), mask=mask)
            tl.store(y8_ptr + row * E + col, stored, mask=mask)
            if y8t_ptr is not None:
                if not WHOLE:
                    words.store_bytes(y8t_ptr, stored, row, col, rows, mask)
            shifted = shifted + (words.push(packed[piece], stored),)
        packed = shifted
    if y8t_ptr is not None:
        if WHOLE:
            for piece in tl.static_range(PIECES):
                col = piece * PIECE + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
                words.store_words(y8t_ptr, packed[piece], quad, col, rows, E)
    words.raise_amax(amax_ptr, largest)


@triton.jit(do_not_specialize=["rows", "threshold"])
def fp8_norm_rows_kernel(
    x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr, y_ptr, y8_ptr, scale_ptr,
    rows, eps, threshold, scale,
    E: tl.constexpr, DROPOUT: tl.constexpr, LARGEST: tl.constexpr,
    ROWS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    there = row < rows
    inputs = (x_ptr, bias_ptr, residual_ptr, weight_ptr, norm_bias_ptr, rng_ptr)
    results, _, _ = _normalised(inputs, row, there, eps, threshold, scale, E, DROPOUT, ROWS, PIECE, PIECES)
    largest = tl.zeros((ROWS, PIECE), tl.float32)
    for piece in tl.static_range(PIECES):
        largest = words.larger(largest, results[piece])
    row_scale = words.row_scale(words.bits_of_largest(largest, 1), LARGEST)[:, None]  # [ROWS, 1]
    inverse = tl.div_rn(1.0, row_scale)
    for piece in tl.static_range(PIECES):
        col = piece * PIECE + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
        mask = there & (col < E)
        tl.store(y_ptr + row * E + col, results[piece].to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(y8_ptr + row * E + col, (results[piece] * inverse).to(y8_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row, row_scale, mask=there)


@triton.jit(do_not_specialize=["rows", "threshold"])
def fp8_norm_bwd_kernel(
    dy_ptr, x_ptr, bias_ptr, residual_ptr, weight_ptr, mean_ptr, rstd_ptr, rng_ptr, scale_ptr, amax_ptr,
    dx_ptr, dxt_ptr, dresidual_ptr, partial_ptr, rows, threshold, scale,
    E: tl.constexpr, DROPOUT: tl.constexpr, OUTS: tl.constexpr, WHOLE: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    weight = load_columns(weight_ptr, col, E)
    inverse = words.inverse_of(scale_ptr)
    dweight = tl.zeros((1, BLOCK), tl.float32)
    dnorm_bias = tl.zeros((1, BLOCK), tl.float32)
    dbias = tl.zeros((1, BLOCK), tl.float32)
    largest = tl.zeros((GROUPS, BLOCK), tl.float32)
    word = tl.zeros((GROUPS, BLOCK), tl.uint64)
    tiles = tl.cdiv(tl.cdiv(rows, 8 * GROUPS) - tl.program_id(0), tl.num_programs(0))  # of this program
    for turn in tl.range(0, tiles * 8, num_stages=STAGES):
        step = turn % 8
        tile = tl.program_id(0) + turn // 8 * tl.num_programs(0)
        group = tile * GROUPS + tl.arange(0, GROUPS)[:, None]  # [GROUPS, 1]
        row = group.to(tl.int64) * 8 + step
        there = words.inside(group, step, rows, 8, WHOLE)
        mask = there & (col < E)
        place = row * E + col
        z = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [GROUPS, BLOCK]
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [GROUPS, BLOCK]
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)  # [GROUPS, BLOCK]
        mean = tl.load(mean_ptr + row, mask=there, other=0.0)  # [GROUPS, 1]
        rstd = tl.load(rstd_ptr + row, mask=there, other=0.0)  # 0: rows past the end add nothing to the sums
        if bias_ptr is not None:
            z += load_columns(bias_ptr, col, E)
        if DROPOUT:
            seed, offset = random.load_state(rng_ptr)
            keep = random.rows_keep(seed, offset, row, tl.arange(0, BLOCK // 8)[None, :], threshold, GROUPS, BLOCK)
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
        largest = words.larger(largest, dz)
        stored = (dz * inverse).to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + place, stored, mask=mask)
        if dxt_ptr is not None:
            if WHOLE:
                word = words.push(word, stored)
                if step == 7:
                    words.store_words(dxt_ptr, word, group, col, rows, E)
            else:
                words.store_bytes(dxt_ptr, stored, row, col, rows, mask)
    partial_ptr += tl.program_id(0) * OUTS * E
    tl.store(partial_ptr + col, dweight, mask=col < E)
    tl.store(partial_ptr + E + col, dnorm_bias, mask=col < E)
    if OUTS > 2:
        tl.store(partial_ptr + 2 * E + col, dbias, mask=col < E)
    words.raise_amax(amax_ptr, largest)


def taken(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take these dtypes, this width and this device; the reference takes the others."""
    return architecture(x.device) >= HAS_FP8 and taken_by_rows(x, *others)


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
    tile = TABLES.find("forward", architecture(x.device), block=_block(cols))
    y = torch.empty_like(x, dtype=reference.stream_dtype(x, residual))
    mean = torch.empty(rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    y8 = torch.empty_like(x, dtype=dtype)
    y8t = y8.new_empty((cols, rows) if transposed else (0,))
    dropout = rng is not None and dropout_p > 0.0
    pieces = {"PIECE": tile["piece"], "PIECES": cdiv(cols, tile["piece"])}
    launch(
        fp8_norm_fwd_kernel,
        (cdiv(rows, 4 * tile["quads"]),),
        (
            *(x, bias, residual, weight, norm_bias, rng if dropout else None, scale, amax),
            *(y, mean, rstd, y8, y8t if transposed else None, rows, eps, *numbers_rows(dropout_p)),
        ),
        {
            **{"E": cols, "DROPOUT": dropout, "WHOLE": rows % 16 == 0},
            **{"QUADS": tile["quads"], **pieces, "STAGES": tile["stages"]},
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
    size = "few" if rows <= 4 * multiprocessors(x.device) else "many"
    tile = TABLES.find("rows", architecture(x.device), block=_block(cols), size=size)
    y = torch.empty_like(x, dtype=reference.stream_dtype(x, residual))
    y8 = torch.empty_like(x, dtype=dtype)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    dropout = rng is not None and dropout_p > 0.0
    pieces = {"PIECE": tile["piece"], "PIECES": cdiv(cols, tile["piece"])}
    launch(
        fp8_norm_rows_kernel,
        (cdiv(rows, tile["rows"]),),
        (
            *(x, bias, residual, weight, norm_bias, rng if dropout else None, y, y8, scale),
            *(rows, eps, *numbers_rows(dropout_p)),
        ),
        {"E": cols, "DROPOUT": dropout, "LARGEST": LARGEST[dtype], "ROWS": tile["rows"], **pieces},
        warps=tile["warps"],
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
    block = _block(cols)
    tile = TABLES.find("backward", architecture(x.device), block=block)
    dx8 = torch.empty_like(x, dtype=dtype)
    dx8t = dx8.new_empty((cols, rows) if transposed else (0,))
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    dweight, dnorm_bias = torch.empty_like(weight), torch.empty_like(weight)
    programs = min(cdiv(rows, 8 * tile["groups"]), tile["resident_warps"] // tile["warps"] * multiprocessors(x.device))
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
            **{"E": cols, "DROPOUT": dropout, "OUTS": outs, "WHOLE": rows % 16 == 0},
            **{"GROUPS": tile["groups"], "BLOCK": block, "STAGES": tile["stages"]},
        },
        warps=tile["warps"],
    )
    sums.add_up(partial, dweight, dnorm_bias, None if bias is None else dbias)
    return dx8, dx8t, dresidual, dbias, dweight, dnorm_bias
