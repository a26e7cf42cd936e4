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
    """One way to cut a product.

    m, n, k: output tile and step. slices: pieces of the epilogue. resident: programs that share a multiprocessor.
    specialize: warps for copies and products apart from those of the epilogue.
    """

    m: int
    n: int
    k: int
    slices: int
    warps: int
    stages: int
    resident: int = 1
    specialize: bool = False


# Tile rows done together: 8 of 128 rows of x and all of W fit the L2 of an A100 (40 MB) and up at either model size.
GROUP = 8

# K is 768 or 1024, so a 128 x 128 tile multiplies for only 6,000 cycles and its erf epilogue issues for about 4,000: what counts
# is that one overlaps the other. Registers and shared bytes are the compiler's, per kernel of forward / backward.
Table = dict[tuple[int, str], Tile]
FORWARD: Table = {
    # 121 registers, 57,344 bytes: two programs a multiprocessor, one multiplies while the other is in its epilogue.
    (80, "many"): Tile(128, 128, 32, 4, 8, 4, resident=2),
    (80, "few"): Tile(64, 64, 64, 1, 4, 3),
    # 126 registers, 114,712 bytes: exactly two. One slice takes 183 registers, 128 x 256 in two spills.
    (90, "many"): Tile(128, 128, 64, 2, 8, 3, resident=2),
    (90, "few"): Tile(64, 64, 128, 1, 4, 3),
    # 168 registers, 163,940 bytes, accumulator in tensor memory: the product of the next tile runs under the epilogue.
    (100, "many"): Tile(128, 256, 64, 4, 8, 3, specialize=True),
    (100, "few"): Tile(64, 64, 128, 1, 4, 3),
}
BACKWARD: Table = {
    # 196 registers on four warps; 128 x 128 takes 155 on eight, which leaves one program.
    (80, "many"): Tile(64, 128, 32, 2, 4, 4, resident=2),
    (80, "few"): Tile(64, 64, 64, 1, 4, 3),
    # 128 registers, 114,728 bytes: exactly two. Two slices take 131,112 bytes, which leaves one.
    (90, "many"): Tile(128, 128, 64, 4, 8, 3, resident=2),
    (90, "few"): Tile(64, 64, 128, 1, 4, 3),
    (100, "many"): Tile(128, 256, 64, 4, 8, 3, specialize=True),
    (100, "few"): Tile(64, 64, 128, 1, 4, 3),
}
# To be timed against the tables on a GPU: name to (architectures, tile), forward only where it says so.
# On sm_90 specialisation compiles neither with slices nor with sums over the rows, and is ignored with 8 warps.
ALTERNATIVES = {
    "wide": ((90,), Tile(128, 256, 64, 4, 8, 4)),
    "specialized": ((90,), Tile(128, 128, 64, 1, 4, 4, specialize=True)),
    "two programs": ((100,), Tile(128, 128, 64, 4, 8, 3, resident=2)),
}


def tile(table: Table, tokens: int, n: int, arch: int, multiprocessors: int) -> Tile:
    """The architecture's large tile where there is one for every multiprocessor, else its small one."""
    known = 100 if arch >= 100 else 90 if arch >= 90 else 80
    large = table[known, "many"]
    tiles = -(-tokens // large.m) * -(-n // large.n)
    return large if tiles >= multiprocessors else table[known, "few"]
