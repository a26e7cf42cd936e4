"""The feed-forward products as one differentiable step: y = gelu(x W_1^T + b_1) W_2^T.

gelu's output, a quarter of what a layer keeps for backward, is made again there from the first product, which GELU's own
gradient needs anyway. That is one more pass over [T, F].
"""

from typing import Any

import torch
from torch import Tensor

from bertfast import _library, ops
from bertfast.nn.cast import ordinary


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, tanh: bool) -> Tensor:
        hidden, pre = _library.op("linear_gelu_fwd")(x, up, up_bias, tanh)
        ctx.save_for_backward(x, up, up_bias, down, pre)
        ctx.tanh = tanh
        return _library.op("linear_fwd")(hidden, down, None)

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, up, up_bias, down, pre = ctx.saved_tensors
        needs_dx, needs_dup, needs_dbias, needs_ddown, _ = ctx.needs_input_grad
        dy = dy.contiguous()
        hidden = _library.op("bias_gelu_fwd")(pre, up_bias, ctx.tanh) if needs_ddown else pre
        inner = needs_dx or needs_dup or needs_dbias
        dhidden, ddown, _ = _library.op("linear_bwd")(dy, hidden, down, False, inner, needs_ddown)
        del hidden
        dx = dup = dbias = None
        if inner:
            dx, dup, dbias = _library.op("linear_gelu_bwd")(dhidden, x, up, up_bias, pre, ctx.tanh, needs_dx, needs_dup)
        return (
            dx if needs_dx else None,
            dup if needs_dup else None,
            dbias if needs_dbias else None,
            ddown if needs_ddown else None,
            None,
        )


def feed_forward(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, approximate: str) -> Tensor:
    """gelu(x W_1^T + b_1) W_2^T: x [T, E], up [F, E], up_bias [F], down [E, F], all of one dtype, to [T, E].

    On a CPU in training; elsewhere the two ops one after the other, with the same numbers.
    """
    if torch.is_grad_enabled() and ordinary([x, up, up_bias, down]):
        return _FeedForward.apply(x.contiguous(), up, up_bias, down, approximate == "tanh")
    return ops.linear(ops.linear_gelu(x, up, up_bias, approximate=approximate), down)
