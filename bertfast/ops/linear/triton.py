"""y = x W^T + b on a GPU: the products are cuBLAS's, with the bias in its epilogue; the bias gradient is a Triton column sum.

torch's `dy.sum(0)` reads [T, N] with a general reduction; the column sum reads it once in 16-byte pieces and adds in float32
in a fixed order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.triton.sums import column_sum


def weight_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor]:
    """(dx, dweight) of x W^T; one that is not needed is empty."""
    dx = dy @ weight if needs_dx else dy.new_empty(0)
    return dx, dy.t() @ x if needs_dweight else dy.new_empty(0)


def linear_fwd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def linear_bwd(
    dy: Tensor, x: Tensor, weight: Tensor, has_bias: bool, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if not has_bias:
        dbias = dy.new_empty(0)
    elif dy.dtype == torch.float64:
        dbias = dy.sum(0)
    else:
        dbias = column_sum(dy.contiguous())
    return *weight_gradients(dy, x, weight, needs_dx, needs_dweight), dbias
