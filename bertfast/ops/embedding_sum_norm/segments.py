"""Adds the rows of dz by key into tables, deterministically and without waiting for the host: table[key] = sum over its tokens.

A place is one number, key << 32 | row. Places are put in order of (key, row), so tokens keep their order: `rank_places` counts
how many are smaller, in a launch that others share; above RANKED_TOKENS torch.sort does it. Then programs find the starts of
runs of equal keys and walk them. Long arrays are shortened first: a program of `segments_kernel` takes a chunk of places and
writes the runs inside it; one that crosses a border leaves a float32 sum at the head or the tail of its chunk, and those two
entries a chunk are again places in order. Each table row is written once, by one program.
"""

from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.triton import tables
from bertfast.triton.launch import architecture, cdiv, launch

# Above, torch.sort: pairs grow as T^2. At 8,192 tokens two tables have 1.3e8, some 15 us of an H200's integer units beside 85 MB
# of memory traffic. Predicted, never measured.
RANKED_TOKENS = 8192
# Up to so many tokens every place gets a program at once; above, chunks first, until at most WALKED_CHUNKS are left. Both bound
# the longest walk: a word in an eighth of the places is 16 steps of 8 rows, some 8 us, more than the launch that shortening
# it costs. Predicted, never measured.
DIRECT_TOKENS, WALKED_CHUNKS = 1024, 1024
TABLES = tables.load("embedding_sum_norm", Path(__file__).with_name("launch.json"))


@triton.jit
def load_keys(ids_ptr, at, tokens, padding_idx, BASE: tl.constexpr, TABLE: tl.constexpr):
    """Row BASE + id of all tables in one numbering; -1 where nothing is to be added, and what nothing exceeds past the end."""
    given = tl.load(ids_ptr + at, mask=at < tokens, other=0)
    nowhere = (given < 0) | (given >= TABLE) | (given == padding_idx)
    return tl.where(at < tokens, tl.where(nowhere, -1, BASE + given).to(tl.int32), 0x7FFFFFFF)


@triton.jit
def rank_places(
    ids_ptr,
    places_ptr,
    tile,
    tokens,
    padding_idx,
    BASE: tl.constexpr,
    TABLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Put ROWS tokens of one table where they belong among all: after every smaller key and every earlier token of their own."""
    row = tile * ROWS + tl.arange(0, ROWS)
    key = load_keys(ids_ptr, row, tokens, padding_idx, BASE, TABLE)
    less = tl.zeros((ROWS, COLS), tl.int32)
    first = tile * ROWS // COLS * COLS
    after = (tile * ROWS + ROWS + COLS - 1) // COLS * COLS
    col = tl.arange(0, COLS)
    for start in range(0, first, COLS):
        other = load_keys(ids_ptr, start + col, tokens, padding_idx, BASE, TABLE)
        less += (other[None, :] <= key[:, None]).to(tl.int32)
    for start in range(first, after, COLS):
        other = load_keys(ids_ptr, start + col, tokens, padding_idx, BASE, TABLE)
        earlier = (start + col)[None, :] < row[:, None]
        less += ((other[None, :] < key[:, None]) | (earlier & (other[None, :] == key[:, None]))).to(tl.int32)
    for start in range(after, tokens, COLS):
        other = load_keys(ids_ptr, start + col, tokens, padding_idx, BASE, TABLE)
        less += (other[None, :] < key[:, None]).to(tl.int32)
    place = (key.to(tl.int64) << 32) | row.to(tl.int64)
    tl.store(places_ptr + tl.sum(less, 1), place, mask=row < tokens)


@triton.jit
def load_places(places_ptr, order_ptr, at, tokens, mask):
    """(key, row) of places; -1 where the mask is false. With an order, places holds int32 keys and order 3 * tokens places."""
    given = tl.load(places_ptr + at, mask=mask, other=-1)
    if order_ptr is None:
        key = (given >> 32).to(tl.int32)
        row = given & 0x7FFFFFFF
    else:
        key = given
        row = tl.load(order_ptr + at, mask=mask, other=0)
        # Below 3 * tokens; a remainder would cost a division.
        row = tl.where(row >= 2 * tokens, row - 2 * tokens, tl.where(row >= tokens, row - tokens, row))
    return key, row


@triton.jit
def store_row(table_ptr, row, col, sums, E: tl.constexpr, ADD: tl.constexpr):
    place = table_ptr + row * E + col
    if ADD:
        sums += tl.load(place, mask=col < E, other=0.0).to(tl.float32)
    tl.store(place, sums.to(table_ptr.dtype.element_ty), mask=col < E)


@triton.jit
def store_sum(
    word_ptr,
    position_ptr,
    segment_ptr,
    key,
    col,
    sums,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ADD: tl.constexpr,
):
    """Write one row of the table that key >= 0 belongs to. ADD: to what the word table holds."""
    row = key.to(tl.int64)
    if key < WORDS:
        store_row(word_ptr, row, col, sums, E, ADD)
    elif key < WORDS + POSITIONS:
        store_row(position_ptr, row - WORDS, col, sums, E, False)
    elif segment_ptr is not None:
        store_row(segment_ptr, row - (WORDS + POSITIONS), col, sums, E, False)


@triton.jit
def walk_run(
    rows_ptr,
    places_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    start,
    count,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ADD: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where a run of equal keys starts at place `start`, add all of it, ROWS at a time, and write its table row.

    STEP 2: places are heads and tails of chunks, so the run starts at a tail and all it has behind the next head are heads.
    """
    key, _ = load_places(places_ptr, None, start, 0, start < count)
    before, _ = load_places(places_ptr, None, start - 1, 0, start > 0)
    if (key >= 0) & (before != key):
        col = tl.arange(0, BLOCK)
        sums = tl.zeros((BLOCK,), tl.float32)
        inside = tl.full((), ROWS, tl.int32)
        place = start + tl.maximum(STEP * tl.arange(0, ROWS) - (STEP - 1), 0)
        found, row = load_places(places_ptr, None, place, 0, place < count)
        place = start + STEP * tl.arange(0, ROWS) - (STEP - 1)
        while inside == ROWS:
            mask = found == key
            where = rows_ptr + row[:, None] * E + col[None, :]
            rows = tl.load(where, mask=mask[:, None] & (col < E)[None, :], other=0.0)
            place += STEP * ROWS
            found, row = load_places(places_ptr, None, place, 0, place < count)  # while the rows are on their way
            sums += tl.sum(rows.to(tl.float32), 0)
            inside = tl.sum(mask.to(tl.int32))
        store_sum(word_ptr, position_ptr, segment_ptr, key, col, sums, E, WORDS, POSITIONS, ADD)


@triton.jit(do_not_specialize=["count", "tokens"])
def segments_kernel(
    rows_ptr,
    places_ptr,
    order_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    next_rows_ptr,
    next_places_ptr,
    count,
    tokens,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ADD: tl.constexpr,
    CHUNK: tl.constexpr,
    COLS: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    base = chunk * CHUNK
    last = tl.minimum(base + CHUNK, count) - 1
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    first_key, _ = load_places(places_ptr, order_ptr, base, tokens, True)
    last_key, _ = load_places(places_ptr, order_ptr, last, tokens, True)
    before, _ = load_places(places_ptr, order_ptr, base - 1, tokens, base > 0)
    after, _ = load_places(places_ptr, order_ptr, last + 1, tokens, last + 1 < count)
    from_left = before == first_key
    to_right = after == last_key
    # All rows before any is stored: the compiler must not think that a store could change a later load.
    rows = ()
    for i in tl.static_range(CHUNK):
        key, row = load_places(places_ptr, order_ptr, tl.minimum(base + i, last), tokens, True)
        mask = (base + i <= last) & (key >= 0) & (col < E)
        rows = rows + (tl.load(rows_ptr + row * E + col, mask=mask, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005  Triton has no star

    sums = tl.zeros((COLS,), tl.float32)
    for i in tl.static_range(CHUNK):
        sums += rows[i].to(tl.float32)
        # Past the end the last key repeats with rows of 0, so its run ends with the chunk.
        key, _ = load_places(places_ptr, order_ptr, tl.minimum(base + i, last), tokens, True)
        if i == CHUNK - 1:
            end = key >= 0
        else:
            following, _ = load_places(places_ptr, order_ptr, tl.minimum(base + i + 1, last), tokens, True)
            end = (key >= 0) & (key != following)
        if end:
            left = from_left & (key == first_key)
            right = to_right & (key == last_key)
            if left | right:
                entry = 2 * chunk + tl.where(left, 0, 1)
                tl.store(next_rows_ptr + entry * E + col, sums, mask=col < E)
            else:
                store_sum(word_ptr, position_ptr, segment_ptr, key, col, sums, E, WORDS, POSITIONS, ADD)
            sums = tl.zeros((COLS,), tl.float32)
    # A run that fills its chunk and goes on is all in the head; its tail keeps the key, which holds the run together, and is 0.
    fills = from_left & to_right & (first_key == last_key)
    tail = (2 * chunk + 1) * E + col
    tl.store(next_rows_ptr + tail, tl.zeros((COLS,), tl.float32), mask=(col < E) & fills)
    if tl.program_id(1) == 0:
        head_key = tl.where(from_left, first_key, -1).to(tl.int64)
        tail_key = tl.where(to_right, last_key, -1).to(tl.int64)
        tl.store(next_places_ptr + 2 * chunk, (head_key << 32) | (2 * chunk))
        tl.store(next_places_ptr + 2 * chunk + 1, (tail_key << 32) | (2 * chunk + 1))


def shorten(rows: Any, places: Any, order: Any, gradients: tuple, tokens: int, add: bool) -> tuple[Tensor, Tensor]:
    """Write the runs that end inside chunks; (rows, places) of what is left, short enough to walk.

    Args:
        rows: [T, E]; places: int64 [n] in order, or int32 keys where `order` says the places that they had, token = order % T.
        gradients: of word, of position and, where places name it, of segment, in dz's dtype.
        add: to what the word table holds.
    """
    word, position, segment = gradients
    size = rows.shape[1]
    while True:
        tile = TABLES.find("chunks", architecture(rows.device), bits=8 * rows.element_size())
        chunk, cols = tile["chunk"], tile["cols"]
        count = places.shape[0]
        chunks = cdiv(count, chunk)
        next_rows = torch.empty((2 * chunks, size), dtype=torch.float32, device=rows.device)
        next_places = torch.empty(2 * chunks, dtype=torch.int64, device=rows.device)
        launch(
            segments_kernel,
            (chunks, cdiv(size, cols)),
            (rows, places, order, word, position, segment, next_rows, next_places, count, tokens),
            {
                "E": size,
                "WORDS": word.shape[0],
                "POSITIONS": position.shape[0],
                "ADD": add,
                "CHUNK": chunk,
                "COLS": cols,
            },
            warps=1,
        )
        rows, places, order = next_rows, next_places, None
        if chunks <= WALKED_CHUNKS:
            return rows, places
