"""A word table that is the decoder's weight too: one gradient [V, E], not two that autograd adds.

Forward also gives the table back, under another name. The decoder uses that, so this backward gets the decoder's gradient and adds
the tokens' rows to it in place: no [V, E] of zeros, no pass that adds two. A gradient that anybody else may hold is copied first.
Outside torch.compile only: there an input must not come back as an output, and the two gradients are added as ever.
"""

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bertfast import _library, _torch


def _holders(gradient: Tensor) -> tuple[int, int, int] | None:
    """Counts of references: to the Python object, to the tensor, to its memory. None where torch cannot say."""
    uses = _torch.uses(gradient)
    return None if uses is None else (sys.getrefcount(gradient), *uses)


@cache
def holders_of_fresh() -> tuple[int, int, int] | None:
    """`_holders` in a backward of a gradient that is nobody else's: measured, for it is Python's and torch's own business.

    Should either change, a count above this only costs a copy.
    """
    found: list[tuple[int, int, int] | None] = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.clone(), x.view_as(x)

        @staticmethod
        @_library.once_differentiable
        def backward(ctx: Any, dy: Tensor | None, dx: Tensor | None) -> Any:
            assert dx is not None
            found.append(_holders(dx))
            return (None,)

    with torch.enable_grad():
        y, same = Probe.apply(torch.zeros(2, requires_grad=True))
        (y.sum() + same.exp().sum()).backward()
    return found[0]


class Tied(torch.autograd.Function):
    """(word, position, segment, weight, bias, ...) to (y, word)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        y, mean, rstd = _library.op("embedding_sum_norm_fwd")(*inputs)
        *tensors, padding_idx, _, dropout_p, rng = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:-1], mean, rstd, rng)
        ctx.padding_idx, ctx.dropout_p = padding_idx, dropout_p
        word = tensors[3]
        return y, word.view_as(word)

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dword: Tensor | None) -> Any:
        if dy is None:
            return None, None, None, dword, *(None,) * 8
        *tensors, mean, rstd, rng = ctx.saved_tensors
        mine = (
            type(dword) is Tensor
            and dword.layout == torch.strided
            and dword.is_contiguous()
            and dword.dtype == tensors[3].dtype
            and dword.shape == tensors[3].shape
            and not dword.requires_grad  # a graph of derivatives may need its value
            and (holders := _holders(dword)) is not None
            and holders == holders_of_fresh()
        )
        args = (dy.contiguous(), *tensors, mean, rstd, ctx.padding_idx, ctx.dropout_p, rng)
        if dword is None:
            gradients = _library.op("embedding_sum_norm_bwd")(*args)
        else:
            if not mine:
                dense = dword if dword.layout == torch.strided else dword.to_dense()
                dword = torch.empty_like(tensors[3], memory_format=torch.contiguous_format).copy_(dense)
            gradients = dword, *_library.op("embedding_sum_norm_tied_bwd")(dword, *args)
        return None, None, None, *gradients, None, None, None, None
