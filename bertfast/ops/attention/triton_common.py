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
    """(begin int64, length, falls, long): clamped so that no row outside [0, tokens) is touched, and what was wrong."""
    if cu_ptr is None:
        begin = sequence.to(tl.int64) * longest
        length = longest
        falls = False
        long = False
    else:
        first = tl.load(cu_ptr + sequence)
        last = tl.load(cu_ptr + sequence + 1)
        falls = (first < 0) | (last < first) | (last > tokens)
        falls = falls | ((sequence == 0) & (first != 0)) | ((sequence == sequences - 1) & (last != tokens))
        long = last.to(tl.int64) - first > longest
        first = tl.minimum(tl.maximum(first, 0), tokens)
        last = tl.minimum(tl.maximum(last, first), tokens)
        begin = first.to(tl.int64)
        length = tl.minimum(last - first, longest)
    return begin, length, falls, long


@triton.jit
def report_bounds(box_ptr, cu_ptr, sequence, falls, long, once):
    """Tell the host, from the one program of a sequence where `once` is true."""
    if cu_ptr is not None:
        mailbox.report(box_ptr, SLOT_BOUNDS, sequence, falls & once)
        mailbox.report(box_ptr, SLOT_LONGEST, sequence, long & once)


@triton.jit
def load_rows(ptr, bias_ptr, bias_start, row, length, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] of one head, zero (or the bias) past `length` and past D; ptr: row 0 of the head."""
    col = tl.arange(0, BLOCK_D)
    inside = row[:, None] < length
    if BLOCK_D != D:
        inside = inside & (col[None, :] < D)
    x = tl.load(ptr + row[:, None] * STRIDE + col[None, :], mask=inside, other=0.0)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + bias_start + col, mask=col < D, other=0.0).to(tl.float32)
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
def masked(
    s,
    like_ptr,
    mask_ptr,
    mask_start,
    query,
    key,
    length,
    stride_query,
    stride_key,
    bottom,
    MASK_IS_BOOL: tl.constexpr,
    MASK_PER_KEY: tl.constexpr,
    CHECK_KEYS: tl.constexpr,
):
    """Scores plus the mask, -inf where a query may not attend; query and key broadcast to the shape of s.

    The mask is added, as the reference does, so that NaN stays NaN. CHECK_KEYS: whether the tile reaches past `length`.
    """
    if mask_ptr is not None:
        mask_ptr += mask_start
        if MASK_PER_KEY:
            found = tl.load(mask_ptr + key.to(tl.int64) * stride_key, mask=key < length, other=0)
        else:
            place = query.to(tl.int64) * stride_query + key.to(tl.int64) * stride_key
            found = tl.load(mask_ptr + place, mask=(query < length) & (key < length), other=0)
        if MASK_IS_BOOL:
            s += tl.where(found != 0, 0.0, float("-inf"))
        else:
            added = found.to(tl.float32)
            s += tl.where(added <= bottom, float("-inf"), added * unit(like_ptr))
    if CHECK_KEYS:
        s = tl.where(key < length, s, float("-inf"))
    return s


@triton.jit
def keep_bits(rng_ptr, sequence_head, query, start_key, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Kept probabilities of a [QUERIES, KEYS] tile; query [QUERIES]."""
    seed, offset = random.load_state(rng_ptr)
    group = start_key // 16 + tl.arange(0, KEYS // 16)
    return random.attention_keep(seed, offset, sequence_head, query[:, None], group[None, :], threshold, QUERIES, KEYS)


@triton.jit
def load_lse(lse_ptr, query, length, like_ptr):
    """Log-sum-exp in the units of scores: +inf past `length` and 0 for a row without a key, so that probabilities are 0 there."""
    lse = tl.load(lse_ptr + query, mask=query < length, other=float("inf")) * unit(like_ptr)
    return tl.where(lse == float("-inf"), 0.0, lse)
