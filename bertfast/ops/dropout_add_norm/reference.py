"""Eager meaning of dropout_add_norm.

    z = dropout(x + bias) + residual,   y = (z - mean(z)) * rstd(z) * weight + norm_bias

Arithmetic in float32 (float64 for float64). Nothing of size [rows, cols] is saved beyond the inputs: backward rebuilds z.
"""

import torch
from torch import Tensor

from bertfast.ops import rng as dropout_bits


def compute_dtype(t: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def dropout_scale(rng: Tensor | None, rows: int, cols: int, p: float, dtype: torch.dtype) -> Tensor | float:
    """Multipliers of a [rows, cols] matrix: 1 / keep rate where kept, 0 where dropped; 1 without dropout."""
    if rng is None or p == 0.0:
        return 1.0
    return dropout_bits.keep_rows(rng, rows, cols, p).to(dtype) / dropout_bits.keep_rate_rows(p)


def normalise(z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of rows: y, mean [rows], rstd [rows]."""
    mean = z.mean(-1)
    centred = z - mean[:, None]
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    y = centred * rstd[:, None] * weight.to(z.dtype) + bias.to(z.dtype)
    return y, mean, rstd


def normalise_backward(
    dy: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, weight and bias of the layer norm."""
    xhat = (z - mean[:, None]) * rstd[:, None]
    g = dy * weight.to(z.dtype)
    dz = rstd[:, None] * (g - g.mean(-1, keepdim=True) - xhat * (g * xhat).mean(-1, keepdim=True))
    return dz, (dy * xhat).sum(0), dy.sum(0)


def _sum(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, p: float, rng: Tensor | None
) -> tuple[Tensor, Tensor | float]:
    dtype = compute_dtype(x)
    z = x.to(dtype)
    if bias is not None:
        z = z + bias.to(dtype)
    scale = dropout_scale(rng, x.shape[0], x.shape[1], p, dtype)
    z = z * scale
    return (z if residual is None else z + residual.to(dtype)), scale


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
    z, _ = _sum(x, bias, residual, dropout_p, rng)
    y, mean, rstd = normalise(z, weight, norm_bias, eps)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return y.to(dtype), mean, rstd


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
    z, scale = _sum(x, bias, residual, dropout_p, rng)
    dz, dweight, dnorm_bias = normalise_backward(dy.to(z.dtype), z, mean, rstd, weight)
    dx = dz * scale
    absent = x.new_empty(0)
    dbias = absent if bias is None else dx.sum(0).to(bias.dtype)
    dresidual = absent if residual is None else dz.to(residual.dtype)
    return dx.to(x.dtype), dresidual, dbias, dweight.to(weight.dtype), dnorm_bias.to(weight.dtype)
