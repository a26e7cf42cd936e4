"""packing: real tokens of a padded batch, moved out once before a stack of layers and back once after it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bertfast import _library
from bertfast.ops.packing import reference

_library.define("pack_mask(Tensor mask) -> (Tensor indices, Tensor cu_seqlens)")
_library.define("unpad(Tensor x, Tensor indices) -> Tensor")
_library.define("repad(Tensor x, Tensor indices, SymInt rows) -> Tensor")
_library.reference("pack_mask")(reference.pack_mask)
_library.reference("unpad")(reference.unpad)
_library.reference("repad")(reference.repad)
_library.implement("pack_mask", "CUDA", "bertfast.ops.packing.triton:pack_mask")
_library.implement("unpad", "CUDA", "bertfast.ops.packing.triton:unpad")
_library.implement("repad", "CUDA", "bertfast.ops.packing.triton:repad")


@_library.fake("pack_mask")
def _(mask):
    tokens = torch.library.get_ctx().new_dynamic_size()
    return mask.new_empty(tokens, dtype=torch.int64), mask.new_empty(mask.shape[0] + 1, dtype=torch.int32)


@_library.fake("unpad")
def _(x, indices):
    return x.new_empty(indices.shape[0], x.shape[1])


@_library.fake("repad")
def _(x, indices, rows):
    return x.new_empty(rows, x.shape[1])


def _unpad_setup(ctx, inputs, output) -> None:
    x, indices = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(indices)


def _unpad_backward(ctx, dy):
    (indices,) = ctx.saved_tensors
    return _library.op("repad")(dy.contiguous(), indices, ctx.rows), None


def _repad_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _repad_backward(ctx, dy):
    (indices,) = ctx.saved_tensors
    return _library.op("unpad")(dy.contiguous(), indices), None, None


_library.differentiate("unpad", _unpad_backward, _unpad_setup)
_library.differentiate("repad", _repad_backward, _repad_setup)


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch [B, S] are.

    Attributes:
        indices: [T] int64, positions of the real tokens in the flattened batch, rising.
        cu_seqlens: [B + 1] int32, where each sequence begins among the packed tokens.
        max_seqlen: tokens of the longest sequence.
        batch, seqlen: B and S.
    """

    indices: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    batch: int
    seqlen: int


class Survey(NamedTuple):
    """What a mask holds, as numbers on the host.

    Attributes:
        tokens: real ones.
        longest: tokens of the sequence that has most.
        begins: whether each sequence's first position is real.
    """

    tokens: int
    longest: int
    begins: bool


def survey(mask: Tensor) -> Survey:
    """Look through a bool mask [B, S]; the host waits for a GPU once."""
    batch, seqlen = mask.shape
    if mask.numel() == 0:
        return Survey(0, 0, True)
    if mask.device.type == "cpu" and bool(mask.all()):  # at once where nothing is to be counted
        return Survey(batch * seqlen, seqlen, True)
    # Twice the length, and one more where the first position is real: one copy to the host.
    rows = torch.add(mask[:, 0], mask.sum(1), alpha=2).tolist()
    lengths = [row >> 1 for row in rows]
    return Survey(sum(lengths), max(lengths), all(row & 1 for row in rows))


def _pack_surveyed(mask: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """`pack_mask` of a mask with so many real tokens, by torch's functions: no shape depends on data, so nothing is waited for."""
    flat = mask.flatten()
    count = flat.cumsum(0)  # [B S], of real tokens up to each position
    # Real tokens go to 2, 3, ..., padding to 1, which nobody reads: the indices begin on 16 bytes, as kernels like it.
    indices = count.new_empty(tokens + 2)
    indices[1:].scatter_(0, count * flat, torch.arange(flat.shape[0], device=mask.device))
    bounds = torch.zeros(mask.shape[0] + 1, dtype=torch.int32, device=mask.device)
    if mask.numel():
        bounds[1:] = count[mask.shape[1] - 1 :: mask.shape[1]]  # at the end of each row
    return indices[2:], bounds


def pack(mask: Tensor, known: Survey | None = None) -> Packing:
    """The packing of a mask [B, S], true (or non-zero) at real tokens: right or left padding, holes, empty rows alike.

    known: `survey` of the mask, where somebody has made it already: then a GPU is not waited for; once otherwise.

    Raises:
        ValueError: unless the mask has two dimensions; for numbers below 0, as masks to be added to scores have.
    """
    if mask.dim() != 2:
        raise ValueError(f"pack: the mask must be [B, S], got {tuple(mask.shape)}")
    if mask.is_floating_point() and not torch.compiler.is_compiling() and bool((mask < 0).any()):
        raise ValueError(
            "pack: the mask has numbers below 0, as masks to be added to scores have; give one that is true or 1 at real tokens"
        )
    mask = mask.to(torch.bool)
    if torch.compiler.is_compiling():
        indices, cu_seqlens = _library.op("pack_mask")(mask)
        longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max()) if mask.shape[0] else 0
    else:
        known = survey(mask) if known is None else known
        longest = known.longest
        on_gpu = mask.device.type == "cuda"  # where pack_mask waits to know how many tokens there are
        indices, cu_seqlens = _pack_surveyed(mask, known.tokens) if on_gpu else _library.op("pack_mask")(mask)
    return Packing(indices, cu_seqlens, longest, mask.shape[0], mask.shape[1])


def unpad(x: Tensor, packing: Packing) -> Tensor:
    """The real tokens of x [B, S, ...] as [T, ...]. Its gradient is `repad`.

    Raises:
        ValueError: where x does not begin with the packing's B and S.
    """
    if x.shape[:2] != (packing.batch, packing.seqlen):
        raise ValueError(
            f"unpad: x is {tuple(x.shape)} but the packing is of a {packing.batch} x {packing.seqlen} batch"
        )
    rows = x.flatten(0, 1)
    rows = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
    return _library.op("unpad")(rows, packing.indices).view(packing.indices.shape[0], *x.shape[2:])


def repad(x: Tensor, packing: Packing) -> Tensor:
    """Packed tokens x [T, ...] back in their places in [B, S, ...], zeros at padding. Its gradient is `unpad`.

    Raises:
        ValueError: where x does not have the packing's number of tokens.
    """
    if x.shape[0] != packing.indices.shape[0]:
        raise ValueError(f"repad: x has {x.shape[0]} rows but the packing has {packing.indices.shape[0]} tokens")
    rows = _library.op("repad")(
        x.flatten(1) if x.dim() > 1 else x[:, None], packing.indices, packing.batch * packing.seqlen
    )
    return rows.view(packing.batch, packing.seqlen, *x.shape[1:])
