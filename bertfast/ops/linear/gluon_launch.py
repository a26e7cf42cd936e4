"""Launches of the product kernel in `gluon_product`: how operands lie, which tile, how many programs, and what becomes of parts."""

from typing import Any

import torch
from torch import Tensor

from bertfast.ops.linear import gluon_tiles as tiling
from bertfast.ops.linear.gluon_product import product_kernel
from bertfast.ops.linear.part_sums import add_parts
from bertfast.triton import launch, tables

ARCH = 90  # wgmma is of this architecture alone
DTYPES = (torch.float16, torch.bfloat16)
ALIGNMENT = 16  # bytes, of memory and of rows, that TMA asks for
WIDEST = 256  # columns of a tile
# Registers of a thread of the warpgroups: four of them share 512, and the one that loads needs 32.
REGISTERS, EPILOGUE_REGISTERS = 168, 144
# With tiles for a smaller share of the multiprocessors torch's library splits K. Predicted, never measured.
LEAST_FILLED = 0.5
# Tiles whose rounds leave a smaller share of multiprocessors idle are not cut in parts, which cost as much to add up. Predicted.
MOST_IDLE = 0.07


def is_aligned(x: Tensor) -> bool:
    """Whether TMA copies the matrix x, or its transpose, as it lies: all of its memory, and rows that begin on 16 bytes."""
    rows = launch.rows_of(x)
    return (
        rows.is_contiguous()
        and rows.shape[1] * rows.element_size() % ALIGNMENT == 0
        and rows.numel() > 0
        and (rows.device.type == "meta" or rows.data_ptr() % ALIGNMENT == 0)
    )


def takes(*operands: Tensor) -> bool:
    """Whether the kernel runs here and takes these matrices: one 16-bit type, and memory that TMA copies."""
    first = operands[0]
    return (
        launch.architecture(first.device) == ARCH
        and first.dtype in DTYPES
        and all(x.dtype is first.dtype for x in operands[1:])
        and all(is_aligned(x) for x in operands)
    )


def tile_of(
    known: tables.Tables, table: str, rows: int, columns: int, device: torch.device, **key: Any
) -> tables.Tile | None:
    """The tile for a result [rows, columns]; None where it has tiles for too few of the multiprocessors."""
    processors, tiles_m = launch.multiprocessors(device), launch.cdiv(rows, tiling.BLOCK_M)
    size = "few" if tiles_m * launch.cdiv(columns, WIDEST) < processors else "many"
    tile = known.find(table, ARCH, size=size, **key)
    return tile if tiles_m * launch.cdiv(columns, tile["n"]) >= LEAST_FILLED * processors else None


def tile_for(known: tables.Tables, table: str, a: Tensor, b: Tensor, columns: int, **key: Any) -> tables.Tile | None:
    """The tile of a times b to [T, columns] of their dtype; None where the kernel does not take them."""
    if not takes(a, b) or columns * a.element_size() % ALIGNMENT:
        return None
    return tile_of(known, table, a.shape[0], columns, a.device, **key)


def _operand(x: Tensor, rows_first: bool, rows: int, depth: int) -> tuple[tuple[int, int], bool]:
    """The block of an operand [R, K], given as x or, without rows_first, as its transpose; and whether it lies rows-major."""
    rows_major = rows_first == (x.stride(1) != 1)
    return (depth, rows) if rows_major else (rows, depth), rows_major


def product(
    epilogue: int,
    tile: tables.Tile,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    b_first: bool = True,
    pre: Tensor | None = None,
    bias: Tensor | None = None,
    sums: Tensor | None = None,
    scales: tuple[Tensor, Tensor] | None = None,
    full: bool = False,
    tanh: bool = False,
) -> None:
    """out [T, N] from a [T, K] and b [N, K], or [K, N] without `b_first`, as the epilogue has it.

    Args:
        out: of a's dtype, of operands in FP8 of a 16-bit type; ADD: or float32.
        pre: [T, N] of a's dtype, written by GELU and read by DGELU.
        bias: [N] of any floating dtype.
        sums: DGELU: [tile rows, N] float32, column sums of each tile row.
        scales: of a and b in FP8, float32 []; full: such products are added up in float32.
    """
    (tokens, depth), columns = a.shape, out.shape[1]
    width, stages, steps = tile["n"], tile["stages"], tile["k"]
    a_block, a_rows = _operand(a, True, tiling.BLOCK_M, steps)
    b_block, b_rows = _operand(b, b_first, width, steps)
    result = (tiling.BLOCK_M, tiling.SLICE_BYTES // out.element_size())
    blocks = {0: a_block, 1: b_block, 2: result}
    if pre is not None:
        blocks[3] = result
    tiles = launch.cdiv(tokens, tiling.BLOCK_M) * launch.cdiv(columns, width)
    constants = {
        "M": 0,
        "N": columns,
        "K": depth,
        "BLOCK_N": width,
        "BLOCK_K": steps,
        "STAGES": stages,
        "GROUP": tile["group"],
        "A_ROWS": a_rows,
        "B_ROWS": b_rows,
        "EPILOGUE": epilogue,
        "STREAM": False,
        "FULL": full,
        "TANH": tanh,
        "REGISTERS": REGISTERS,
        "EPILOGUE_REGISTERS": EPILOGUE_REGISTERS,
    }
    args = (a, b, out, pre, bias, None, sums, *(scales or (None, None)), tokens)
    grid = (min(tiles, launch.multiprocessors(a.device)),)
    launch.launch(product_kernel, grid, args, constants, blocks=blocks)


def weight_product(tile: tables.Tile, dy: Tensor, x: Tensor, dweight: Tensor, dbias: Tensor | None) -> None:
    """dy [T, N] and x [T, K] to dweight [N, K], float32 or of their dtype, and the column sums of dy to dbias [N]."""
    tokens, (rows, columns) = dy.shape[0], dweight.shape
    width, depth = tile["n"], tile["k"]
    tiles_n, programs = launch.cdiv(columns, width), launch.multiprocessors(dy.device)
    tiles = launch.cdiv(rows, tiling.BLOCK_M) * tiles_n
    idle = 1 - tiles / (launch.cdiv(tiles, programs) * programs)
    stream = idle > MOST_IDLE
    if not stream:
        programs = min(programs, tiles)
    partial = sums = None
    if stream:
        partial = dy.new_empty(2 * programs * tiling.BLOCK_M, width, dtype=torch.float32)
    if dbias is not None:
        sums = dy.new_empty(2 * programs + tiles, tiling.BLOCK_M, dtype=torch.float32)
    blocks = {0: (depth, tiling.BLOCK_M), 1: (depth, width)}
    constants = {
        "M": rows,
        "N": columns,
        "K": 0,
        "BLOCK_N": width,
        "BLOCK_K": depth,
        "STAGES": tile["stages"],
        "GROUP": 1,
        "A_ROWS": True,
        "B_ROWS": True,
        "EPILOGUE": tiling.WEIGHT,
        "STREAM": stream,
        "FULL": False,
        "TANH": False,
        "REGISTERS": REGISTERS,
        "EPILOGUE_REGISTERS": EPILOGUE_REGISTERS,
    }
    args = (dy, x, dweight, None, None, partial, sums, None, None, tokens)
    launch.launch(product_kernel, (programs,), args, constants, blocks=blocks)
    if partial is not None or sums is not None:
        add_parts(partial, sums, dweight, dbias, programs, launch.cdiv(tokens, depth), width)
