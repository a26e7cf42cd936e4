"""Reads the launch tables of the attention kernels (launch.json): tiles, warps and stages by head size, dtype and architecture.

single_forward and single_backward say up to which length a sequence is done as one tile, single_tile with how many warps; longer
ones go to forward, dq and dkv. What says "predicted" was chosen by ahead-of-time compilation (registers, spills, shared memory,
instructions of the loop). forward asks for dropout too: with it a program is bound by instructions, else by products and exp2.
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

from pathlib import Path

from bertfast.triton import tables

TABLES = tables.load("attention", Path(__file__).with_name("launch.json"))


def single_block(longest: int, block_d: int, itemsize: int, arch: int, backward: bool) -> int:
    """The tile that holds a whole sequence, 0 where none does."""
    table = "single_backward" if backward else "single_forward"
    limit = TABLES.find(table, arch, bits=8 * itemsize, d=block_d)["longest"]
    return next((block for block in (32, 64, 128) if longest <= block <= limit), 0)


def single_warps(block: int, itemsize: int, arch: int) -> int:
    return TABLES.find("single_tile", arch, bits=8 * itemsize, block=block)["warps"]


def forward_tile(block_d: int, itemsize: int, arch: int, dropout: bool) -> tables.Tile:
    """queries, keys, warps and stages of the "forward" kernel."""
    return TABLES.find("forward", arch, bits=8 * itemsize, d=block_d, dropout=int(dropout))


def backward_tile(table: str, block_d: int, itemsize: int, arch: int) -> tables.Tile:
    """queries, keys, warps and stages of the "dq" or "dkv" kernel."""
    return TABLES.find(table, arch, bits=8 * itemsize, d=block_d)
