"""Eager meaning of fp8_norm: dropout_add_norm in float32 (float64 for float64), whose results are rounded to the stream's dtype
and, each from the same float32 numbers, to FP8.
"""

import torch
from torch import Tensor

from bertfast.ops import fp8
from bertfast.ops.dropout_add_norm import reference as dropout_add_norm
from bertfast.ops.dropout_add_norm.reference import compute_dtype


def stream_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The dtype of y: x's and the residual's, promoted."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def _unrounded(x: Tensor, bias: Tensor | None, residual: Tensor | None, *rest) -> tuple[Tensor, Tensor, Tensor]:
    """dropout_add_norm's forward with y as it was computed."""
    dtype = compute_dtype(x)
    wide = None if residual is None else residual.to(dtype)
    return dropout_add_norm.forward(x.to(dtype), bias, wide, *rest)


def forward(
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
    y, mean, rstd = _unrounded(x, bias, residual, weight, norm_bias, eps, dropout_p, rng)
    y8, y8t = fp8.cast(y, scale, amax, dtype, transposed)
    return y.to(stream_dtype(x, residual)), mean, rstd, y8, y8t


def rows(
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
    y, _, _ = _unrounded(x, bias, residual, weight, norm_bias, eps, dropout_p, rng)
    y8, scale = fp8.cast_rows(y, dtype)
    return y.to(stream_dtype(x, residual)), y8, scale


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
    scale: Tensor,
    amax: Tensor,
    dtype: torch.dtype,
    transposed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = x.to(compute_dtype(x))
    dx, dresidual, dbias, dweight, dnorm_bias = dropout_add_norm.backward(
        dy, wide, bias, residual, weight, mean, rstd, dropout_p, rng
    )
    dresidual = x.new_empty(0) if residual is None else dresidual
    dbias = x.new_empty(0) if bias is None else dbias
    return *fp8.cast(dx, scale, amax, dtype, transposed), dresidual, dbias, dweight, dnorm_bias
