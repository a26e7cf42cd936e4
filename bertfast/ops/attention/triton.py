"""Launchers of the Triton attention kernels; see triton_forward.py and triton_backward.py for how work is split.

Results repeat bit for bit, gradients included, for the same shapes, dtype, architecture and launch table: there are no
atomics, and every sum runs in a fixed order. What the kernels do not take goes to the reference: float64, heads above 128,
scales that are not positive.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast.ops import rng as dropout_bits
from bertfast.ops.attention import reference, triton_backward, triton_forward, tuning
from bertfast.ops.dropout_add_norm.reference import compute_dtype
from bertfast.triton import launch, mailbox, tables

_WHERE = "found wrong at sequence {place} in an earlier call"
mailbox.meaning(1, ValueError, f"attention: cu_seqlens must rise from 0 to the tokens of qkv; {_WHERE}")
mailbox.meaning(2, ValueError, f"attention: max_seqlen is less than the length of a sequence; {_WHERE}")
_LOG2E = 1.4426950408889634


def _taken(qkv: Tensor, longest: int, scale: float) -> bool:
    """Whether the kernels take it. Offsets inside one sequence are 32 bits; maxima are taken before scores are scaled."""
    heads, size = qkv.shape[-2:]
    return qkv.dtype != torch.float64 and 0 < size <= 128 and longest * 3 * heads * size < 2**31 and scale > 0


def _block_d(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _mask(
    mask: Tensor | None, batch: int, heads: int, seqlen: int
) -> tuple[Tensor | None, tuple[int, ...], float, bool]:
    """(mask, its four strides, 0 where it is broadcast, what is "masked", whether it is boolean); nothing is copied."""
    if mask is None:
        return None, (0, 0, 0, 0), 0.0, False
    boolean = mask.dtype == torch.bool
    bottom = 0.0 if boolean else torch.finfo(mask.dtype).min / 2
    if mask.dtype == torch.float64:
        mask, bottom = mask.float(), float("-inf")
    mask = mask.view(torch.uint8) if boolean else mask
    view = mask.expand(batch, heads, seqlen, seqlen)
    return mask, view.stride(), bottom, boolean


def _dropout(p: float, rng: Tensor | None) -> tuple[Tensor | None, float, int]:
    if rng is None or p == 0.0:
        return None, 1.0, 0
    return rng, 1.0 / dropout_bits.keep_rate_attention(p), dropout_bits.threshold_attention(p)


def _check(cu_seqlens: Tensor, qkv: Tensor, longest: int) -> None:
    if cu_seqlens.shape[0] < 2 and qkv.shape[0]:
        raise ValueError(f"attention: cu_seqlens must rise from 0 to the {qkv.shape[0]} tokens of qkv, got no sequence")
    if launch.INTERPRETED and qkv.device.type != "meta":
        reference.check_cu_seqlens(cu_seqlens, qkv.shape[0], longest)
    else:
        mailbox.check(qkv.device)


class _Work(NamedTuple):
    """What every kernel takes besides its own tensors and tile."""

    pointers: tuple[Tensor | None, ...]
    sizes: tuple[int, int, int]  # tokens, sequences, longest
    numbers: tuple[float, ...]
    constants: dict[str, int]
    masks: dict[str, bool]


def _work(
    qkv: Tensor,
    longest: int,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    scale: float,
    dropout_p: float,
    rng: Tensor | None,
    bias: Tensor | None,
) -> _Work:
    heads, size = qkv.shape[-2:]
    sequences = qkv.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    tokens = sequences * longest if cu_seqlens is None else qkv.shape[0]
    mask, strides, bottom, boolean = _mask(mask, sequences, heads, longest)
    rng, inverse_rate, threshold = _dropout(dropout_p, rng)
    score_scale = scale if qkv.dtype == torch.float32 else scale * _LOG2E
    return _Work(
        (cu_seqlens, mask, rng, bias, mailbox.box(qkv.device)),
        (tokens, sequences, longest),
        (*strides, bottom, score_scale, scale, inverse_rate, threshold),
        {"H": heads, "D": size, "BLOCK_D": _block_d(size)},
        {"MASK_IS_BOOL": boolean, "MASK_PER_KEY": strides[2] == 0},
    )


def _launch(
    kernel: Any, tensors: tuple, work: _Work, tiles: int, block: dict[str, int], warps: int, stages: int
) -> None:
    args = (*tensors, *work.pointers, *work.sizes, tiles, *work.numbers)
    grid = (tiles * work.constants["H"] * work.sizes[1],)
    launch.launch(kernel, grid, args, work.constants | block | work.masks, warps=warps, stages=stages)


def _launch_tiles(kernel: Any, tensors: tuple, work: _Work, tile: tables.Tile, along: int) -> None:
    """One program for every `along` queries or keys of the longest sequence."""
    block = {"BLOCK_M": tile["queries"], "BLOCK_N": tile["keys"]}
    _launch(kernel, tensors, work, launch.cdiv(work.sizes[2], along), block, tile["warps"], tile["stages"])


def _forward(qkv: Tensor, out: Tensor, lse: Tensor, longest: int, *settings: Any) -> None:
    work = _work(qkv, longest, *settings)
    sizes = work.constants["BLOCK_D"], qkv.element_size(), launch.architecture(qkv.device)
    tensors = qkv.contiguous(), out, lse
    block = tuning.single_block(longest, *sizes, backward=False)
    if block:
        kernel = triton_forward.attention_fwd_single_kernel
        _launch(kernel, tensors, work, 1, {"BLOCK": block}, tuning.single_warps(block, *sizes[1:]), 1)
    else:
        dropout = work.pointers[2] is not None  # rng
        tile = tuning.forward_tile(*sizes, dropout)
        _launch_tiles(triton_forward.attention_fwd_kernel, tensors, work, tile, tile["queries"])


def forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    rng: Tensor | None,
    *,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """attention_fwd. bias: [3, H, D] contiguous, added to qkv where it is read; rounded to qkv's dtype as a GEMM's would be."""
    if not _taken(qkv, max_seqlen, scale):
        return reference.forward(qkv if bias is None else qkv + bias, cu_seqlens, max_seqlen, scale, dropout_p, rng)
    _check(cu_seqlens, qkv, max_seqlen)
    tokens, _, heads, size = qkv.shape
    out = qkv.new_empty(tokens, heads, size)
    lse = qkv.new_empty(heads, tokens, dtype=compute_dtype(qkv))
    if tokens:
        _forward(qkv, out, lse, max_seqlen, cu_seqlens.contiguous(), None, scale, dropout_p, rng, bias)
    return out, lse


def padded_forward(
    qkv: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout_p: float,
    rng: Tensor | None,
    *,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """attention_padded_fwd; bias as in `forward`."""
    batch, seqlen, _, heads, size = qkv.shape
    if not _taken(qkv, seqlen, scale):
        return reference.padded_forward(qkv if bias is None else qkv + bias, mask, scale, dropout_p, rng)
    out = qkv.new_empty(batch, seqlen, heads, size)
    lse = qkv.new_empty(batch, heads, seqlen, dtype=compute_dtype(qkv))
    if out.numel():
        _forward(qkv, out, lse, seqlen, None, mask, scale, dropout_p, rng, bias)
    return out, lse


def _backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, longest: int, *settings: Any) -> Tensor:
    work = _work(qkv, longest, *settings)
    sizes = work.constants["BLOCK_D"], qkv.element_size(), launch.architecture(qkv.device)
    qkv, dout, out, lse = (t.contiguous() for t in (qkv, dout, out, lse))
    dqkv = torch.empty_like(qkv)
    block = tuning.single_block(longest, *sizes, backward=True)
    if block:
        kernel, tensors = triton_backward.attention_bwd_single_kernel, (qkv, dout, lse, dqkv)
        _launch(kernel, tensors, work, 1, {"BLOCK": block}, tuning.single_warps(block, *sizes[1:]), 1)
        return dqkv
    delta = torch.empty_like(lse)
    dq, dkv = tuning.backward_tile("dq", *sizes), tuning.backward_tile("dkv", *sizes)
    # dq first: it also writes delta, which dk and dv read.
    _launch_tiles(triton_backward.attention_bwd_dq_kernel, (qkv, dout, out, lse, delta, dqkv), work, dq, dq["queries"])
    _launch_tiles(triton_backward.attention_bwd_dkv_kernel, (qkv, dout, lse, delta, dqkv), work, dkv, dkv["keys"])
    return dqkv


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
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """attention_bwd. With a bias, the gradient of qkv + bias, which is that of both."""
    if not _taken(qkv, max_seqlen, scale):
        given = qkv if bias is None else qkv + bias
        return reference.backward(dout, given, out, lse, cu_seqlens, max_seqlen, scale, dropout_p, rng)
    _check(cu_seqlens, qkv, max_seqlen)
    if not qkv.numel():
        return torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return _backward(dout, qkv, out, lse, max_seqlen, cu_seqlens.contiguous(), None, scale, dropout_p, rng, bias)


def padded_backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout_p: float,
    rng: Tensor | None,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """attention_padded_bwd; bias as in `backward`."""
    seqlen = qkv.shape[1]
    if not _taken(qkv, seqlen, scale):
        return reference.padded_backward(
            dout, qkv if bias is None else qkv + bias, out, lse, mask, scale, dropout_p, rng
        )
    if not qkv.numel():
        return torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return _backward(dout, qkv, out, lse, seqlen, None, mask, scale, dropout_p, rng, bias)
