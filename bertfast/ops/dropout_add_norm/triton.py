"""dropout_add_norm on GPUs: z = dropout(x + bias) + residual, y = (z - mean) * rstd * weight + norm_bias, a row in registers.

Forward: a program takes a tile of whole rows. Backward: a program walks over tiles, rebuilds z from x and residual (saving z would
cost the same bytes), writes both gradients and keeps the parameters' gradients in registers; `sums` adds those up.
Saved: mean, rstd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.dropout_add_norm import reference
from bertfast.ops.rng import numbers_rows
from bertfast.triton import random, sums
from bertfast.triton.launch import cdiv, launch
from bertfast.triton.rows import (
    backward_programs,
    backward_tile,
    contiguous,
    drop,
    forward_tile,
    load_columns,
    normalise,
    normalise_backward,
    taken,
)


@triton.jit(do_not_specialize=["rows", "threshold"])
def dropout_add_norm_fwd_kernel(
    x_ptr,
    bias_ptr,
    residual_ptr,
    weight_ptr,
    norm_bias_ptr,
    rng_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    rows,
    eps,
    threshold,
    scale,
    E: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (col < E)
    place = row * E + col
    z = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        z += load_columns(bias_ptr, col, E)
    if DROPOUT:
        z = drop(z, rng_ptr, row, threshold, scale, ROWS, BLOCK)
    if residual_ptr is not None:
        z += residual
    centred, mean, rstd = normalise(z, mask, eps, E)
    y = centred * rstd * load_columns(weight_ptr, col, E) + load_columns(norm_bias_ptr, col, E)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "threshold"])
def dropout_add_norm_bwd_kernel(
    dy_ptr,
    x_ptr,
    bias_ptr,
    residual_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    rng_ptr,
    dx_ptr,
    dresidual_ptr,
    partial_ptr,
    rows,
    threshold,
    scale,
    E: tl.constexpr,
    DROPOUT: tl.constexpr,
    OUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    col = tl.arange(0, BLOCK)[None, :]
    weight = load_columns(weight_ptr, col, E)
    dweight = tl.zeros((1, BLOCK), tl.float32)
    dnorm_bias = tl.zeros((1, BLOCK), tl.float32)
    dbias = tl.zeros((1, BLOCK), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = tl.arange(0, ROWS)[:, None].to(tl.int64) + start
        mask = (row < rows) & (col < E)
        place = row * E + col
        z = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)  # 0: rows past the end add nothing to the sums
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
        tl.store(dx_ptr + place, dz.to(dx_ptr.dtype.element_ty), mask=mask)
        if OUTS > 2:
            dbias += tl.sum(dz, 0)[None, :]
    partial_ptr += tl.program_id(0) * OUTS * E
    tl.store(partial_ptr + col, dweight, mask=col < E)
    tl.store(partial_ptr + E + col, dnorm_bias, mask=col < E)
    if OUTS > 2:
        tl.store(partial_ptr + 2 * E + col, dbias, mask=col < E)


def forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if not taken(x, bias, residual, weight, norm_bias):
        return reference.forward(x, bias, residual, weight, norm_bias, eps, dropout_p, rng)
    x, bias, residual, weight, norm_bias = contiguous(x, bias, residual, weight, norm_bias)
    rows, cols = x.shape
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    y = torch.empty((rows, cols), dtype=dtype, device=x.device)
    mean = torch.empty(rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    tile = forward_tile(cols, rows, x.device)
    dropout = rng is not None and dropout_p > 0.0
    launch(
        dropout_add_norm_fwd_kernel,
        (cdiv(rows, tile.rows),),
        (
            *(x, bias, residual, weight, norm_bias, rng if dropout else None, y, mean, rstd),
            *(rows, eps, *numbers_rows(dropout_p)),
        ),
        {"E": cols, "DROPOUT": dropout, "ROWS": tile.rows, "BLOCK": tile.block},
        warps=tile.warps,
    )
    return y, mean, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not taken(x, dy, bias, residual, weight):
        return reference.backward(dy, x, bias, residual, weight, mean, rstd, dropout_p, rng)
    dy, x, bias, residual, weight, mean, rstd = contiguous(dy, x, bias, residual, weight, mean, rstd)
    rows, cols = x.shape
    dx = torch.empty_like(x)
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    dweight, dnorm_bias = torch.empty_like(weight), torch.empty_like(weight)
    tile = backward_tile(cols, x.device)
    programs = backward_programs(rows, tile, x.device)
    outs = 2 if bias is None else 3
    partial = torch.empty((programs, outs, cols), dtype=torch.float32, device=x.device)
    dropout = rng is not None and dropout_p > 0.0
    launch(
        dropout_add_norm_bwd_kernel,
        (programs,),
        (
            *(dy, x, bias, residual, weight, mean, rstd, rng if dropout else None, dx, dresidual, partial),
            *(rows, *numbers_rows(dropout_p)),
        ),
        {"E": cols, "DROPOUT": dropout, "OUTS": outs, "ROWS": tile.rows, "BLOCK": tile.block},
        warps=tile.warps,
    )
    sums.add_up(partial, dweight, dnorm_bias, None if bias is None else dbias)
    return dx, dresidual, dbias, dweight, dnorm_bias
