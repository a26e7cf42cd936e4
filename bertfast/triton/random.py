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
def _philox(seed, c0, c1, c2, c3):
    """tl.philox of uint32 counters, with one wide multiplication where that makes two: 14 of them and 14 xors of three a draw."""
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _pairs(a, b):
    """Two words in one uint64: the low halves of a and b, then their high halves."""
    low = (a & 0xFFFF) | (b << 16)
    high = (a >> 16) | (b & 0xFFFF0000)
    return low.to(tl.uint64) | (high.to(tl.uint64) << 32)


@triton.jit
def attention_words(seed, offset, head, query, group, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The random bytes of a [QUERIES, KEYS] tile of attention, to be given to `attention_keep`; four in a word.

    head: scalar b * H + h; query: [QUERIES, 1] place in its sequence; group: [1, KEYS / 16] key >> 4.

    Tensor-core accumulators give a thread c of four, of 16 columns, the pairs at 2 c and 2 c + 8. So the bytes of these
    pairs are put into one word, two words side by side: what crosses threads is 8 bytes for 16 columns, once.
    """
    c0 = tl.broadcast_to(group.to(tl.uint32), (QUERIES, KEYS // 16))
    c1 = tl.broadcast_to(query.to(tl.uint32), (QUERIES, KEYS // 16))
    c2 = tl.zeros((QUERIES, KEYS // 16), tl.uint32) + head.to(tl.uint32)
    c3 = tl.zeros((QUERIES, KEYS // 16), tl.uint32) + offset
    w0, w1, w2, w3 = _philox(seed, c0, c1, c2, c3)
    words = tl.join(_pairs(w0, w2), _pairs(w1, w3))
    words = tl.reshape(words, (QUERIES, KEYS // 16, 1, 2, 1, 1))  # [.., half of 16, c >> 1, c & 1, place in the pair]
    second = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 2, 1)) == 1
    return tl.where(second, (words >> 32).to(tl.uint32), words.to(tl.uint32))


@triton.jit
def attention_keep(words, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Which probabilities of the tile attention dropout keeps; threshold: of bytes. Each byte is shifted to the top of its word."""
    half = tl.reshape(tl.arange(0, 2), (1, 1, 2, 1, 1, 1))
    place = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 2))
    top = words << (24 - 16 * half - 8 * place).to(tl.uint32)
    return tl.reshape(top, (QUERIES, KEYS)) >= (threshold.to(tl.uint32) << 24)
