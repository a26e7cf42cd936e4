"""Candidate for fp8_linear on sm_90: the product kernel of `linear.gluon` over FP8 blocks, with bias or addition in its epilogue.

Tensor cores of sm_90 sum FP8 products in about 14 bits. Without `fast` each 128 of the inner dimension are summed there and then
added up in float32, in tiles of 128 columns whose sums fit in registers twice. What the kernel does not take is the owner's: row
scales, results other than bfloat16, rows that are not aligned to 16 bytes, results of few tiles, and other architectures.
"""

from pathlib import Path

import torch
from torch import Tensor

from bertfast.ops.fp8_linear import torch_products as owner
from bertfast.ops.linear import gluon_launch
from bertfast.ops.linear.gluon_tiles import ADD, PLAIN
from bertfast.triton import launch, tables

TABLES = tables.load("fp8_linear.gluon", Path(__file__).with_suffix(".json"))
_FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def _tile(
    table: str, a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out: torch.dtype, fast: bool
) -> tables.Tile | None:
    """The tile of a [M, K] times b [N, K]; None where the kernel does not take them."""
    taken = (
        launch.architecture(a.device) == gluon_launch.ARCH
        and a.dtype in _FORMATS
        and b.dtype is torch.float8_e4m3fn
        and not scale_a.dim() + scale_b.dim()
        and a.stride(1) == b.stride(1) == 1
        and gluon_launch.is_aligned(a)
        and gluon_launch.is_aligned(b)
        and b.shape[0] * out.itemsize % gluon_launch.ALIGNMENT == 0
    )
    if not taken:
        return None
    return gluon_launch.tile_of(TABLES, table, a.shape[0], b.shape[0], a.device, sums="fast" if fast else "full")


def fp8_linear(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast: bool,
) -> Tensor:
    tile = _tile("plain", a, b, scale_a, scale_b, dtype, fast) if dtype is torch.bfloat16 else None
    if tile is None:
        return owner.fp8_linear(a, b, scale_a, scale_b, bias, dtype, fast)
    y = torch.empty(a.shape[0], b.shape[0], dtype=dtype, device=a.device)
    gluon_launch.product(PLAIN, tile, a, b, y, bias=bias, scales=(scale_a, scale_b), full=not fast)
    return y


def fp8_linear_add(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, total: Tensor) -> None:
    tile = None
    if total.dtype in (torch.bfloat16, torch.float32) and total.is_contiguous() and gluon_launch.is_aligned(total):
        tile = _tile("add", a, b, scale_a, scale_b, total.dtype, False)
    if tile is None:
        owner.fp8_linear_add(a, b, scale_a, scale_b, total)
    else:
        gluon_launch.product(ADD, tile, a, b, total, scales=(scale_a, scale_b), full=True)
