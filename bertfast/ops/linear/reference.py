"""y = x W^T + b. The product belongs to oneDNN, MKL or cuBLAS; this op exists so that the faster of them is asked."""

import torch
from torch import Tensor

from bertfast.ops import products


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return products.linear(x, weight, bias)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, has_bias: bool, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    absent = dy.new_empty(0)
    dx = products.matmul(dy, weight) if needs_dx else absent.clone()
    dweight = products.matmul(dy.t(), x) if needs_dweight else absent.clone()
    dbias = dy.sum(0) if has_bias else absent.clone()
    return dx, dweight, dbias


def add_dx(dy: Tensor, weight: Tensor, total: Tensor) -> None:
    """total [T, K] += dy [T, N] weight [N, K]."""
    total.add_(products.matmul(dy, weight))


def dweight(dy: Tensor, x: Tensor, dtype: torch.dtype, sums: bool) -> tuple[Tensor, Tensor]:
    """dy^T x [N, K], and the column sums of dy [N], in `dtype`."""
    wide = torch.promote_types(dy.dtype, dtype)
    gradient = products.matmul(dy.to(wide).t(), x.to(wide)).to(dtype)
    return gradient, dy.sum(0, dtype=wide).to(dtype) if sums else gradient.new_empty(0)
