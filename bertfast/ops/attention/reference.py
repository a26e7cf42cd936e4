"""Eager meaning of attention on packed tokens and on padded batches.

    p = softmax(scale * q k^T + mask),   out = dropout(p) v,   lse = log sum exp of the scores

Arithmetic in float32 (float64 for float64). A row with no key left gives zeros, lse = -inf, and zero gradients.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bertfast.ops import rng as dropout_bits
from bertfast.ops.dropout_add_norm.reference import compute_dtype


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask to add to scores: boolean False, and values at the bottom of the mask's own range, become -inf."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    bottom = torch.finfo(mask.dtype).min / 2
    return mask.to(dtype).masked_fill(mask <= bottom, float("-inf"))


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax [B, H, S, S] and log-sum-exp [B, H, S]; a row without keys, whose softmax would be NaN, is zero."""
    scores = (q @ k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, -1)
    return torch.softmax(scores, -1).masked_fill((lse == float("-inf"))[..., None], 0.0), lse


def _dense_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, keep: Tensor | None, rate: float
):
    """q, k, v [B, H, S, D] in compute dtype; keep [B, H, S, S]."""
    p, lse = _probabilities(q, k, mask, scale)
    return (p if keep is None else p * keep / rate) @ v, lse


def _dense_backward(dout, q, k, v, mask, scale, keep, rate):
    p, _ = _probabilities(q, k, mask, scale)
    factor = 1.0 if keep is None else keep / rate
    dv = (p * factor).transpose(-1, -2) @ dout
    dp = (dout @ v.transpose(-1, -2)) * factor
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    return ds @ k, ds.transpose(-1, -2) @ q, dv


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> list[int]:
    """The boundaries as a list; ValueError unless they rise from 0 to `tokens` and no sequence is longer than max_seqlen."""
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(bounds)]
    if not bounds or bounds[0] != 0 or bounds[-1] != tokens:
        ends = f"{bounds[0]} ... {bounds[-1]}" if bounds else "none"
        raise ValueError(f"attention: cu_seqlens must rise from 0 to the {tokens} tokens of qkv, got {ends}")
    if min(lengths, default=0) < 0:
        bad = next(i for i, length in enumerate(lengths) if length < 0)
        raise ValueError(
            f"attention: cu_seqlens must rise from 0 to the {tokens} tokens of qkv, "
            f"but falls from {bounds[bad]} to {bounds[bad + 1]} at sequence {bad}"
        )
    if max(lengths, default=0) > max_seqlen:
        raise ValueError(f"attention: max_seqlen is {max_seqlen} but a sequence has {max(lengths)} tokens")
    return bounds


def forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, dropout_p: float, rng: Tensor | None
) -> tuple[Tensor, Tensor]:
    tokens, _, heads, size = qkv.shape
    dtype = compute_dtype(qkv)
    out = qkv.new_zeros(tokens, heads, size)
    lse = qkv.new_full((heads, tokens), float("-inf"), dtype=dtype)
    bounds = check_cu_seqlens(cu_seqlens, tokens, max_seqlen)
    keep_all = _keep(rng, len(bounds) - 1, heads, max_seqlen, max_seqlen, dropout_p)
    for i, (begin, end) in enumerate(pairwise(bounds)):
        q, k, v = qkv[begin:end].to(dtype).permute(1, 2, 0, 3)
        keep = None if keep_all is None else keep_all[i, :, : end - begin, : end - begin]
        y, row_lse = _dense_forward(q, k, v, None, scale, keep, dropout_bits.keep_rate_attention(dropout_p))
        out[begin:end] = y.transpose(0, 1).to(qkv.dtype)
        lse[:, begin:end] = row_lse
    return out, lse


def backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    rng: Tensor | None,
) -> Tensor:
    tokens, _, heads, _ = qkv.shape
    dtype = compute_dtype(qkv)
    dqkv = torch.zeros_like(qkv, memory_format=torch.contiguous_format)
    bounds = check_cu_seqlens(cu_seqlens, tokens, max_seqlen)
    keep_all = _keep(rng, len(bounds) - 1, heads, max_seqlen, max_seqlen, dropout_p)
    for i, (begin, end) in enumerate(pairwise(bounds)):
        q, k, v = qkv[begin:end].to(dtype).permute(1, 2, 0, 3)
        keep = None if keep_all is None else keep_all[i, :, : end - begin, : end - begin]
        g = dout[begin:end].to(dtype).transpose(0, 1)
        gradients = _dense_backward(g, q, k, v, None, scale, keep, dropout_bits.keep_rate_attention(dropout_p))
        dqkv[begin:end] = torch.stack(gradients).permute(2, 0, 1, 3).to(qkv.dtype)
    return dqkv


def _keep(rng: Tensor | None, batch: int, heads: int, queries: int, keys: int, p: float) -> Tensor | None:
    return None if rng is None or p == 0.0 else dropout_bits.keep_attention(rng, batch, heads, queries, keys, p)


def padded_forward(
    qkv: Tensor, mask: Tensor | None, scale: float, dropout_p: float, rng: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, seqlen, _, heads, _ = qkv.shape
    dtype = compute_dtype(qkv)
    q, k, v = qkv.to(dtype).permute(2, 0, 3, 1, 4)
    keep = _keep(rng, batch, heads, seqlen, seqlen, dropout_p)
    out, lse = _dense_forward(q, k, v, additive(mask, dtype), scale, keep, dropout_bits.keep_rate_attention(dropout_p))
    return out.transpose(1, 2).to(qkv.dtype).contiguous(), lse


def padded_backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout_p: float,
    rng: Tensor | None,
) -> Tensor:
    batch, seqlen, _, heads, _ = qkv.shape
    dtype = compute_dtype(qkv)
    q, k, v = qkv.to(dtype).permute(2, 0, 3, 1, 4)
    keep = _keep(rng, batch, heads, seqlen, seqlen, dropout_p)
    g = dout.to(dtype).transpose(1, 2)
    gradients = _dense_backward(
        g, q, k, v, additive(mask, dtype), scale, keep, dropout_bits.keep_rate_attention(dropout_p)
    )
    return torch.stack(gradients).permute(1, 3, 0, 2, 4).to(qkv.dtype).contiguous()
