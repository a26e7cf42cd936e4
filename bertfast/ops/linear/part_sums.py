"""The end of a weight's gradient whose tiles were made in parts (`gluon_tiles.part_of`): the parts of a tile are added in order.

In float32, in an order that the sizes and the number of multiprocessors decide. The first programs each add some rows of one tile,
SET parts at a time; the last ones the column sums of a row of tiles.
"""

import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.linear.gluon_tiles import BLOCK_M
from bertfast.triton import launch

# Predicted, never measured: a set is eight loads of 16 bytes a thread under way, at 128 columns.
ROWS, SET, ROWS_OF_SUMS, WARPS = 8, 4, 32, 4
_BM, _ROWS, _SET, _SUMS = (tl.constexpr(n) for n in (BLOCK_M, ROWS, SET, ROWS_OF_SUMS))


@triton.jit
def _parts_of(left, steps, share):
    """(program of the first part, number of parts) of the tiles `left` that programs share, counted from the first such tile."""
    first = left * steps // share
    return first, ((left + 1) * steps - 1) // share - first + 1


@triton.jit
def _add_tile(
    dweight_ptr, partial_ptr, program, whole, steps, share, M: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Some rows of a tile, from its parts."""
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    left = program // (_BM // _ROWS)
    first, parts = _parts_of(left, steps, share)
    if parts > 1:  # else one program made all of it and stored it
        r = program % (_BM // _ROWS) * _ROWS + tl.arange(0, _ROWS)[:, None]  # [ROWS, 1]
        c = tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
        total = tl.zeros((_ROWS, BLOCK_N), tl.float32)
        for begin in range(0, parts, _SET):
            for step in tl.static_range(_SET):
                part = begin + step
                place = 2 * (first + part) + (part == 0).to(tl.int32)
                row = place.to(tl.int64) * _BM + r
                inside = (part < parts) & (r < _BM) & (c < BLOCK_N)
                total += tl.load(partial_ptr + row * BLOCK_N + c, mask=inside, other=0.0)  # [ROWS, BLOCK_N]
        tile = whole + left
        row, col = tile // TILES_N * _BM + r, tile % TILES_N * BLOCK_N + c
        to = dweight_ptr + row.to(tl.int64) * N + col
        tl.store(to, total.to(dweight_ptr.dtype.element_ty), mask=(row < M) & (col < N))


@triton.jit
def _add_sums(
    dbias_ptr, sums_ptr, tile_row, whole, steps, share, M: tl.constexpr, TILES_N: tl.constexpr, PROGRAMS: tl.constexpr
):  # fmt: skip
    """Column sums of a row of tiles: of all its tiles, and of all their parts."""
    r = tl.arange(0, _BM)  # [BM]
    total = tl.zeros((_BM,), tl.float32)
    most = steps // share + 2
    for begin in range(0, TILES_N * most, _SUMS):
        number = begin + tl.arange(0, _SUMS)  # [SUMS]
        tile, part = tile_row * TILES_N + number // most, number % most
        left = tl.maximum(tile - whole, 0)
        first, parts = _parts_of(left, steps, share)
        alone = (tile < whole) | (parts == 1)
        inside = (number < TILES_N * most) & (part < tl.where(alone, 1, parts))
        place = tl.where(alone, 2 * PROGRAMS + tile, 2 * (first + part) + (part == 0).to(tl.int32))
        sums_at = sums_ptr + place[:, None] * _BM + r[None, :]
        total += tl.sum(tl.load(sums_at, mask=inside[:, None], other=0.0), 0)  # [SUMS, BM]
    out = tile_row * _BM + r
    tl.store(dbias_ptr + out, total.to(dbias_ptr.dtype.element_ty), mask=out < M)


@triton.jit(do_not_specialize=["whole", "steps", "share", "shared"])
def part_sums_kernel(
    dweight_ptr, dbias_ptr, partial_ptr, sums_ptr, whole, steps, share, shared,
    M: tl.constexpr, N: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """whole: how many tiles were made whole by plan. steps, share: of a tile and of a program. shared: programs that add tiles."""
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    if partial_ptr is not None and program < shared:
        _add_tile(dweight_ptr, partial_ptr, program, whole, steps, share, M, N, BLOCK_N)
    if sums_ptr is not None and program >= shared:
        _add_sums(dbias_ptr, sums_ptr, program - shared, whole, steps, share, M, TILES_N, PROGRAMS)


def add_parts(
    partial: Tensor | None,
    sums: Tensor | None,
    dweight: Tensor,
    dbias: Tensor | None,
    programs: int,
    steps: int,
    width: int,
) -> None:
    """Finish dweight [N, K] and dbias [N] of a product made by `programs` in `steps` a tile.

    Args:
        partial: [2 programs BM, width] float32; None where every tile was made whole.
        sums: [2 programs + tiles, BM] float32; None without dbias.
        width: columns of a tile.
    """
    rows, columns = dweight.shape
    tiles_m = launch.cdiv(rows, BLOCK_M)
    tiles = tiles_m * launch.cdiv(columns, width)
    whole = tiles if partial is None else tiles // programs * programs
    share = max(launch.cdiv((tiles - whole) * steps, programs), 1)
    shared = (tiles - whole) * (BLOCK_M // ROWS)
    grid = (shared + (0 if sums is None else tiles_m),)
    constants = {"M": rows, "N": columns, "PROGRAMS": programs, "BLOCK_N": width}
    args = (dweight, dbias, partial, sums, whole, steps, share, shared)
    launch.launch(part_sums_kernel, grid, args, constants, warps=WARPS)
