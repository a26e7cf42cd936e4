"""Launch tables of the attention kernels: tiles, warps and stages by head size, dtype and architecture.

Chosen by ahead-of-time compilation (registers, spills, shared memory), never measured on a GPU.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys."""

    queries: int
    keys: int
    warps: int
    stages: int


def single_block(longest: int, block_d: int, itemsize: int, arch: int) -> int:
    """The tile that holds a whole sequence, 0 where none does."""
    # float32 has no tensor cores here: 64 x 64 keeps its operands in registers and spills. So does, on sm_80, 128 x 128 at D = 128.
    limit = 32 if itemsize == 4 else 64 if arch < 90 and block_d >= 128 else 128
    return next((block for block in (32, 64, 128) if longest <= block <= limit), 0)


def single_warps(block: int) -> int:
    return 8 if block == 128 else 4


def forward_tile(block_d: int, itemsize: int, arch: int) -> Tile:
    if itemsize == 4:
        # Long loops of float32 still spill a little (36 to 212 accesses on sm_90 at D = 64): every wider tile spilled more.
        return Tile(16, 32, 8, 1)
    # On sm_80 128 x 128 spills: scores share the registers with operands that wgmma would read from shared memory.
    return Tile(128, 64 if block_d == 128 or arch < 90 else 128, 8, 2)


def backward_tile(block_d: int, itemsize: int, arch: int) -> Tile:
    if itemsize == 4:
        return Tile(16, 32, 8, 1)
    if arch < 90:
        return Tile(32, 64, 4, 2)
    return Tile(64, 64, 8 if block_d == 128 else 4, 2)
