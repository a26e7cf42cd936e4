"""Launchers of the Triton attention kernels; see triton_forward.py and triton_backward.py for how work is split.

Results repeat bit for bit, gradients included, for the same shapes, dtype, architecture and launch table: there are no
atomics, and every sum runs in a fixed order. What the kernels do not take (float64, heads above 128, scales that are not positive) goes to the reference.
"""

import torch
from torch import Tensor

from bertfast.ops import rng as dropout_bits
from bertfast.ops.attention import reference, triton_backward, triton_forward, tuning
from bertfast.ops.dropout_add_norm.reference import compute_dtype
from bertfast.triton import launch, mailbox

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


def _forward(qkv, out, lse, cu_seqlens, longest, mask, scale, dropout_p, rng, bias) -> None:
    heads, size = qkv.shape[-2:]
    tokens = out.numel() // max(1, heads * size)
    sequences = qkv.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    mask, strides, bottom, boolean = _mask(mask, sequences, heads, longest)
    rng, inverse_rate, threshold = _dropout(dropout_p, rng)
    block_d, itemsize = _block_d(size), qkv.element_size()
    constants = {"H": heads, "D": size, "BLOCK_D": block_d}
    arch = launch.architecture(qkv.device)
    block = tuning.single_block(longest, block_d, itemsize, arch)
    tile = tuning.forward_tile(block_d, itemsize, arch)
    tiles = 1 if block else -(-longest // tile.queries)
    args = (
        *(qkv.contiguous(), out, lse, cu_seqlens, mask, rng, bias, mailbox.box(qkv.device)),
        *(
            tokens,
            sequences,
            longest,
            tiles,
            *strides,
            bottom,
            scale * (1.0 if qkv.dtype == torch.float32 else _LOG2E),
            inverse_rate,
            threshold,
        ),
    )
    if block:
        kernel, warps, stages = triton_forward.attention_fwd_single_kernel, tuning.single_warps(block), 1
        constants |= {"BLOCK": block, "MASK_IS_BOOL": boolean, "MASK_PER_KEY": strides[2] == 0}
    else:
        kernel, warps, stages = triton_forward.attention_fwd_kernel, tile.warps, tile.stages
        constants |= {
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
            "MASK_IS_BOOL": boolean,
            "MASK_PER_KEY": strides[2] == 0,
        }
    launch.launch(kernel, (tiles * heads * sequences,), args, constants, warps=warps, stages=stages)


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
        _forward(qkv, out, lse, cu_seqlens.contiguous(), max_seqlen, None, scale, dropout_p, rng, bias)
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
        _forward(qkv, out, lse, None, seqlen, mask, scale, dropout_p, rng, bias)
    return out, lse


def _backward(dout, qkv, out, lse, cu_seqlens, longest, mask, scale, dropout_p, rng, bias) -> Tensor:
    heads, size = qkv.shape[-2:]
    tokens = out.numel() // max(1, heads * size)
    sequences = qkv.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    mask, strides, bottom, boolean = _mask(mask, sequences, heads, longest)
    rng, inverse_rate, threshold = _dropout(dropout_p, rng)
    block_d, itemsize = _block_d(size), qkv.element_size()
    arch = launch.architecture(qkv.device)
    block = tuning.single_block(longest, block_d, itemsize, arch)
    tile = tuning.backward_tile(block_d, itemsize, arch)
    tiles = 1 if block else -(-longest // tile.queries)
    qkv = qkv.contiguous()
    dqkv = torch.empty_like(qkv)
    delta = None if block else torch.empty_like(lse, memory_format=torch.contiguous_format)
    numbers = (
        tokens,
        sequences,
        longest,
        tiles,
        *strides,
        bottom,
        scale * (1.0 if qkv.dtype == torch.float32 else _LOG2E),
        scale,
        inverse_rate,
        threshold,
    )
    pointers = (cu_seqlens, mask, rng, bias, mailbox.box(qkv.device))
    constants = {"H": heads, "D": size, "BLOCK_D": block_d}
    inputs = (qkv, dout.contiguous(), out.contiguous(), lse.contiguous(), delta, dqkv)
    args, last = (*inputs, *pointers, *numbers), {"MASK_IS_BOOL": boolean, "MASK_PER_KEY": strides[2] == 0}
    if block:
        kernel, warps = triton_backward.attention_bwd_single_kernel, tuning.single_warps(block)
        launch.launch(kernel, (heads * sequences,), args, constants | {"BLOCK": block} | last, warps=warps, stages=1)
        return dqkv
    # dq first: it also writes delta, which dk and dv read.
    constants |= {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys} | last
    shape = {"warps": tile.warps, "stages": tile.stages}
    launch.launch(triton_backward.attention_bwd_dq_kernel, (tiles * heads * sequences,), args, constants, **shape)
    tiles = -(-longest // tile.keys)
    args = (*inputs, *pointers, *numbers[:3], tiles, *numbers[4:])
    launch.launch(triton_backward.attention_bwd_dkv_kernel, (tiles * heads * sequences,), args, constants, **shape)
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
    cu_seqlens = cu_seqlens.contiguous()
    return _backward(dout, qkv, out, lse, cu_seqlens, max_seqlen, None, scale, dropout_p, rng, bias)


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
    return _backward(dout, qkv, out, lse, None, seqlen, mask, scale, dropout_p, rng, bias)
