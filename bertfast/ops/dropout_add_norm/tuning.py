"""Launch table of the row kernels (dropout_add_norm, embedding_sum_norm). Predicted from compiled code, never measured."""

from dataclasses import dataclass

import torch

from bertfast.triton.launch import cdiv, next_power_of_2

MAX_COLS = 4096  # a row lives in registers: 16 elements a thread at 8 warps
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RowTile:
    """A program's tile: ROWS rows of BLOCK columns at once, on `warps` warps."""

    rows: int
    block: int
    warps: int


# BLOCK columns to (forward rows, backward rows, warps). Warps lie along a row, 8 elements a thread (16 bytes of bfloat16): only so
# does a thread keep the same columns in all rows, and parameters and their partial gradients cost
# 8 registers each. Several rows a tile share the parameters' loads and the reductions' barriers.
# Backward holds three inputs and three sums, so fewer rows.
_TILES = {
    256: (4, 2, 1),  # twice the rows take 218 registers in embedding_sum_norm: too few warps would be resident
    512: (4, 2, 2),
    1024: (4, 2, 4),  # BERT-base (a quarter of the lanes idle at 768: issue slots, not bytes) and BERT-large
    2048: (2, 1, 8),
    4096: (1, 1, 8),
}
# Backward warps on a multiprocessor: 128 registers a thread let in 16. Each program leaves a row of partial sums to be added.
RESIDENT_WARPS = 16
# At least so many tiles a program: below, writing and adding partial sums takes over a tenth of the bytes.
TILES_PER_PROGRAM = 16


def block(cols: int) -> int:
    """Columns of a tile: a power of two, at least one warp of 8 elements a thread."""
    return max(256, next_power_of_2(cols))


def forward_tile(cols: int, rows: int, multiprocessors: int) -> RowTile:
    """One row a program while that fills the multiprocessors less than four times: latency matters, not loads of parameters."""
    most, _, warps = _TILES[block(cols)]
    return RowTile(1 if rows <= 4 * multiprocessors else most, block(cols), warps)


def backward_tile(cols: int) -> RowTile:
    _, rows, warps = _TILES[block(cols)]
    return RowTile(rows, block(cols), warps)


def backward_programs(rows: int, tile: RowTile, multiprocessors: int) -> int:
    """How many programs share the rows: at least one a multiprocessor, at most what is resident, never more than tiles."""
    tiles = cdiv(rows, tile.rows)
    wanted = min(RESIDENT_WARPS // tile.warps * multiprocessors, cdiv(tiles, TILES_PER_PROGRAM))
    return min(tiles, max(multiprocessors, wanted))
