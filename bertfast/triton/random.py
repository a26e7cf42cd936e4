"""Dropout bits of `bertfast.ops.rng` inside a kernel: the same Philox 4x32-7 counters as on a CPU, one draw for 8 or 16 elements.

The pieces of a draw belong to neighbouring columns. They are put side by side with joins, lowest bit of the column last.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)


@triton.jit
def load_state(rng_ptr):
    """(seed, offset) of an int64 [2] tensor: seed uint64, offset uint32."""
    return tl.load(rng_ptr).to(tl.uint64, bitcast=True), tl.load(rng_ptr + 1).to(tl.uint32)


@triton.jit
def rows_keep(seed, offset, row, group, threshold, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Which elements of [ROWS, COLS] rows dropout keeps.

    row: [ROWS, 1] int64; group: [1, COLS / 8] column >> 3; threshold: in units of 1/65536.
    """
    low = (row & 0xFFFFFFFF).to(tl.uint32)
    high = (row >> 32).to(tl.uint32)
    c0 = tl.broadcast_to(group.to(tl.uint32), (ROWS, COLS // 8))
    c1 = tl.broadcast_to(low, (ROWS, COLS // 8))
    c2 = tl.broadcast_to(high, (ROWS, COLS // 8))
    c3 = tl.zeros((ROWS, COLS // 8), tl.uint32) + offset
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3, n_rounds=ROUNDS)
    low_halves = tl.join(tl.join(w0 & 0xFFFF, w2 & 0xFFFF), tl.join(w1 & 0xFFFF, w3 & 0xFFFF))
    high_halves = tl.join(tl.join(w0 >> 16, w2 >> 16), tl.join(w1 >> 16, w3 >> 16))
    return tl.reshape(tl.join(low_halves, high_halves), (ROWS, COLS)) >= threshold


@triton.jit
def _byte(w0, w1, w2, w3, SHIFT: tl.constexpr):
    pieces = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [.., word >> 1, word & 1]
    return (pieces >> SHIFT) & 0xFF


@triton.jit
def attention_keep(seed, offset, head, query, group, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Which probabilities of a [QUERIES, KEYS] tile attention dropout keeps.

    head: scalar b * H + h; query: [QUERIES, 1] place in its sequence; group: [1, KEYS / 16] key >> 4; threshold: of bytes.
    """
    c0 = tl.broadcast_to(group.to(tl.uint32), (QUERIES, KEYS // 16))
    c1 = tl.broadcast_to(query.to(tl.uint32), (QUERIES, KEYS // 16))
    c2 = tl.zeros((QUERIES, KEYS // 16), tl.uint32) + head.to(tl.uint32)
    c3 = tl.zeros((QUERIES, KEYS // 16), tl.uint32) + offset
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3, n_rounds=ROUNDS)
    even = tl.join(_byte(w0, w1, w2, w3, 0), _byte(w0, w1, w2, w3, 16))  # [.., word, byte >> 1]
    odd = tl.join(_byte(w0, w1, w2, w3, 8), _byte(w0, w1, w2, w3, 24))
    return tl.reshape(tl.join(even, odd), (QUERIES, KEYS)) >= threshold
