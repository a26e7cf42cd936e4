"""Eager meaning of linear_gelu and of its elementwise half.

    pre = x W^T,   y = gelu(pre + b),   gelu(v) = v (1 + erf(v / sqrt 2)) / 2   or its tanh form

`pre` is what the product wrote; backward starts from it and multiplies nothing again but the two gradients.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import _library
from bertfast.ops import products
from bertfast.ops.dropout_add_norm.reference import compute_dtype


def bias_gelu_forward(pre: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    dtype = compute_dtype(pre)
    return F.gelu(pre.to(dtype) + bias.to(dtype), approximate="tanh" if tanh else "none").to(pre.dtype)


def _gelu_gradient(v: Tensor, tanh: bool) -> Tensor:
    if tanh:
        inner = math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)
        t = torch.tanh(inner)
        return 0.5 * (1 + t) + 0.5 * v * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * v * v)
    return 0.5 * (1 + torch.erf(v / math.sqrt(2))) + v * torch.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)


def bias_gelu_backward(dy: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(pre)
    dpre = dy.to(dtype) * _gelu_gradient(pre.to(dtype) + bias.to(dtype), tanh)
    return dpre.to(pre.dtype), dpre.sum(0).to(bias.dtype)


def forward(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    pre = products.linear(x, weight)
    return _library.op("bias_gelu_fwd")(pre, bias, tanh), pre


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, tanh: bool, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dpre, dbias = _library.op("bias_gelu_bwd")(dy, pre, bias, tanh)
    absent = dy.new_empty(0)
    dx = products.matmul(dpre, weight) if needs_dx else absent.clone()
    dweight = products.matmul(dpre.t(), x) if needs_dweight else absent.clone()
    return dx, dweight, dbias


def infer(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """`forward` without what backward reads."""
    return forward(x, weight, bias, tanh)[0]


def dgelu(dy: Tensor, weight: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Back through the product behind GELU, and GELU: dpre = (dy W) gelu'(pre + b) [T, N] and its column sums [N]."""
    return _library.op("bias_gelu_bwd")(products.matmul(dy, weight), pre, bias, tanh)
