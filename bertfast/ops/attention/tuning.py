"""Launch tables of the attention kernels: tiles, warps and stages by head size, dtype and architecture.

Chosen by ahead-of-time compilation (registers, spills, shared memory, instructions of the loop), never measured on a GPU.
Predicted for 128 x 128 scores, D = 64, dropout, on one multiprocessor of an H200, in cycles by pipe. A program alone adds up
instructions and wgmma, but for the dropout words, which are drawn beside a product; several programs overlap them.

    kernel      instructions (a score)   wgmma   exp2   memory
    fwd single  2600 (21)                 1024   1024   3600, 64 KB at 18 bytes
    bwd single  3200 (26)                 2560   1024   6200, 112 KB at 18 bytes
    fwd         1770 (13.8)               1024   1024   1210, L2 at 27 bytes, with 128 queries
    dq          1750 (13.7)               1536   1024   2430, with 64 queries
    dkv         2280 (17.8)               2048   1024   2430, with 64 keys

Of these instructions dropout is 6.4 a score in fwd: 2 Philox, 1 the exchange between threads, the rest shift, compare, select.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys."""

    queries: int
    keys: int
    warps: int
    stages: int


def single_block(longest: int, block_d: int, itemsize: int, arch: int, backward: bool) -> int:
    """The tile that holds a whole sequence, 0 where none does."""
    if itemsize == 4:
        limit = 32  # 64 x 64 keeps its operands in registers, as float32 has no tensor cores here, and spills
    elif arch < 90:
        # mma reads its operands from registers: backward of 128 x 128 spills 64 to 224 bytes, forward does at D = 128.
        limit = 64 if backward or block_d == 128 else 128
    else:
        limit = 128
    return next((block for block in (32, 64, 128) if longest <= block <= limit), 0)


def single_warps(block: int, itemsize: int) -> int:
    # float32: 32 x 32 with four warps spills 336 bytes in backward.
    return 8 if block == 128 or itemsize == 4 else 4


def _float32_tile(block_d: int) -> Tile:
    # No spills up to these. One stage: a program is bound by multiply-adds, and several fit a multiprocessor.
    return Tile(16 if block_d == 128 else 32, 32, 8, 1)


# Rows are copied ahead of their use only from three stages on: with two, Triton asks for the next ones where it waits for them.
STAGES = 3


def forward_tile(block_d: int, itemsize: int, arch: int) -> Tile:
    if itemsize == 4:
        return _float32_tile(block_d)
    if arch < 90:
        # Wider tiles hold scores, output and operands in the same registers and spill.
        return Tile(128, 32, 8, STAGES) if block_d == 128 else Tile(64, 64, 4, STAGES)
    # 128 queries: three programs of 64 x 64 would read twice as much out of L2, more than it gives.
    return Tile(128, 64 if block_d == 128 else 128, 8, STAGES)


def dq_tile(block_d: int, itemsize: int, arch: int) -> Tile:
    if itemsize == 4:
        return _float32_tile(block_d)
    if arch < 90:
        return Tile(32 if block_d == 128 else 64, 32, 4, STAGES)  # as forward
    if block_d == 128:
        # On sm_90 eight warps are 128 rows of wgmma: with 64 queries every score would be computed twice.
        return Tile(128 if arch < 100 else 64, 64, 8, STAGES)
    return Tile(64, 64, 4, STAGES)  # three programs a multiprocessor on sm_90


def dkv_tile(block_d: int, itemsize: int, arch: int) -> Tile:
    if itemsize == 4:
        return _float32_tile(block_d)
    if arch < 90:
        return Tile(32 if block_d == 128 else 64, 32, 4, STAGES)  # as forward
    if block_d == 128:
        # sm_90: 128 as for dq; three stages of such queries do not fit, and two spill 80 bytes.
        return Tile(128, 64, 8, 1) if arch < 100 else Tile(64, 64, 8, STAGES)
    return Tile(64, 64, 4, STAGES)  # two programs a multiprocessor on sm_90
