"""The feed-forward products as one differentiable step: y = gelu(x W_1^T + b_1) W_2^T, in x's dtype.

gelu's output, a quarter of what a layer keeps for backward, is made again there from the first product, which GELU's own
gradient needs anyway. That is one more pass over [T, F]. Parameters of another dtype are read and given gradients as in `linear`.
"""

from typing import Any

import torch
from torch import Tensor

from bertfast import _library, ops
from bertfast.nn.linear import ordinary, weight_gradient
from bertfast.ops import products


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, tanh: bool) -> Tensor:
        pre = products.linear(x, up)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, up, up_bias, down, pre)
        ctx.tanh = tanh
        return products.linear(_library.op("bias_gelu_fwd")(pre, up_bias, tanh), down)

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, up, up_bias, down, pre = ctx.saved_tensors
        needs_dx, needs_dup, needs_dbias, needs_ddown, _ = ctx.needs_input_grad
        dy = dy.contiguous()
        dx = dup = dbias = ddown = None
        if needs_ddown:
            ddown = weight_gradient(dy, _library.op("bias_gelu_fwd")(pre, up_bias, ctx.tanh), down)
        if needs_dx or needs_dup or needs_dbias:
            dpre, dbias = _library.op("bias_gelu_bwd")(products.matmul(dy, down), pre, up_bias, ctx.tanh)
            dx = products.matmul(dpre, up) if needs_dx else None
            dup = weight_gradient(dpre, x, up) if needs_dup else None
        return dx, dup, dbias if needs_dbias else None, ddown, None


def feed_forward(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, approximate: str) -> Tensor:
    """gelu(x W_1^T + b_1) W_2^T: x [T, E], up [F, E], up_bias [F], down [E, F], to [T, E] in x's dtype."""
    if ordinary([x, up, up_bias, down]):
        return _FeedForward.apply(x.contiguous(), up, up_bias, down, approximate == "tanh")
    up, up_bias, down = (t.to(x.dtype) for t in (up, up_bias, down))
    return ops.linear(ops.linear_gelu(x, up, up_bias, approximate=approximate), down)
