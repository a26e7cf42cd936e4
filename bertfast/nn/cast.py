"""Weights of several Linears as one matrix in autocast's dtype: W = cast(concatenate(W_1, W_2, ...)).

One pass over each weight forward and over each gradient backward, into memory without small page faults, where the eager
`torch.cat([w.to(dtype) ...])` makes two of each.
"""

from typing import Any

import torch
from torch import Tensor

from bertfast import _library
from bertfast.ops.memory import fresh


def _written(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    whole = fresh(parts[0], (sum(part.shape[0] for part in parts), *parts[0].shape[1:]), dtype)
    at = 0
    for part in parts:
        whole[at : at + part.shape[0]] = part
        at += part.shape[0]
    return whole


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parts: Tensor) -> Tensor:
        ctx.parts = [(part.shape, part.dtype) for part in parts]
        return _written(list(parts), dtype)

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dwhole: Tensor) -> Any:
        gradients: list[Tensor | None] = []
        at = 0
        for (shape, dtype), needed in zip(ctx.parts, ctx.needs_input_grad[1:], strict=True):
            part = dwhole[at : at + shape[0]]
            gradients.append(fresh(dwhole, shape, dtype).copy_(part) if needed else None)
            at += shape[0]
        return None, *gradients


def ordinary(parts: list[Tensor]) -> bool:
    """Plain tensors on a CPU under no transform; a compiler fuses these passes itself, and a GPU has no page faults."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(type(part) in (Tensor, torch.nn.Parameter) and part.device.type == "cpu" for part in parts) and (
        torch._C._functorch.peek_interpreter_stack() is None
    )


def cast_weights(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The parts [N_i, ...] one after another, [sum of N_i, ...] in `dtype`; the only part itself where there is nothing to do."""
    if len(parts) == 1 and parts[0].dtype == dtype:
        return parts[0]
    if ordinary(parts):
        return _Cast.apply(dtype, *parts)
    cast = [part.to(dtype) for part in parts]
    return cast[0] if len(cast) == 1 else torch.cat(cast)
