"""Which tiles, or parts of tiles, a program of the product kernel (`gluon_product`) makes, and where they lie."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

PLAIN, GELU, DGELU, ADD, WEIGHT = range(5)  # epilogues
BLOCK_M = 128  # rows of a tile, two warpgroups of 64
SLICE_BYTES = 128  # of a row of a slice of the result: what TMA swizzles

# The same for kernels.
IS_PLAIN, IS_GELU, IS_DGELU, IS_ADD, IS_WEIGHT = (gl.constexpr(epilogue) for epilogue in range(5))
BM, HALF = gl.constexpr(BLOCK_M), gl.constexpr(BLOCK_M // 2)


@gluon.jit
def cdiv(a, b):
    return (a + b - 1) // b


@gluon.jit
def corner(tile, tiles_m, TILES_N: gl.constexpr, GROUP: gl.constexpr, BN: gl.constexpr):
    """(row, column) of a tile: GROUP tile rows are done column by column before the next GROUP. Row by row where GROUP is 1."""
    group = tile // (GROUP * TILES_N)
    size = gl.minimum(tiles_m - group * GROUP, GROUP)
    inside = tile % (GROUP * TILES_N)
    return (group * GROUP + inside % size) * BM, inside // size * BN


@gluon.jit
def _share(tiles, steps):
    """(waves, share): whole tiles that each program makes, and its steps of the tiles that are left, together `steps` each."""
    waves = tiles // gl.num_programs(0)
    return waves, cdiv((tiles - waves * gl.num_programs(0)) * steps, gl.num_programs(0))


@gluon.jit
def parts_of(tiles, steps, STREAM: gl.constexpr):
    """How many tiles, or parts of tiles, this program makes."""
    if STREAM:
        waves, share = _share(tiles, steps)
        first = gl.program_id(0) * share
        last = gl.minimum(first + share, (tiles - waves * gl.num_programs(0)) * steps)
        parts = waves + gl.maximum(cdiv(last, steps) - first // steps, 0)
    else:
        parts = cdiv(tiles - gl.program_id(0), gl.num_programs(0))
    return parts


@gluon.jit
def part_of(i, tiles, steps, STREAM: gl.constexpr):
    """(tile, first step, last step) of this program's part i.

    Without STREAM: whole tiles, in turn. With it, for results of few tiles and a long K: as many rounds of whole tiles as there
    are, and the steps of the tiles that are left in equal shares, so that every program works to the end. A share is the end of a
    tile, whole tiles and the beginning of one, or the middle of one: so a program leaves at most two parts, one that does not
    begin with its tile (place 2 p of the partial sums of program p) and one that does but does not end with it (2 p + 1).
    """
    if STREAM:
        waves, share = _share(tiles, steps)
        first = gl.program_id(0) * share
        last = gl.minimum(first + share, (tiles - waves * gl.num_programs(0)) * steps)
        left = first // steps + i - waves
        whole = i < waves
        tile = gl.where(whole, i * gl.num_programs(0) + gl.program_id(0), waves * gl.num_programs(0) + left)
        begin = gl.where(whole, 0, gl.maximum(first - left * steps, 0))
        end = gl.where(whole, steps, gl.minimum(last - left * steps, steps))
    else:
        tile = i * gl.num_programs(0) + gl.program_id(0)
        begin = 0
        end = steps
    return tile, begin, end


@gluon.jit
def corner_of(i, tiles_m, TILE: gl.constexpr):
    """(row, column) of this program's tile i, where tiles are made in turn."""
    return corner(i * gl.num_programs(0) + gl.program_id(0), tiles_m, TILE[3], TILE[4], TILE[0])
