"""attention forward: out = dropout(softmax(scale q k^T + mask)) v, lse = log sum exp of the scores before dropout.

Sequences of at most one tile: one program a (sequence, head) holds all keys at once, so its softmax needs no rescaling.
Longer: one program a tile of queries, keys in a loop with a running maximum; only the last tile of keys is masked.
Saved for backward: lse, one number a row; probabilities and dropout bits cost less to compute again than to read.
"""

import triton
import triton.language as tl

from bertfast.ops.attention import triton_common as common
from bertfast.triton import random

_VARYING = ["tokens", "sequences", "longest", "tiles", "threshold"]


@triton.jit
def _poison(
    out_ptr, lse_ptr, tokens, sequence, head, begin, length, stop,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    common.poison(out_ptr + head * D, sequence, begin, length, stop, H * D, D, BLOCK_D)
    common.poison(lse_ptr + head.to(tl.int64) * tokens, sequence, begin, length, stop, 1, 1, 1)


@triton.jit
def _finish(
    out_ptr, lse_ptr, lse_row, acc, m, total, head, begin, row, length, bad, inverse_rate,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Divide by the sum and store. A row without a key has sum 0: it gives 0 and -inf. `bad` bounds give NaN."""
    poison = tl.where(bad, float("nan"), 0.0)
    out = acc * ((inverse_rate + poison) / tl.where(total == 0.0, 1.0, total))[:, None]
    common.store_rows(out_ptr + begin * (H * D) + head * D, out, row, length, H * D, D, BLOCK_D)
    lse = m / common.unit(out_ptr) + tl.log(tl.where(total == 0.0, 1.0, total))
    lse = tl.where(total == 0.0, float("-inf"), lse) + poison
    tl.store(lse_ptr + lse_row + row, lse, mask=row < length)


@triton.jit(do_not_specialize=_VARYING)
def attention_fwd_single_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    cu_ptr,
    mask_ptr,
    rng_ptr,
    bias_ptr,
    box_ptr,
    tokens,
    sequences,
    longest,
    tiles,
    mask_stride_sequence,
    mask_stride_head,
    mask_stride_query,
    mask_stride_key,
    mask_bottom,
    score_scale,
    scale,
    inverse_rate,
    threshold,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    MASK_IS_BOOL: tl.constexpr,
    MASK_PER_KEY: tl.constexpr,
):
    sequence, head, _, begin, length, stop, bad = common.assignment(box_ptr, cu_ptr, tokens, sequences, longest, 1, H)
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    row = tl.arange(0, BLOCK)
    q = common.load_part(head_ptr, bias_ptr, 0, head, row, length, H, D, BLOCK_D)
    k = common.load_part(head_ptr, bias_ptr, 1, head, row, length, H, D, BLOCK_D)
    v = common.load_part(head_ptr, bias_ptr, 2, head, row, length, H, D, BLOCK_D)
    # Drawn while the rows are on their way where registers allow: on sm_90 two programs of 128 x 128 fit a multiprocessor up
    # to 128 of them. Compiled: with a mask 127 drawn here and 132 drawn late, without one 150 and 119.
    if rng_ptr is not None and mask_ptr is not None:
        words = common.random_words(common.load_state(rng_ptr), tl.program_id(0), row, 0, BLOCK, BLOCK)
    raw = tl.dot(q, tl.trans(k), input_precision="ieee")
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    mask = (mask_ptr, mask_start, mask_stride_query, mask_stride_key, mask_bottom)
    keys = common.load_keys(mask, row, length, MASK_PER_KEY)
    s, factor = common.masked(
        raw, score_scale, mask, keys, row, row, length, length < BLOCK, qkv_ptr, MASK_IS_BOOL, MASK_PER_KEY
    )
    m = tl.max(s, 1) * factor
    m = tl.where(m == float("-inf"), 0.0, m)
    p = common.power(s * factor - m[:, None], qkv_ptr)
    total = tl.sum(p, 1)
    if rng_ptr is not None:
        if mask_ptr is None:
            words = common.random_words(common.load_state(rng_ptr), tl.program_id(0), row, 0, BLOCK, BLOCK)
        keep = random.attention_keep(words, threshold, BLOCK, BLOCK)
        p = common.kept(keep, p, score_scale)
    acc = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    lse_row = common.statistics_row(cu_ptr, tokens, longest, sequence, head, begin, H)
    _finish(out_ptr, lse_ptr, lse_row, acc, m, total, head, begin, row, length, bad, inverse_rate, H, D, BLOCK_D)
    if cu_ptr is not None and bad:  # last: in front of the loads it costs registers
        _poison(out_ptr, lse_ptr, tokens, sequence, head, begin, length, stop, H, D, BLOCK_D)


@triton.jit
def _online_tile(
    acc, m, total, q, head_ptr, bias_ptr, mask, rng_ptr, state, sequence_head, head, row, start, length, score_scale, threshold,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK_IS_BOOL: tl.constexpr, MASK_PER_KEY: tl.constexpr, CHECK_KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of keys of the online softmax."""
    key = start + tl.arange(0, BLOCK_N)
    k = common.load_part(head_ptr, bias_ptr, 1, head, key, length, H, D, BLOCK_D)
    keys = common.load_keys(mask, key, length, MASK_PER_KEY)
    if rng_ptr is not None:  # first: while p v of the tile before is still being multiplied
        words = common.random_words(state, sequence_head, row, start, BLOCK_M, BLOCK_N)
    raw = common.times_transposed(q, k)
    s, factor = common.masked(
        raw, score_scale, mask, keys, row, key, length, CHECK_KEYS, head_ptr, MASK_IS_BOOL, MASK_PER_KEY
    )
    new_m = tl.maximum(m, tl.max(s, 1) * factor)
    safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)
    p = common.power(s * factor - safe_m[:, None], head_ptr)
    rescale = common.power(m - safe_m, head_ptr)
    total = total * rescale + tl.sum(p, 1)
    if rng_ptr is not None:
        keep = random.attention_keep(words, threshold, BLOCK_M, BLOCK_N)
        p = common.kept(keep, p, score_scale)
    v = common.load_part(head_ptr, bias_ptr, 2, head, key, length, H, D, BLOCK_D)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return acc, new_m, total


@triton.jit(do_not_specialize=_VARYING)
def attention_fwd_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    cu_ptr,
    mask_ptr,
    rng_ptr,
    bias_ptr,
    box_ptr,
    tokens,
    sequences,
    longest,
    tiles,
    mask_stride_sequence,
    mask_stride_head,
    mask_stride_query,
    mask_stride_key,
    mask_bottom,
    score_scale,
    scale,
    inverse_rate,
    threshold,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK_IS_BOOL: tl.constexpr,
    MASK_PER_KEY: tl.constexpr,
):
    sequence, head, tile, begin, length, stop, bad = common.assignment(
        box_ptr, cu_ptr, tokens, sequences, longest, tiles, H
    )
    if cu_ptr is not None and bad & (tile == 0):
        _poison(out_ptr, lse_ptr, tokens, sequence, head, begin, length, stop, H, D, BLOCK_D)
    if tile * BLOCK_M >= length:
        return
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = common.load_queries(head_ptr, bias_ptr, head, row, length, H, D, BLOCK_D)
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    mask = (mask_ptr, mask_start, mask_stride_query, mask_stride_key, mask_bottom)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    full = length // BLOCK_N * BLOCK_N
    sequence_head = sequence * H + head
    state = common.load_state(rng_ptr)
    for start in range(0, full, BLOCK_N):
        acc, m, total = _online_tile(
            acc, m, total, q, head_ptr, bias_ptr, mask, rng_ptr, state, sequence_head, head, row, start, length, score_scale,
            threshold, H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, False,
        )  # fmt: skip
    if full < length:
        acc, m, total = _online_tile(
            acc, m, total, q, head_ptr, bias_ptr, mask, rng_ptr, state, sequence_head, head, row, full, length, score_scale,
            threshold, H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, True,
        )  # fmt: skip
    lse_row = common.statistics_row(cu_ptr, tokens, longest, sequence, head, begin, H)
    _finish(out_ptr, lse_ptr, lse_row, acc, m, total, head, begin, row, length, bad, inverse_rate, H, D, BLOCK_D)
