"""Candidate for linear on sm_90: products by a kernel of our own (`gluon_product`), with what stands beside them in its epilogue.

`linear_add_dx` adds to the residual's gradient in the accumulators; `linear_dweight` sums the columns of dy from the blocks that
the product reads anyway, and gives both gradients in the weight's dtype. What the kernel does not take is the owner's: float32 and
float64, rows that are not aligned to 16 bytes, results of few tiles, and other architectures.
"""

from pathlib import Path

import torch
from torch import Tensor

from bertfast.ops.linear import gluon_launch, torch_products
from bertfast.ops.linear import triton as owner
from bertfast.ops.linear.gluon_tiles import ADD, PLAIN
from bertfast.triton import tables

TABLES = tables.load("linear.gluon", Path(__file__).with_suffix(".json"))
# Fewer tokens than this leave a weight's gradient little to multiply for each sum of its parts. Predicted, never measured.
LEAST_TOKENS = 1024


def linear_fwd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tile = gluon_launch.tile_for(TABLES, "plain", x, weight, weight.shape[0])
    if tile is None:
        return owner.linear_fwd(x, weight, bias)
    y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    gluon_launch.product(PLAIN, tile, x, weight, y, bias=bias)
    return y


def linear_add_dx(dy: Tensor, weight: Tensor, total: Tensor) -> None:
    tile = None
    if total.dtype in (dy.dtype, torch.float32) and total.is_contiguous() and gluon_launch.is_aligned(total):
        tile = gluon_launch.tile_for(TABLES, "add", dy, weight, total.shape[1], bits=8 * total.element_size())
    if tile is None:
        torch_products.linear_add_dx(dy, weight, total)
    else:
        gluon_launch.product(ADD, tile, dy, weight, total, b_first=False)


def linear_dweight(dy: Tensor, x: Tensor, dtype: torch.dtype, sums: bool) -> tuple[Tensor, Tensor]:
    if not (
        dtype in (dy.dtype, torch.float32)
        and gluon_launch.takes(dy, x)
        and dy.is_contiguous()
        and x.is_contiguous()
        and dy.shape[0] >= LEAST_TOKENS
    ):
        return torch_products.linear_dweight(dy, x, dtype, sums)
    tile = TABLES.find("weight", gluon_launch.ARCH)
    dweight = torch.empty(dy.shape[1], x.shape[1], dtype=dtype, device=dy.device)
    dbias = torch.empty(dy.shape[1] if sums else 0, dtype=dtype, device=dy.device)
    gluon_launch.weight_product(tile, dy, x, dweight, dbias if sums else None)
    return dweight, dbias
