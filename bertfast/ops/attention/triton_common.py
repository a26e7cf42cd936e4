"""What the attention kernels share: bounds of a sequence, rows of one head, masks, log-sum-exp and dropout bits.

A padded batch is packed tokens whose sequences all have S tokens, so one kernel serves both: `cu_ptr` is None where padded.
Pointers that are None (mask, rng, bias) are constants to Triton: what they would need is not compiled.
Scores are in units of log 2 (log2(e) is folded into the scale), so that a probability is one exp2. Those of float32 are
natural: each change of units of a large log-sum-exp rounds it, and gradients showed that.
"""

import triton
import triton.language as tl

from bertfast.triton import mailbox, random

LOG2E = tl.constexpr(1.4426950408889634)
SLOT_BOUNDS = tl.constexpr(1)
SLOT_LONGEST = tl.constexpr(2)


@triton.jit
def unit(like_ptr):
    """A natural logarithm in the units of scores: those of what like_ptr points at."""
    if like_ptr.dtype.element_ty == tl.float32:
        return 1.0
    else:  # noqa: RET505 - one branch is compiled
        return LOG2E


@triton.jit
def power(x, like_ptr):
    """exp of a difference of scores."""
    if like_ptr.dtype.element_ty == tl.float32:
        return tl.exp(x)
    else:  # noqa: RET505 - one branch is compiled
        return tl.exp2(x)


@triton.jit
def sequence_bounds(cu_ptr, tokens, sequences, longest, sequence):
    """(begin int64, length, stop, falls, long): clamped so that no row outside [0, tokens) is touched, and what was wrong.

    stop: past begin + length only where bounds are wrong: the rows between would be nobody's.
    """
    if cu_ptr is None:
        begin = sequence.to(tl.int64) * longest
        length = longest
        stop = begin + length
        falls = False
        long = False
    else:
        first = tl.load(cu_ptr + sequence)
        last = tl.load(cu_ptr + sequence + 1)
        falls = (first < 0) | (last < first) | (last > tokens)
        falls = falls | ((sequence == 0) & (first != 0)) | ((sequence == sequences - 1) & (last != tokens))
        long = (last.to(tl.int64) - first > longest) & (falls == 0)
        first = tl.minimum(tl.maximum(first, 0), tokens)
        last = tl.minimum(tl.maximum(last, first), tokens)
        begin = first.to(tl.int64)
        length = tl.maximum(tl.minimum(last - first, longest), 0)
        stop = tl.where(sequence == sequences - 1, tokens, last).to(tl.int64)
    return begin, length, stop, falls, long


@triton.jit
def assignment(box_ptr, cu_ptr, tokens, sequences, longest, tiles, H: tl.constexpr):
    """What this program works on: (sequence, head, tile, begin, length, stop, bad); box_ptr is None where others report.

    Tiles of one head are neighbours: they read the same rows out of L2.
    """
    tile = tl.program_id(0) % tiles
    sequence_head = tl.program_id(0) // tiles
    sequence = sequence_head // H
    head = sequence_head % H
    begin, length, stop, falls, long = sequence_bounds(cu_ptr, tokens, sequences, longest, sequence)
    if cu_ptr is not None and box_ptr is not None:
        once = (head == 0) & (tile == 0)
        mailbox.report(box_ptr, SLOT_BOUNDS, sequence, falls & once)
        mailbox.report(box_ptr, SLOT_LONGEST, sequence, long & once)
    return sequence, head, tile, begin, length, stop, falls | long


@triton.jit
def statistics_row(cu_ptr, tokens, longest, sequence, head, begin, H: tl.constexpr):
    """Where the row of log-sum-exps of a sequence and head starts: [H, T], or [B, H, S] where padded."""
    if cu_ptr is None:
        return (sequence.to(tl.int64) * H + head) * longest
    else:  # noqa: RET505 - one branch is compiled
        return head.to(tl.int64) * tokens + begin


@triton.jit
def poison(ptr, sequence, begin, length, stop, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """NaN in the rows that wrong bounds leave to nobody: from 0 to the first sequence, and from its length to `stop`.

    ptr: row 0 of the tensor at one head.
    """
    ROWS: tl.constexpr = 2048 // BLOCK_D if BLOCK_D >= 16 else 128
    col = tl.arange(0, BLOCK_D)
    nan = tl.full((ROWS, BLOCK_D), float("nan"), tl.float32).to(ptr.dtype.element_ty)
    for start in range(tl.where(sequence == 0, 0, begin + length), stop, ROWS):
        row = start + tl.arange(0, ROWS)
        nobodys = (row < stop) & ((row < begin) | (row >= begin + length))
        tl.store(ptr + row[:, None] * STRIDE + col[None, :], nan, mask=nobodys[:, None] & (col[None, :] < D))


@triton.jit
def load_rows(ptr, row, length, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] of one head, zero past `length` and past D; ptr: row 0 of the head."""
    col = tl.arange(0, BLOCK_D)
    inside = row[:, None] < length
    if BLOCK_D != D:
        inside = inside & (col[None, :] < D)
    return tl.load(ptr + row[:, None] * STRIDE + col[None, :], mask=inside, other=0.0)


@triton.jit
def load_fixed(ptr, row, length, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """`load_rows` for the rows a program keeps through its loop: [BLOCK_D, rows] in float32.

    Products of float32 take operands from registers, and what is fixed would stay there: all of D for each row, more than a
    thread has. Turned back where it is multiplied, it is read from shared memory there.
    """
    if ptr.dtype.element_ty == tl.float32:
        col = tl.arange(0, BLOCK_D)
        inside = (row[None, :] < length) & (col[:, None] < D)
        return tl.load(ptr + row[None, :] * STRIDE + col[:, None], mask=inside, other=0.0)
    else:  # noqa: RET505 - one branch is compiled
        return load_rows(ptr, row, length, STRIDE, D, BLOCK_D)


@triton.jit
def times_transposed(fixed, x):
    """fixed x^T, of what `load_fixed` gave and of [rows, BLOCK_D]."""
    if x.dtype == tl.float32:
        return tl.dot(tl.trans(fixed), tl.trans(x), input_precision="ieee")
    else:  # noqa: RET505 - one branch is compiled
        return tl.dot(fixed, tl.trans(x))


@triton.jit
def load_part(
    head_ptr, bias_ptr, PART: tl.constexpr, head, row, length, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows of q, k or v (PART 0, 1, 2) of one head, with the bias of the projection added where there is one."""
    x = load_rows(head_ptr + PART * H * D, row, length, 3 * H * D, D, BLOCK_D)
    if bias_ptr is not None:
        col = tl.arange(0, BLOCK_D)
        bias = tl.load(bias_ptr + (PART * H + head) * D + col, mask=col < D, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + bias[None, :]).to(x.dtype)
    return x


@triton.jit
def load_queries(head_ptr, bias_ptr, head, row, length, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """q as `load_fixed` gives it, with the bias of the projection."""
    x = load_fixed(head_ptr, row, length, 3 * H * D, D, BLOCK_D)
    if bias_ptr is not None:
        col = tl.arange(0, BLOCK_D)
        bias = tl.load(bias_ptr + head * D + col, mask=col < D, other=0.0).to(tl.float32)
        if head_ptr.dtype.element_ty == tl.float32:
            x += bias[:, None]
        else:
            x = (x.to(tl.float32) + bias[None, :]).to(x.dtype)
    return x


@triton.jit
def store_rows(ptr, x, row, length, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    col = tl.arange(0, BLOCK_D)
    inside = row[:, None] < length
    if BLOCK_D != D:
        inside = inside & (col[None, :] < D)
    tl.store(ptr + row[:, None] * STRIDE + col[None, :], x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _added(found, bottom, like_ptr, IS_BOOL: tl.constexpr):
    """What a mask adds to scores."""
    if IS_BOOL:
        added = tl.where(found != 0, 0.0, float("-inf"))
    else:
        added = tl.where(found <= bottom, float("-inf"), found * unit(like_ptr))
    return added


@triton.jit
def load_keys(mask, key, length, PER_KEY: tl.constexpr):
    """[keys, 2]: a mask of keys, for `masked`; to be asked for before the product, so that it is there after it.

    With a second column, of which nothing is loaded, it is no longer cheaper in Triton's eyes that every thread loads all its
    keys, byte by byte, than that each key is loaded once.
    """
    mask_ptr, mask_start, _, stride_key, _ = mask
    if mask_ptr is not None and PER_KEY:
        column = tl.arange(0, 2)[None, :]
        place = mask_ptr + mask_start + key.to(tl.int64)[:, None] * stride_key
        return tl.load(place + column, mask=(column == 0) & (key < length)[:, None], other=0)
    else:  # noqa: RET505 - one branch is compiled
        return 0


@triton.jit
def masked(raw, scale, mask, keys, row, key, length, check, like_ptr, IS_BOOL: tl.constexpr, PER_KEY: tl.constexpr):
    """(s, factor) so that s * factor are the scores of raw = q k^T [rows, keys], -inf where a query may not attend.

    Without a mask the factor is left for the caller, whose subtraction of a maximum or log-sum-exp then costs nothing.
    mask: (pointer, offset of the sequence and head, strides of query and key, what is "masked"). It is added, as the
    reference does, so that NaN stays NaN. keys: of `load_keys`. check: whether keys past `length` may be in the tile.
    """
    mask_ptr, mask_start, stride_query, stride_key, bottom = mask
    if mask_ptr is None:
        if check:
            raw = tl.where((key < length)[None, :], raw, float("-inf"))
        return raw, scale
    else:  # noqa: RET505 - one branch is compiled
        if PER_KEY:
            added = _added(tl.sum(keys.to(tl.float32), 1), bottom, like_ptr, IS_BOOL)
            added = tl.where(key < length, added, float("-inf"))[None, :]
        else:
            place = mask_ptr + mask_start + key.to(tl.int64)[None, :] * stride_key
            inside = (row < length)[:, None] & (key < length)[None, :]
            found = tl.load(place + row.to(tl.int64)[:, None] * stride_query, mask=inside, other=0)
            added = _added(found.to(tl.float32), bottom, like_ptr, IS_BOOL)
            added = tl.where((key < length)[None, :], added, float("-inf"))
        return raw * scale + added, 1.0


@triton.jit
def load_state(rng_ptr):
    """(seed, offset), to be loaded once in front of a loop; zeros without dropout."""
    if rng_ptr is None:
        return 0, 0
    else:  # noqa: RET505 - one branch is compiled
        return random.load_state(rng_ptr)


@triton.jit
def random_words(state, sequence_head, row, start_key, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The random bytes of a [QUERIES, KEYS] tile; row [QUERIES]."""
    seed, offset = state
    group = start_key // 16 + tl.arange(0, KEYS // 16)
    return random.attention_words(seed, offset, sequence_head, row[:, None], group[None, :], QUERIES, KEYS)


@triton.jit
def kept(keep, x, finite):
    """x or 0. The 0 is made of a finite number: with a literal the compiler drops after rounding to 16 bits, at twice the work."""
    return tl.where(keep, x, finite * 0.0)


@triton.jit
def load_lse(lse_ptr, row, length, like_ptr):
    """Log-sum-exp in the units of scores: +inf past `length` and 0 for a row without a key, so that probabilities are 0 there."""
    lse = tl.load(lse_ptr + row, mask=row < length, other=float("inf")) * unit(like_ptr)
    return tl.where(lse == float("-inf"), 0.0, lse)
