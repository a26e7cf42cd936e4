"""Candidate for linear_gelu on sm_90: bias and GELU, or GELU's gradient, in the epilogue of a product of our own (`gluon_product`).

The erf form is `cheap_erf`'s. What the kernel does not take is the owner's: float32 and float64, rows that are not aligned to
16 bytes, results of few tiles, and other architectures.
"""

from pathlib import Path

import torch
from torch import Tensor

from bertfast.ops.linear import gluon_launch
from bertfast.ops.linear.gluon_tiles import BLOCK_M, DGELU, GELU
from bertfast.ops.linear_gelu import torch_products
from bertfast.ops.linear_gelu import triton as owner
from bertfast.triton import launch, sums, tables

TABLES = tables.load("linear_gelu.gluon", Path(__file__).with_suffix(".json"))


def linear_gelu_fwd(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    tile = gluon_launch.tile_for(TABLES, "gelu", x, weight, weight.shape[0])
    if tile is None:
        return owner.linear_gelu_fwd(x, weight, bias, tanh)
    y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    pre = torch.empty_like(y)
    gluon_launch.product(GELU, tile, x, weight, y, pre=pre, bias=bias, tanh=tanh)
    return y, pre


def linear_gelu_infer(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    tile = gluon_launch.tile_for(TABLES, "gelu", x, weight, weight.shape[0])
    if tile is None:
        return torch_products.linear_gelu_infer(x, weight, bias, tanh)
    y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    gluon_launch.product(GELU, tile, x, weight, y, bias=bias, tanh=tanh)
    return y


def linear_dgelu(dy: Tensor, weight: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    tile = gluon_launch.tile_for(TABLES, "dgelu", dy, weight, pre.shape[1])
    if tile is None or pre.dtype is not dy.dtype or not (pre.is_contiguous() and gluon_launch.is_aligned(pre)):
        return torch_products.linear_dgelu(dy, weight, pre, bias, tanh)
    dpre = torch.empty_like(pre)
    partial = pre.new_empty(launch.cdiv(pre.shape[0], BLOCK_M), pre.shape[1], dtype=torch.float32)
    gluon_launch.product(DGELU, tile, dy, weight, dpre, b_first=False, pre=pre, bias=bias, sums=partial, tanh=tanh)
    return dpre, sums.sum_partials(partial, bias.dtype)
