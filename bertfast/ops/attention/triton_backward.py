"""attention backward: dv = pd^T dout, ds = p (dpd - delta), dq = ds k, dk = ds^T q, delta = sum(p dpd) = sum(dout * out) keep.

dpd is dout v^T where dropout keeps, pd the kept p, keep the share that dropout keeps: 1 / keep is left for the factors with
which dq, dk and dv are stored, and so is the scale. Sequences of at most one tile: one program makes all of dq, dk and dv of a
(sequence, head). Longer: a kernel over tiles of queries makes dq and delta, then one over tiles of keys makes dk and dv. Five
products become seven, and in exchange nothing is added up through memory: gradients repeat bit for bit.
Tiles are [queries, keys] everywhere: statistics are one or two numbers a thread and dropout words fall where they are used;
p and ds go through shared memory to be first operands transposed.
"""

import triton
import triton.language as tl

from bertfast.ops.attention import triton_common as common
from bertfast.triton import random

_VARYING = ["tokens", "sequences", "longest", "tiles", "threshold"]


@triton.jit
def _poison(dqkv_ptr, sequence, head, begin, length, stop, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    for part in tl.static_range(3):
        common.poison(dqkv_ptr + (part * H + head) * D, sequence, begin, length, stop, 3 * H * D, D, BLOCK_D)


@triton.jit(do_not_specialize=_VARYING)
def attention_bwd_single_kernel(
    qkv_ptr,
    dout_ptr,
    lse_ptr,
    dqkv_ptr,
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
    if cu_ptr is not None and bad:
        _poison(dqkv_ptr, sequence, head, begin, length, stop, H, D, BLOCK_D)
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    row = tl.arange(0, BLOCK)
    q = common.load_part(head_ptr, bias_ptr, 0, head, row, length, H, D, BLOCK_D)
    k = common.load_part(head_ptr, bias_ptr, 1, head, row, length, H, D, BLOCK_D)
    v = common.load_part(head_ptr, bias_ptr, 2, head, row, length, H, D, BLOCK_D)
    dout = common.load_rows(dout_ptr + begin * (H * D) + head * D, row, length, H * D, D, BLOCK_D)
    lse_row = common.statistics_row(cu_ptr, tokens, longest, sequence, head, begin, H)
    lse = common.load_lse(lse_ptr + lse_row, row, length, qkv_ptr)
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    mask = (mask_ptr, mask_start, mask_stride_query, mask_stride_key, mask_bottom)
    keys = common.load_keys(mask, row, length, MASK_PER_KEY)
    if rng_ptr is not None:  # while the rows are on their way
        words = common.random_words(common.load_state(rng_ptr), tl.program_id(0), row, 0, BLOCK, BLOCK)
    raw = tl.dot(q, tl.trans(k), input_precision="ieee")
    dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
    s, factor = common.masked(
        raw, score_scale, mask, keys, row, row, length, length < BLOCK, qkv_ptr, MASK_IS_BOOL, MASK_PER_KEY
    )
    p = common.power(s * factor - lse[:, None], qkv_ptr)
    pd = p
    if rng_ptr is not None:
        keep = random.attention_keep(words, threshold, BLOCK, BLOCK)
        pd = common.kept(keep, p, score_scale)
        dp = common.kept(keep, dp, score_scale)
    inverse_rate = tl.where(bad, float("nan"), inverse_rate)
    grad_ptr = dqkv_ptr + begin * (3 * H * D) + head * D
    dv = tl.dot(tl.trans(pd.to(q.dtype)), dout, input_precision="ieee") * inverse_rate
    common.store_rows(grad_ptr + 2 * H * D, dv, row, length, 3 * H * D, D, BLOCK_D)
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None])).to(q.dtype)
    dq = tl.dot(ds, k, input_precision="ieee") * (scale * inverse_rate)
    common.store_rows(grad_ptr, dq, row, length, 3 * H * D, D, BLOCK_D)
    dk = tl.dot(tl.trans(ds), q, input_precision="ieee") * (scale * inverse_rate)
    common.store_rows(grad_ptr + H * D, dk, row, length, 3 * H * D, D, BLOCK_D)


@triton.jit
def _dq_tile(
    dq, q, dout, lse, delta, head_ptr, bias_ptr, mask, rng_ptr, state, sequence_head, head, row, start, length, score_scale,
    threshold, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK_IS_BOOL: tl.constexpr, MASK_PER_KEY: tl.constexpr, CHECK_KEYS: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys to dq (before its scale)."""
    key = start + tl.arange(0, BLOCK_N)
    k = common.load_part(head_ptr, bias_ptr, 1, head, key, length, H, D, BLOCK_D)
    v = common.load_part(head_ptr, bias_ptr, 2, head, key, length, H, D, BLOCK_D)
    keys = common.load_keys(mask, key, length, MASK_PER_KEY)
    if rng_ptr is not None:  # first: while ds k of the tile before is still being multiplied
        words = common.random_words(state, sequence_head, row, start, BLOCK_M, BLOCK_N)
    raw = common.times_transposed(q, k)
    dp = common.times_transposed(dout, v)
    s, factor = common.masked(
        raw, score_scale, mask, keys, row, key, length, CHECK_KEYS, head_ptr, MASK_IS_BOOL, MASK_PER_KEY
    )
    p = common.power(s * factor - lse[:, None], head_ptr)
    if rng_ptr is not None:
        dp = common.kept(random.attention_keep(words, threshold, BLOCK_M, BLOCK_N), dp, score_scale)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit(do_not_specialize=_VARYING)
def attention_bwd_dq_kernel(
    qkv_ptr,
    dout_ptr,
    out_ptr,
    lse_ptr,
    delta_ptr,
    dqkv_ptr,
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
        _poison(dqkv_ptr, sequence, head, begin, length, stop, H, D, BLOCK_D)
    if tile * BLOCK_M >= length:
        return
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = common.load_queries(head_ptr, bias_ptr, head, row, length, H, D, BLOCK_D)
    dout = common.load_fixed(dout_ptr + begin * (H * D) + head * D, row, length, H * D, D, BLOCK_D)
    out = common.load_fixed(out_ptr + begin * (H * D) + head * D, row, length, H * D, D, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 0 if qkv_ptr.dtype.element_ty == tl.float32 else 1)
    delta /= inverse_rate
    lse_row = common.statistics_row(cu_ptr, tokens, longest, sequence, head, begin, H)
    tl.store(delta_ptr + lse_row + row, delta, mask=row < length)
    lse = common.load_lse(lse_ptr + lse_row, row, length, qkv_ptr)
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    mask = (mask_ptr, mask_start, mask_stride_query, mask_stride_key, mask_bottom)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    full = length // BLOCK_N * BLOCK_N
    sequence_head = sequence * H + head
    state = common.load_state(rng_ptr)
    for start in range(0, full, BLOCK_N):
        dq = _dq_tile(
            dq, q, dout, lse, delta, head_ptr, bias_ptr, mask, rng_ptr, state, sequence_head, head, row, start, length, score_scale,
            threshold, H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, False,
        )  # fmt: skip
    if full < length:
        dq = _dq_tile(
            dq, q, dout, lse, delta, head_ptr, bias_ptr, mask, rng_ptr, state, sequence_head, head, row, full, length, score_scale,
            threshold, H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, True,
        )  # fmt: skip
    dq *= tl.where(bad, float("nan"), scale * inverse_rate)
    common.store_rows(dqkv_ptr + begin * (3 * H * D) + head * D, dq, row, length, 3 * H * D, D, BLOCK_D)


@triton.jit(do_not_specialize=_VARYING)
def attention_bwd_dkv_kernel(
    qkv_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dqkv_ptr,
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
    sequence, head, tile, begin, length, _, bad = common.assignment(None, cu_ptr, tokens, sequences, longest, tiles, H)
    if tile * BLOCK_N >= length:
        return
    # Without a way past the loop: accumulators that are zeroed on it make ptxas wait after every single wgmma.
    tl.assume(length > 0)
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    head_dout_ptr = dout_ptr + begin * (H * D) + head * D
    key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = common.load_part(head_ptr, bias_ptr, 1, head, key, length, H, D, BLOCK_D)
    v = common.load_part(head_ptr, bias_ptr, 2, head, key, length, H, D, BLOCK_D)
    lse_row = common.statistics_row(cu_ptr, tokens, longest, sequence, head, begin, H)
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    mask = (mask_ptr, mask_start, mask_stride_query, mask_stride_key, mask_bottom)
    sequence_head = sequence * H + head
    state = common.load_state(rng_ptr)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    keys = common.load_keys(mask, key, length, MASK_PER_KEY)
    for start in range(0, length, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        q = common.load_queries(head_ptr, bias_ptr, head, row, length, H, D, BLOCK_D)
        dout = common.load_rows(head_dout_ptr, row, length, H * D, D, BLOCK_D)
        if rng_ptr is not None:
            words = common.random_words(state, sequence_head, row, tile * BLOCK_N, BLOCK_M, BLOCK_N)
        raw = common.times_transposed(q, k)  # as dq does, so that float32 scores are the same bits
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        # Keys past the end need no mask: their rows of dk and dv are not stored.
        s, factor = common.masked(
            raw, score_scale, mask, keys, row, key, length, False, qkv_ptr, MASK_IS_BOOL, MASK_PER_KEY
        )
        p = common.power(s * factor - common.load_lse(lse_ptr + lse_row, row, length, qkv_ptr)[:, None], qkv_ptr)
        pd = p
        if rng_ptr is not None:
            keep = random.attention_keep(words, threshold, BLOCK_M, BLOCK_N)
            pd = common.kept(keep, p, score_scale)
            dp = common.kept(keep, dp, score_scale)
        dv = tl.dot(tl.trans(pd.to(q.dtype)), dout, dv, input_precision="ieee")
        delta = tl.load(delta_ptr + lse_row + row, mask=row < length, other=0.0)
        ds = p * (dp - delta[:, None])
        if qkv_ptr.dtype.element_ty == tl.float32:
            q = tl.trans(q)
        dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision="ieee")
    inverse_rate = tl.where(bad, float("nan"), inverse_rate)
    grad_ptr = dqkv_ptr + begin * (3 * H * D) + head * D
    common.store_rows(grad_ptr + H * D, dk * (scale * inverse_rate), key, length, 3 * H * D, D, BLOCK_D)
    common.store_rows(grad_ptr + 2 * H * D, dv * inverse_rate, key, length, 3 * H * D, D, BLOCK_D)
