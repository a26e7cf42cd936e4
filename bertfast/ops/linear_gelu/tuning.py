"""Launch tables of linear_gelu, and which of its two forms owns a shape. Nothing here was measured on a GPU: all predicted."""

from typing import NamedTuple

import torch
from torch import Tensor

# 1,024 elements of 16-bit types in 16-byte pieces are one row of 128 threads; 4 rows keep four such loads of a thread in
# flight and share one load of the bias. F = 3072 and 4096 are whole blocks of 1,024.
BIAS_GELU_FORWARD = {"ROWS": 4, "COLS": 1024}
# As bertfast.triton.columns: a warp a row, two rows a warp in flight; 16 float32 sums a thread.
BIAS_GELU_BACKWARD = {"ROWS": 8, "COLS": 256}


def forward_owner(x: Tensor, weight: Tensor) -> str:
    """ "split" or "fused" for linear_gelu_fwd.

    Split everywhere: the fused kernel has never run on a GPU. A committed result that shows where it wins changes this.
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


class Tile(NamedTuple):
    """One way to cut a product: tile m x n, k a step; slices of the epilogue; resident programs a multiprocessor."""

    m: int
    n: int
    k: int
    slices: int
    warps: int
    stages: int
    resident: int = 1


Table = dict[tuple[int, str], Tile]
# Tile rows done together: 8 of 128 rows and all of W fit an H200's 50 MB of L2 at either model size.
GROUP = 8

FORWARD: Table = {
    (80, "large"): Tile(128, 128, 32, 1, 8, 4),
    (80, "small"): Tile(64, 128, 64, 1, 4, 3),
    (90, "large"): Tile(128, 256, 64, 2, 8, 3),
    (90, "small"): Tile(128, 128, 64, 2, 8, 3),
    (100, "large"): Tile(128, 256, 64, 2, 8, 3),
    (100, "small"): Tile(128, 128, 64, 2, 8, 3),
}
BACKWARD: Table = dict(FORWARD)


def tile(table: Table, tokens: int, n: int, arch: int, multiprocessors: int) -> Tile:
    """The large tile where it fills the multiprocessors at least twice, so that the last round costs at most a third."""
    known = 100 if arch >= 100 else 90 if arch >= 90 else 80
    large = table[known, "large"]
    tiles = -(-tokens // large.m) * -(-n // large.n)
    return large if tiles >= 2 * multiprocessors else table[known, "small"]


def copies(arch: int) -> dict[str, bool]:
    """How operands travel."""
    return {"TMA": arch >= 90, "SPECIALIZE": False, "FLATTEN": True}
