"""A layer's products in training on a GPU: torch's library and a pass, or a kernel of ours that does both where one was chosen.

Layers repeat the launches of a kernel of ours (`launches`), so what varies from layer to layer, weights among it, are the very
tensors that its launcher hands to `triton.launch`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import _library
from bertfast.nn.launches import Launches, run
from bertfast.ops.linear import torch_products


def launched(
    launches: Launches | None, name: str, args: tuple[Any, ...], varying: tuple[int, ...], **options: Any
) -> tuple[Tensor, ...]:
    """An op's results; see `Launches.run`. launches: None where a half is called alone."""
    return run(name, args) if launches is None else launches.run(name, args, varying, **options)


def linear(launches: Launches | None, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, slot: int) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]: [T, N].

    slot: tells the products of a layer apart whose x are of one shape.
    """
    if _library.fused("linear_fwd") is None:
        return F.linear(x, weight, bias)
    return launched(launches, "linear_fwd", (x, weight, bias), (0, 1, 2), slot=slot)[0]


def input_gradient(launches: Launches | None, dy: Tensor, weight: Tensor, *, slot: int) -> Tensor:
    """dy [T, N] times weight [N, K]: [T, K], the gradient of what a product by `weight` read."""
    if _library.fused("linear_fwd") is None:
        return torch.mm(dy, weight)
    return launched(launches, "linear_fwd", (dy, weight.t(), None), (0, 1, 2), slot=slot)[0]


def linear_gelu(
    launches: Launches | None, x: Tensor, weight: Tensor, bias: Tensor, tanh: bool
) -> tuple[Tensor, Tensor]:
    """gelu(x W^T + b) [T, N], and the product before its bias, which backward reads."""
    if _library.fused("linear_gelu_fwd") is not None:
        hidden, pre = launched(launches, "linear_gelu_fwd", (x, weight, bias, tanh), (0, 1, 2))
        return hidden, pre
    pre = F.linear(x, weight)
    (hidden,) = launched(launches, "bias_gelu_fwd", (pre, bias, tanh), (0, 1))
    return hidden, pre


def linear_dgelu(
    launches: Launches | None, dy: Tensor, weight: Tensor, pre: Tensor, bias: Tensor, tanh: bool
) -> tuple[Tensor, Tensor]:
    """From the gradient dy [T, E] behind a second product by `weight` [E, N] to those of `pre` [T, N] and `bias` [N]."""
    if _library.fused("linear_dgelu") is not None:
        dpre, dbias = launched(launches, "linear_dgelu", (dy, weight, pre, bias, tanh), (0, 1, 2, 3), scratch=1)
    else:
        args = torch.mm(dy, weight), pre, bias, tanh
        dpre, dbias = launched(launches, "bias_gelu_bwd", args, (0, 1, 2), scratch=1)
    return dpre, dbias


def add_product(launches: Launches | None, total: Tensor, dy: Tensor, weight: Tensor, *, slot: int) -> Tensor:
    """total [T, K] + dy [T, N] weight [N, K], in total's memory."""
    if _library.fused("linear_add_dx") is not None:
        launched(launches, "linear_add_dx", (dy, weight, total), (0, 1, 2), slot=slot)
    else:
        torch_products.linear_add_dx(dy, weight, total)
    return total


def weight_gradient(launches: Launches | None, dy: Tensor, x: Tensor, dtype: torch.dtype, *, slot: int) -> Tensor:
    """dy [T, N] and x [T, K] to [N, K] in the weight's dtype."""
    if _library.fused("linear_dweight") is not None:
        args = dy, x, dtype, False
        return launched(launches, "linear_dweight", args, (0, 1), slot=slot, scratch=1)[0]
    return torch_products.linear_dweight(dy, x, dtype, False)[0]


def weight_and_bias_gradients(
    launches: Launches | None, dy: Tensor, x: Tensor, weight: Tensor, bias: torch.dtype, *, slot: int
) -> tuple[Tensor, Tensor]:
    """dy [T, N] and x [T, K] to the gradients [N, K] of `weight`'s dtype and [N] of `bias`, the dtype of the bias."""
    if _library.fused("linear_dweight") is not None and bias is weight.dtype:
        args = dy, x, weight.dtype, True
        dweight, dbias = launched(launches, "linear_dweight", args, (0, 1), slot=slot, scratch=2)
        return dweight, dbias
    dweight = torch_products.linear_dweight(dy, x, weight.dtype, False)[0]
    return dweight, column_sums(launches, dy, x, weight).to(bias)


def column_sums(launches: Launches | None, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The sums [N] of the columns of dy [T, N]; x and weight as in the product."""
    *_, sums = launched(launches, "linear_bwd", (dy, x, weight, True, False, False), (0,), scratch=1)
    return sums
