"""Which of linear_gelu's two forms owns a shape, and its launch tables (launch.json), whose tiles are all predicted."""

from pathlib import Path

import torch
from torch import Tensor

from bertfast.triton import tables
from bertfast.triton.launch import cdiv

TABLES = tables.load("linear_gelu", Path(__file__).with_name("launch.json"))
# Tile rows done together: 8 of 128 rows of x and all of W fit the L2 of an A100 (40 MB) and up at either model size.
GROUP = 8


def forward_owner(x: Tensor, weight: Tensor) -> str:
    """ "split" or "fused" for linear_gelu_fwd.

    Split everywhere: on an H200 the fused kernel is 0.94 to 1.06 times as fast. A result that shows where it wins changes this.
    """
    return "split"


def fused_takes(*tensors: Tensor) -> bool:
    """Whether the fused kernels take these: one 16-bit dtype, rows and base addresses on 16 bytes, something to do.

    float32 is declined: its parity budget asks for exact products, which no tensor core makes.
    """
    dtype = tensors[0].dtype
    return dtype in (torch.float16, torch.bfloat16) and all(
        t.dtype == dtype and t.is_contiguous() and t.shape[-1] % 8 == 0 and t.data_ptr() % 16 == 0 and t.numel() > 0
        for t in tensors
    )


def fused_tile(table: str, tokens: int, n: int, arch: int, multiprocessors: int) -> tables.Tile:
    """The tile of "fused_forward" or "fused_backward": the large one if that leaves no multiprocessor idle, else the small one.

    m, n, k: output tile and step. slices: pieces of the epilogue. resident: programs that share a multiprocessor. specialize:
    warps for copies and products apart from those of the epilogue. K is 768 or 1024, so a 128 x 128 tile multiplies for only
    6,000 cycles and its erf epilogue issues for about 4,000: what counts is that one overlaps the other. On sm_90
    specialisation compiles neither with slices nor with sums over the rows, and is ignored with 8 warps.
    """
    large = TABLES.find(table, arch, size="many", used=False)
    many = cdiv(tokens, large["m"]) * cdiv(n, large["n"]) >= multiprocessors
    return TABLES.find(table, arch, size="many" if many else "few")
