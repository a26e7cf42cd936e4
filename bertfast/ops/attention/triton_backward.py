"""attention backward: dv = pd^T dout, ds = p (dp - delta) scale, dq = ds k, dk = ds^T q, where delta = sum(dout * out).

Sequences of at most one tile: one program makes dq, dk and dv of a (sequence, head), with delta = sum(p dp) inside.
Longer: a kernel over tiles of queries makes dq and delta, then one over tiles of keys makes dk and dv. Five products become
seven, and in exchange nothing is added up through memory: gradients repeat bit for bit.
Tiles are [keys, queries] where dk and dv are made, so that p and ds are first operands and stay in registers.
"""

import triton
import triton.language as tl

from bertfast.ops.attention import triton_common as common

_VARYING = ["tokens", "sequences", "longest", "tiles", "threshold"]


@triton.jit(do_not_specialize=_VARYING)
def attention_bwd_single_kernel(
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
    sequence_head = tl.program_id(0)
    sequence = sequence_head // H
    head = sequence_head % H
    begin, length, _, _ = common.sequence_bounds(cu_ptr, tokens, sequences, longest, sequence)
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    grad_ptr = dqkv_ptr + begin * (3 * H * D) + head * D
    row = tl.arange(0, BLOCK)
    q = common.load_rows(head_ptr, bias_ptr, head * D, row, length, 3 * H * D, D, BLOCK_D)
    k = common.load_rows(head_ptr + H * D, bias_ptr, (H + head) * D, row, length, 3 * H * D, D, BLOCK_D)
    s = tl.dot(k, tl.trans(q), input_precision="ieee") * score_scale  # [keys, queries]
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    s = common.masked(
        s,
        qkv_ptr,
        mask_ptr,
        mask_start,
        row[None, :],
        row[:, None],
        length,
        mask_stride_query,
        mask_stride_key,
        mask_bottom,
        MASK_IS_BOOL,
        MASK_PER_KEY,
        True,
    )
    lse_row = sequence_head.to(tl.int64) * longest if cu_ptr is None else head.to(tl.int64) * tokens + begin
    p = common.power(s - common.load_lse(lse_ptr + lse_row, row, length, qkv_ptr)[None, :], qkv_ptr)
    v = common.load_rows(head_ptr + 2 * H * D, bias_ptr, (2 * H + head) * D, row, length, 3 * H * D, D, BLOCK_D)
    dout = common.load_rows(dout_ptr + begin * (H * D) + head * D, None, 0, row, length, H * D, D, BLOCK_D)
    dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
    if rng_ptr is not None:
        keep = tl.trans(common.keep_bits(rng_ptr, sequence_head, row, 0, threshold, BLOCK, BLOCK))
        dv = tl.dot(tl.where(keep, p, 0.0).to(q.dtype), dout, input_precision="ieee") * inverse_rate
        dp = tl.where(keep, dp * inverse_rate, 0.0)
    else:
        dv = tl.dot(p.to(q.dtype), dout, input_precision="ieee")
    common.store_rows(grad_ptr + 2 * H * D, dv, row, length, 3 * H * D, D, BLOCK_D)
    ds = (p * (dp - tl.sum(p * dp, 0)[None, :])).to(q.dtype)
    dk = tl.dot(ds, q, input_precision="ieee") * scale
    common.store_rows(grad_ptr + H * D, dk, row, length, 3 * H * D, D, BLOCK_D)
    dq = tl.dot(tl.trans(ds), k, input_precision="ieee") * scale
    common.store_rows(grad_ptr, dq, row, length, 3 * H * D, D, BLOCK_D)


@triton.jit
def _dq_tile(
    dq, q, dout, lse, delta, head_ptr, bias_ptr, mask_ptr, mask_start, rng_ptr, sequence_head, head, row, start, length,
    mask_stride_query, mask_stride_key, mask_bottom, score_scale, inverse_rate, threshold,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK_IS_BOOL: tl.constexpr, MASK_PER_KEY: tl.constexpr, CHECK_KEYS: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys to dq (before its scale)."""
    key = start + tl.arange(0, BLOCK_N)
    k = common.load_rows(head_ptr + H * D, bias_ptr, (H + head) * D, key, length, 3 * H * D, D, BLOCK_D)
    v = common.load_rows(head_ptr + 2 * H * D, bias_ptr, (2 * H + head) * D, key, length, 3 * H * D, D, BLOCK_D)
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
    p = common.power(s - lse[:, None], head_ptr)
    dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
    if rng_ptr is not None:
        keep = common.keep_bits(rng_ptr, sequence_head, row, start, threshold, BLOCK_M, BLOCK_N)
        dp = tl.where(keep, dp * inverse_rate, 0.0)
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
    tile = tl.program_id(0) % tiles
    sequence_head = tl.program_id(0) // tiles
    sequence = sequence_head // H
    head = sequence_head % H
    begin, length, _, _ = common.sequence_bounds(cu_ptr, tokens, sequences, longest, sequence)
    if tile * BLOCK_M >= length:
        return
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = common.load_rows(head_ptr, bias_ptr, head * D, row, length, 3 * H * D, D, BLOCK_D)
    dout = common.load_rows(dout_ptr + begin * (H * D) + head * D, None, 0, row, length, H * D, D, BLOCK_D)
    out = common.load_rows(out_ptr + begin * (H * D) + head * D, None, 0, row, length, H * D, D, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    lse_row = sequence_head.to(tl.int64) * longest if cu_ptr is None else head.to(tl.int64) * tokens + begin
    tl.store(delta_ptr + lse_row + row, delta, mask=row < length)
    lse = common.load_lse(lse_ptr + lse_row, row, length, qkv_ptr)
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    full = length // BLOCK_N * BLOCK_N
    for start in range(0, full, BLOCK_N):
        dq = _dq_tile(
            dq, q, dout, lse, delta, head_ptr, bias_ptr, mask_ptr, mask_start, rng_ptr, sequence_head, head, row, start, length,
            mask_stride_query, mask_stride_key, mask_bottom, score_scale, inverse_rate, threshold,
            H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, False,
        )  # fmt: skip
    if full < length:
        dq = _dq_tile(
            dq, q, dout, lse, delta, head_ptr, bias_ptr, mask_ptr, mask_start, rng_ptr, sequence_head, head, row, full, length,
            mask_stride_query, mask_stride_key, mask_bottom, score_scale, inverse_rate, threshold,
            H, D, BLOCK_D, BLOCK_M, BLOCK_N, MASK_IS_BOOL, MASK_PER_KEY, True,
        )  # fmt: skip
    common.store_rows(dqkv_ptr + begin * (3 * H * D) + head * D, dq * scale, row, length, 3 * H * D, D, BLOCK_D)


@triton.jit(do_not_specialize=_VARYING)
def attention_bwd_dkv_kernel(
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
    tile = tl.program_id(0) % tiles
    sequence_head = tl.program_id(0) // tiles
    sequence = sequence_head // H
    head = sequence_head % H
    begin, length, _, _ = common.sequence_bounds(cu_ptr, tokens, sequences, longest, sequence)
    if tile * BLOCK_N >= length:
        return
    head_ptr = qkv_ptr + begin * (3 * H * D) + head * D
    head_dout_ptr = dout_ptr + begin * (H * D) + head * D
    key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = common.load_rows(head_ptr + H * D, bias_ptr, (H + head) * D, key, length, 3 * H * D, D, BLOCK_D)
    v = common.load_rows(head_ptr + 2 * H * D, bias_ptr, (2 * H + head) * D, key, length, 3 * H * D, D, BLOCK_D)
    lse_row = sequence_head.to(tl.int64) * longest if cu_ptr is None else head.to(tl.int64) * tokens + begin
    mask_start = sequence.to(tl.int64) * mask_stride_sequence + head.to(tl.int64) * mask_stride_head
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, length, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        q = common.load_rows(head_ptr, bias_ptr, head * D, row, length, 3 * H * D, D, BLOCK_D)
        dout = common.load_rows(head_dout_ptr, None, 0, row, length, H * D, D, BLOCK_D)
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * score_scale  # [keys, queries]
        # Keys past the end need no mask: their rows of dk and dv are not stored.
        s = common.masked(
            s,
            qkv_ptr,
            mask_ptr,
            mask_start,
            row[None, :],
            key[:, None],
            length,
            mask_stride_query,
            mask_stride_key,
            mask_bottom,
            MASK_IS_BOOL,
            MASK_PER_KEY,
            False,
        )
        p = common.power(s - common.load_lse(lse_ptr + lse_row, row, length, qkv_ptr)[None, :], qkv_ptr)
        dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
        if rng_ptr is not None:
            keep = tl.trans(common.keep_bits(rng_ptr, sequence_head, row, tile * BLOCK_N, threshold, BLOCK_M, BLOCK_N))
            dv = tl.dot(tl.where(keep, p, 0.0).to(q.dtype), dout, dv, input_precision="ieee")
            dp = tl.where(keep, dp * inverse_rate, 0.0)
        else:
            dv = tl.dot(p.to(q.dtype), dout, dv, input_precision="ieee")
        delta = tl.load(delta_ptr + lse_row + row, mask=row < length, other=0.0)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    grad_ptr = dqkv_ptr + begin * (3 * H * D) + head * D
    common.store_rows(grad_ptr + H * D, dk * scale, key, length, 3 * H * D, D, BLOCK_D)
    common.store_rows(grad_ptr + 2 * H * D, dv * inverse_rate, key, length, 3 * H * D, D, BLOCK_D)
