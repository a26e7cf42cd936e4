"""Eager meaning of fp8_gelu: `bias_gelu` of linear_gelu in float32 (float64 for float64), then the cast; no rounding in between.

v = gelu(pre + bias),   stored = round(clamp(v / scale)) in FP8,   amax = max(amax, |v|)
"""

import torch
from torch import Tensor

from bertfast.ops import fp8
from bertfast.ops.dropout_add_norm.reference import compute_dtype
from bertfast.ops.linear_gelu import reference as linear_gelu


def forward(
    pre: Tensor, bias: Tensor, tanh: bool, scale: Tensor, amax: Tensor, dtype: torch.dtype, transposed: bool
) -> tuple[Tensor, Tensor]:
    y = linear_gelu.bias_gelu_forward(pre.to(compute_dtype(pre)), bias, tanh)
    return fp8.cast(y, scale, amax, dtype, transposed)


def rows(pre: Tensor, bias: Tensor, tanh: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return fp8.cast_rows(linear_gelu.bias_gelu_forward(pre.to(compute_dtype(pre)), bias, tanh), dtype)


def backward(
    dy: Tensor,
    pre: Tensor,
    bias: Tensor,
    tanh: bool,
    scale: Tensor,
    amax: Tensor,
    dtype: torch.dtype,
    transposed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dpre, dbias = linear_gelu.bias_gelu_backward(dy, pre.to(compute_dtype(pre)), bias, tanh)
    return *fp8.cast(dpre, scale, amax, dtype, transposed), dbias
