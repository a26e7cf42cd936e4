"""Eager meaning of fp8_linear: y = (a scale_a) (b scale_b)^T + bias, multiplied and summed in float32."""

import torch
from torch import Tensor


def forward(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast: bool,
) -> Tensor:
    """a [M, K] and b [N, K] in FP8, scales [] or [M, 1] and [] or [N, 1], bias [N]: [M, N] in `dtype`.

    fast: whether tensor cores may sum in fewer bits; here all the same.
    """
    y = (a.float() @ b.float().t()) * scale_a * (scale_b.t() if scale_b.dim() else scale_b)
    return (y if bias is None else y + bias.float()).to(dtype)


def add(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, total: Tensor) -> None:
    """total [M, N], float32 or a 16-bit type, += (a scale_a) (b scale_b)^T."""
    total.add_(forward(a, b, scale_a, scale_b, None, torch.float32, False))
