"""Linears on one input as one differentiable product: y = x (W_1, W_2, ...)^T + (b_1, b_2, ...), in x's dtype.

Under autocast the weights stay as they are: the product reads float32 ones on its way to bfloat16, and their gradients are
written in float32 at once. Eager's cast makes a pass over every weight forward and over every gradient backward, a tenth of
a step, and keeps a copy of each weight between them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bertfast import _library, _torch, ops
from bertfast.ops import products
from bertfast.ops.memory import fresh


def ordinary(parts: list[Tensor]) -> bool:
    """Plain tensors on a CPU under no transform; a compiler fuses casts itself, and a GPU's products take one dtype."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    plain = all(type(part) in (Tensor, nn.Parameter) and part.device.type == "cpu" for part in parts)
    return plain and not _torch.is_transformed()


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """dy [T, N] and x [T, K] to [N, K] in the weight's dtype."""
    return products.product(dy.t(), [x], out=fresh(weight, weight.shape))


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        # x is for the gradients of weights alone, which are often frozen under adapters.
        ctx.save_for_backward(x if any(ctx.needs_input_grad[2 : 2 + count]) else None, *weights)
        ctx.biases = [bias.dtype for bias in biases]
        bias = torch.cat(biases) if biases else None
        return products.product(x, [weight.t() for weight in weights], along=1, bias=bias)

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        dy = dy.contiguous()
        needs_dx, _, *needed = ctx.needs_input_grad
        parts = dy.split([weight.shape[0] for weight in weights], 1)
        dx = products.product(dy, weights) if needs_dx else None
        gradients: list[Tensor | None] = [
            weight_gradient(part, x, weight) if need else None
            for part, weight, need in zip(parts, weights, needed, strict=False)
        ]
        if any(needed[len(weights) :]):
            sums = dy.sum(0, dtype=torch.float32 if dy.dtype == torch.bfloat16 else None)
            pieces = sums.split([weight.shape[0] for weight in weights])
            gradients += [piece.to(dtype) for piece, dtype in zip(pieces, ctx.biases, strict=True)]
        else:
            gradients += [None] * len(ctx.biases)
        return dx, None, *gradients


def joined_linear(x: Tensor, linears: tuple[nn.Linear, ...], *, bias: bool) -> Tensor:
    """x [T, K] to [T, sum of N_i] in x's dtype, with or without the Linears' biases."""
    weights = [linear.weight for linear in linears]
    biases = [linear.bias for linear in linears if linear.bias is not None] if bias else []
    if len(biases) in (0, len(linears)) and ordinary([x, *weights, *biases]):
        return _Joined.apply(x.contiguous(), len(weights), *weights, *biases)
    return ops.linear(x, joined(weights, x.dtype), joined(biases, x.dtype) if biases else None)


def joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The parts one below the other in `dtype`."""
    return parts[0].to(dtype) if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])
