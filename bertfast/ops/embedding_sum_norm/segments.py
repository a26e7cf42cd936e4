"""Adds rows by key into tables, deterministically and without waiting for the host: table[key] = sum of dz[token] over its tokens.

Keys are sorted on the device (stable, so tokens keep their order). A program takes a chunk of sorted places, all loads in
flight, and adds runs of equal keys in order. A run inside one chunk is written to its table; one that crosses a border leaves a
float32 sum at the head or the tail of its chunk. Those two entries a chunk are again rows sorted by key, so the same kernel takes
them, level by level, until one chunk is left: long runs ([PAD], "the") make a tree, and the number of levels depends on the number
of tokens alone. Each table row is written at most once, in the table's dtype.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.triton.launch import cdiv, launch

# Element size of the rows to (chunk, columns a program). One warp and 16 bytes a thread and row, all rows in registers:
# longer chunks would spill, shorter ones leave more partial sums. Predicted, never measured.
_TILES = {2: (16, 256), 4: (32, 128)}


@triton.jit
def store_sum(
    word_ptr, position_ptr, segment_ptr, key, col, sums, E: tl.constexpr, WORDS: tl.constexpr, POSITIONS: tl.constexpr
):
    """Write one row of the table that key >= 0 belongs to."""
    inside = col < E
    row = key.to(tl.int64)
    if key < WORDS:
        tl.store(word_ptr + row * E + col, sums.to(word_ptr.dtype.element_ty), mask=inside)
    elif key < WORDS + POSITIONS:
        tl.store(position_ptr + (row - WORDS) * E + col, sums.to(position_ptr.dtype.element_ty), mask=inside)
    elif segment_ptr is not None:
        row -= WORDS + POSITIONS
        tl.store(segment_ptr + row * E + col, sums.to(segment_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "tokens"])
def segments_kernel(
    rows_ptr,
    keys_ptr,
    order_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    next_rows_ptr,
    next_keys_ptr,
    count,
    tokens,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLS: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    base = chunk * CHUNK
    last = tl.minimum(base + CHUNK, count) - 1
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    first_key = tl.load(keys_ptr + base)
    last_key = tl.load(keys_ptr + last)
    from_left = (base > 0) & (tl.load(keys_ptr + tl.maximum(base - 1, 0)) == first_key)
    to_right = (last + 1 < count) & (tl.load(keys_ptr + tl.minimum(last + 1, count - 1)) == last_key)
    # All rows before any is stored: the compiler must not think that a store could change a later load.
    rows = ()
    for i in tl.static_range(CHUNK):
        row = tl.minimum(base + i, last)
        key = tl.load(keys_ptr + row)
        if order_ptr is not None:
            row = tl.load(order_ptr + row)  # below 3 * tokens; a remainder would cost a division
            row = tl.where(row >= 2 * tokens, row - 2 * tokens, tl.where(row >= tokens, row - tokens, row))
        mask = (base + i <= last) & (key >= 0) & (col < E)
        rows = rows + (tl.load(rows_ptr + row * E + col, mask=mask, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005  Triton has no star

    sums = tl.zeros((COLS,), tl.float32)
    for i in tl.static_range(CHUNK):
        sums += rows[i].to(tl.float32)
        # Past the end the last key repeats with rows of 0, so its run ends with the chunk.
        key = tl.load(keys_ptr + tl.minimum(base + i, last))
        if i == CHUNK - 1:  # noqa: SIM108 decided at compile time
            end = key >= 0
        else:
            end = (key >= 0) & (key != tl.load(keys_ptr + tl.minimum(base + i + 1, last)))
        if end:
            left = from_left & (key == first_key)
            right = to_right & (key == last_key)
            if left | right:
                if next_rows_ptr is not None:
                    entry = 2 * chunk + tl.where(left, 0, 1)
                    tl.store(next_rows_ptr + entry * E + col, sums, mask=col < E)
            else:
                store_sum(word_ptr, position_ptr, segment_ptr, key, col, sums, E, WORDS, POSITIONS)
            sums = tl.zeros((COLS,), tl.float32)
    if next_rows_ptr is not None:
        # A run that fills its chunk and goes on is all in the head; its tail keeps the key, which holds the run together, and is 0.
        fills = from_left & to_right & (first_key == last_key)
        tail = (2 * chunk + 1) * E + col
        tl.store(next_rows_ptr + tail, tl.zeros((COLS,), tl.float32), mask=(col < E) & fills)
        if tl.program_id(1) == 0:
            tl.store(next_keys_ptr + 2 * chunk, tl.where(from_left, first_key, -1))
            tl.store(next_keys_ptr + 2 * chunk + 1, tl.where(to_right, last_key, -1))


def fits(tokens: int, tables: tuple[Tensor, ...]) -> bool:
    """Whether keys and places are 32-bit numbers."""
    return 3 * tokens < 2**31 and sum(t.shape[0] for t in tables) < 2**31


def add_rows(dz: Tensor, keys: Any, word: Tensor, position: Tensor, segment: Tensor | None) -> None:
    """Write sums of rows into tables that hold zeros.

    Args:
        dz: [T, E].
        keys: int32 [k * T], for token i % T the row of word, of position (counted from the end of word) or of segment
            (from the end of position); negative: nowhere.
        word, position, segment: [rows, E] in dz's dtype.
    """
    tokens, size = dz.shape
    order: Tensor | None
    keys, order = torch.sort(keys, stable=True)
    rows: Any = dz
    while True:
        chunk, cols = _TILES[rows.element_size()]
        count = keys.shape[0]
        chunks = cdiv(count, chunk)
        more = chunks > 1
        next_rows = torch.empty((2 * chunks, size), dtype=torch.float32, device=dz.device) if more else None
        next_keys = torch.empty(2 * chunks, dtype=torch.int32, device=dz.device) if more else None
        launch(
            segments_kernel,
            (chunks, cdiv(size, cols)),
            (rows, keys, order, word, position, segment, next_rows, next_keys, count, tokens),
            {"E": size, "WORDS": word.shape[0], "POSITIONS": position.shape[0], "CHUNK": chunk, "COLS": cols},
            warps=1,
        )
        if not more:
            return
        rows, keys, order = next_rows, next_keys, None
