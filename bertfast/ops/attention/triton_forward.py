"""attention forward: out = dropout(softmax(scale q k^T + mask)) v, lse = log sum exp of the scores before dropout.

Sequences of at most one tile: one program a (sequence, head) holds all keys at once, so its softmax needs no rescaling.
Longer: one program a tile of queries, keys in a loop with a running maximum; only the last tile of keys is masked.
Saved for backward: lse, one number a row; probabilities and dropout bits cost less to compute again than to read.
"""

import triton
import triton.language as tl

from bertfast.ops.attention import triton_common as common

_VARYING = ["tokens", "sequences", "longest", "tiles", "threshold"]


@triton.jit
def _finish(
    out_ptr,
    lse_ptr,
    acc,
    m,
    total,
    row,
    length,
    bad,
    inverse_rate,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Divide by the sum and store. A row without a key has sum 0: it gives 0 and -inf. `bad` bounds give NaN."""
    out = acc * (inverse_rate / tl.where(total == 0.0, 1.0, total))[:, None]
    out = tl.where(bad, float("nan"), out)
    common.store_rows(out_ptr, out, row, length, H * D, D, BLOCK_D)
    lse = m / common.unit(out_ptr) + tl.log(tl.where(total == 0.0, 1.0, total))
    lse = tl.where(total == 0.0, float("-inf"), lse)
    tl.store(lse_ptr + row, tl.where(bad, float("nan"), lse), mask=row < length)


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
    inverse_rate,
    threshold,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    MASK_IS_BOOL: tl.constexpr,
    MASK_PER_KEY: tl.constexpr,
):
    sequence_head = tl.program_id(0)
    sequence = sequence_head // H
    head = sequence_head % H
    begin, length, falls, long = common.sequence_bounds(cu_ptr, tokens, sequences, longest, sequence)
    common.report_bounds(box_ptr, cu_ptr, sequence, falls, long, head == 0)
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    row = tl.arange(0, BLOCK)
    q = common.load_rows(head_ptr, bias_ptr, head * D, row, length, 3 * H * D, D, BLOCK_D)
    k = common.load_rows(head_ptr + H * D, bias_ptr, (H + head) * D, row, length, 3 * H * D, D, BLOCK_D)
    v = common.load_rows(head_ptr + 2 * H * D, bias_ptr, (2 * H + head) * D, row, length, 3 * H * D, D, BLOCK_D)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * score_scale
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    s = common.masked(
        s,
        qkv_ptr,
        mask_ptr,
        mask_start,
        row[:, None],
        row[None, :],
        length,
        mask_stride_query,
        mask_stride_key,
        mask_bottom,
        MASK_IS_BOOL,
        MASK_PER_KEY,
        True,
    )
    m = tl.max(s, 1)
    m = tl.where(m == float("-inf"), 0.0, m)
    p = common.power(s - m[:, None], qkv_ptr)
    total = tl.sum(p, 1)
    if rng_ptr is not None:
        p = tl.where(common.keep_bits(rng_ptr, sequence_head, row, 0, threshold, BLOCK, BLOCK), p, 0.0)
    acc = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    lse_row = sequence_head.to(tl.int64) * longest if cu_ptr is None else head.to(tl.int64) * tokens + begin
    _finish(
        out_ptr + begin * (H * D) + head * D,
        lse_ptr + lse_row,
        acc,
        m,
        total,
        row,
        length,
        falls | long,
        inverse_rate,
        H,
        D,
        BLOCK_D,
    )


@triton.jit
def _online_tile(
    q, acc, m, total, head_ptr, bias_ptr, mask_ptr, mask_start, rng_ptr, sequence_head, head, row, start, length,
    mask_stride_query, mask_stride_key, mask_bottom, score_scale, threshold,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK_IS_BOOL: tl.constexpr, MASK_PER_KEY: tl.constexpr, CHECK_KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of keys of the online softmax."""
    key = start + tl.arange(0, BLOCK_N)
    k = common.load_rows(head_ptr + H * D, bias_ptr, (H + head) * D, key, length, 3 * H * D, D, BLOCK_D)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * score_scale
    s = common.masked(
        s,
        head_ptr,
        mask_ptr,
        mask_start,
        row[:, None],
        key[None, :],
        length,
        mask_stride_query,
        mask_stride_key,
        mask_bottom,
        MASK_IS_BOOL,
        MASK_PER_KEY,
        CHECK_KEYS,
    )
    new_m = tl.maximum(m, tl.max(s, 1))
    safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)
    p = common.power(s - safe_m[:, None], head_ptr)
    rescale = common.power(m - safe_m, head_ptr)
    total = total * rescale + tl.sum(p, 1)
    if rng_ptr is not None:
        p = tl.where(common.keep_bits(rng_ptr, sequence_head, row, start, threshold, BLOCK_M, BLOCK_N), p, 0.0)
    v = common.load_rows(head_ptr + 2 * H * D, bias_ptr, (2 * H + head) * D, key, length, 3 * H * D, D, BLOCK_D)
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
    # Tiles of one head are neighbours: they read the same keys out of L2.
    tile = tl.program_id(0) % tiles
    sequence_head = tl.program_id(0) // tiles
    sequence = sequence_head // H
    head = sequence_head % H
    begin, length, falls, long = common.sequence_bounds(cu_ptr, tokens, sequences, longest, sequence)
    common.report_bounds(box_ptr, cu_ptr, sequence, falls, long, (head == 0) & (tile == 0))
    if tile * BLOCK_M >= length:
        return
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = common.load_rows(head_ptr, bias_ptr, head * D, row, length, 3 * H * D, D, BLOCK_D)
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    full = length // BLOCK_N * BLOCK_N
    for start in range(0, full, BLOCK_N):
        acc, m, total = _online_tile(
            q, acc, m, total, head_ptr, bias_ptr, mask_ptr, mask_start, rng_ptr, sequence_head, head, row, start, length,
            mask_stride_query, mask_stride_key, mask_bottom, score_scale, threshold,
            H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, False,
        )  # fmt: skip
    if full < length:
        acc, m, total = _online_tile(
            q, acc, m, total, head_ptr, bias_ptr, mask_ptr, mask_start, rng_ptr, sequence_head, head, row, full, length,
            mask_stride_query, mask_stride_key, mask_bottom, score_scale, threshold,
            H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, True,
        )  # fmt: skip
    lse_row = sequence_head.to(tl.int64) * longest if cu_ptr is None else head.to(tl.int64) * tokens + begin
    _finish(
        out_ptr + begin * (H * D) + head * D,
        lse_ptr + lse_row,
        acc,
        m,
        total,
        row,
        length,
        falls | long,
        inverse_rate,
        H,
        D,
        BLOCK_D,
    )
