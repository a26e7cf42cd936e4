"""A layer in training in FP8: `halves` with products of FP8 tensors, which the pass that makes a tensor casts and transposes.

    forward    qkv = x8 W8^T, context8 = cast(attention(qkv)), out = context8 W8^T, (y, y8) = norm(x + dropout(out))
               pre = y8 W8^T, hidden8 = gelu(pre), out = hidden8 W8^T, (z, z8) = norm(y + dropout(out))
    backward   of each product: dx = dout8 W8, dW = dout8^T x8, both with the inner dimension contiguous: so transposed copies

The residual stream, norms, attention itself and GELU are as in 16 bits, and so are the dropped elements. x8 [N, E] and its
transpose go from half to half beside x; they take no gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast import _library
from bertfast.nn import products
from bertfast.nn.fp8_state import TENSORS, Scaling, Weight
from bertfast.nn.halves import Mixing, no_autocast, rows_of, spread
from bertfast.nn.launches import run
from bertfast.ops import fp8

X, CONTEXT, ROWS, HIDDEN, DOUT, DQKV, DOUT_FEED, DPRE = range(len(TENSORS))
# Backward ops: the one that casts its result, and the plain one.
_NORM = "fp8_norm_bwd", "dropout_add_norm_bwd"
_GELU = "fp8_gelu_bwd", "bias_gelu_bwd"


class Cast(NamedTuple):
    """A tensor [T, C] in FP8, its transpose [C, T], and their scale []."""

    stored: Tensor
    transposed: Tensor
    scale: Tensor


class Feeding8(NamedTuple):
    """What the feed-forward half computes now, besides its parameters; fields as in `halves.Feeding`.

    Attributes:
        scalings: of the layer's tensors, as `fp8_state.TENSORS` orders them.
        weights: of both products.
        calibrating: the margin of scales, where each pass runs twice, the first time for the scale alone; else None.
        output: how y is cast for the next layer; None where that takes 16 bits.
    """

    tanh: bool
    dtype: torch.dtype
    eps: float
    rate: float
    seed: Tensor | None
    scalings: list[Scaling]
    weights: list[Weight]
    calibrating: float | None
    output: Scaling | None


class Mixing8(NamedTuple):
    """The same of the attention half, around what `halves.Mixing` says of it."""

    mixing: Mixing
    qkv_bias: Tensor | None
    scalings: list[Scaling]
    weights: list[Weight]
    calibrating: float | None


def _scaled(name: str, args: tuple[Any, ...], scaling: Scaling, calibrating: float | None) -> tuple[Tensor, ...]:
    """An op that casts, with a transposed copy where one is read; `args` are those before its scale."""
    if calibrating is not None:
        run(name, (*args, *scaling))
        scale, amax, dtype, _ = scaling
        scale.copy_(fp8.scale_of(amax, fp8.LARGEST[dtype], scale, calibrating))
    return run(name, (*args, *scaling))


def cast(x: Tensor, scaling: Scaling, calibrating: float | None) -> Cast:
    """x [T, C] by a pass of its own, for what no pass of ours makes."""
    with torch.no_grad():
        return Cast(*_scaled("fp8_cast", (x.contiguous(),), scaling, calibrating), scaling.scale)


class _Gradient(NamedTuple):
    """The gradient of a product's output, cast; and as it was in 16 bits where the weight's gradient is made of that."""

    cast: Cast
    wide: Tensor | None

    def weight(self, x8t: Tensor, x_scale: Tensor, x: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
        """The weight's gradient [N, K], from the rows that the product read: transposed in FP8, or x [T, K]."""
        if self.wide is None:
            return _product(self.cast.transposed, self.cast.scale, x8t, x_scale, dtype, fast=False)
        return products.weight_gradient(None, self.wide, x().to(self.wide.dtype), dtype, slot=0)


def _backward(
    name: str, plain: str, args: tuple[Any, ...], scaling: Scaling, calibrating: float | None
) -> tuple[_Gradient, tuple[Tensor, ...]]:
    """The first result of a backward op, cast by it, and its others; or by the `plain` op, and cast by a pass of its own."""
    if scaling.transposed:
        stored, transposed, *others = _scaled(name, args, scaling, calibrating)
        return _Gradient(Cast(stored, transposed, scaling.scale), None), tuple(others)
    wide, *others = run(plain, args)
    return _Gradient(cast(wide, scaling, calibrating), wide), tuple(others)


def _product(
    a: Tensor, scale: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype, bias: Tensor | None = None, *, fast: bool
) -> Tensor:
    """a [M, K] times b [N, K] transposed, plus bias [N]: [M, N]. Fast accumulation serves forward; gradients are summed in full."""
    return run("fp8_linear", (a, b, scale, scale_b, bias, dtype, fast))[0]


def _input(gradient: _Gradient, weight: Weight, dtype: torch.dtype) -> Tensor:
    """The gradient [T, K] of what the product by `weight` [N, K] read."""
    dy = gradient.cast
    return _product(dy.stored, dy.scale, weight.transposed, weight.scale, dtype, fast=False)


def _add_input(total: Tensor, gradient: _Gradient, weight: Weight) -> None:
    """total [T, K] += the gradient of what the product by `weight` [N, K] read."""
    dy = gradient.cast
    run("fp8_linear_add", (dy.stored, weight.transposed, dy.scale, weight.scale, total))


def attention(call: Mixing8, x: Tensor, x8: Cast, *parameters: Tensor | None) -> tuple[Tensor, Cast]:
    """The attention half of x [N, E], cast as x8: to [N, E] or [R, E] of the rows that are read, and the same cast.

    parameters: as of `halves.attention`.
    """
    y, y8, y8t = _Attention8.apply(call, x, *x8, *parameters)
    return y, Cast(y8, y8t, call.scalings[ROWS].scale)


def feed_forward(call: Feeding8, x: Tensor, x8: Cast, *parameters: Tensor | None) -> tuple[Tensor, Cast | None]:
    """The feed-forward half of x [N, E], cast as x8: to [N, E], and cast where the next layer is in FP8.

    parameters: as of `halves.feed_forward`.
    """
    y, y8, y8t = _FeedForward8.apply(call, x, *x8, *parameters)
    return y, None if call.output is None else Cast(y8, y8t, call.output.scale)


class _Attention8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Mixing8, x: Tensor, x8: Tensor, x8t: Tensor, x_scale: Tensor, *parameters: Any) -> Any:
        mixing = call.mixing
        with no_autocast(x):
            *_, dense_bias, norm, norm_bias = parameters
            qkv_weight, dense = call.weights[:2]
            qkv = _product(x8, x_scale, qkv_weight.cast, qkv_weight.scale, mixing.dtype, call.qkv_bias, fast=True)
            split, context, lse = mixing.attend(qkv)
            kept, residual = rows_of(context.view(x.shape[0], -1), mixing.read), rows_of(x, mixing.read)
            context8 = cast(kept, call.scalings[CONTEXT], call.calibrating)
            out = _product(context8.stored, context8.scale, dense.cast, dense.scale, mixing.dtype, fast=True)
            args = out, dense_bias, residual, norm, norm_bias, mixing.eps, mixing.rates[1], mixing.seeds[1]
            y, mean, rstd, y8, y8t = _scaled("fp8_norm_fwd", args, call.scalings[ROWS], call.calibrating)
        ctx.save_for_backward(x, x8t, split, context, lse, context8.transposed, out, mean, rstd, *parameters)
        # Not saved: all scales of a call are one tensor, and while they are found out others of it are written.
        ctx.call, ctx.x_scale, ctx.context_scale = call, x_scale, context8.scale
        ctx.mark_non_differentiable(y8, y8t)
        return y, y8, y8t

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        call: Mixing8 = ctx.call
        mixing = call.mixing
        x, x8t, split, context, lse, context8t, out, mean, rstd, *parameters = ctx.saved_tensors
        *projections, dense, dense_bias, norm, _ = parameters
        _, needs_x, _, _, _, *needs = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * len(parameters)
        qkv_weight, dense8 = call.weights[:2]
        with no_autocast(x):
            residual = rows_of(x, mixing.read)
            args = dy.contiguous(), out, dense_bias, residual, norm, mean, rstd, mixing.rates[1], mixing.seeds[1]
            dout, (dx, dbias, gradients[8], gradients[9]) = _backward(
                *_NORM, args, call.scalings[DOUT], call.calibrating
            )
            dx = spread(dx, mixing.read, x.shape[0])
            gradients[7] = None if dense_bias is None else dbias
            if needs[6]:
                rows = lambda: rows_of(context.view(x.shape[0], -1), mixing.read)  # noqa: E731
                gradients[6] = dout.weight(context8t, ctx.context_scale, rows, dense.dtype)
            dcontext = spread(_input(dout, dense8, mixing.dtype), mixing.read, x.shape[0])
            dqkv = mixing.attend_backward(dcontext, split, context, lse)
            dqkv8 = cast(dqkv, call.scalings[DQKV], call.calibrating)
            gradient = _Gradient(dqkv8, None if call.scalings[DQKV].transposed else dqkv)
            sizes = [weight.shape[0] for weight in projections[::2]]
            if any(needs[:6:2]):
                dweight = gradient.weight(x8t, ctx.x_scale, lambda: x, projections[0].dtype)
                gradients[0:6:2] = torch.split_with_sizes(dweight, sizes)
            if any(needs[1:6:2]):
                sums = products.column_sums(None, dqkv, x, projections[0]).to(projections[1].dtype)
                gradients[1:6:2] = torch.split_with_sizes(sums, sizes)
            if needs_x:
                _add_input(dx, gradient, qkv_weight)
        kept = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
        return None, dx if needs_x else None, None, None, None, *kept


class _FeedForward8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Feeding8, x: Tensor, x8: Tensor, x8t: Tensor, x_scale: Tensor, *parameters: Any) -> Any:
        with no_autocast(x):
            _, up_bias, _, down_bias, norm, norm_bias = parameters
            up, down = call.weights[2:]
            pre = _product(x8, x_scale, up.cast, up.scale, call.dtype, fast=True)
            hidden, hidden_t = _scaled(
                "fp8_gelu_fwd", (pre, up_bias, call.tanh), call.scalings[HIDDEN], call.calibrating
            )
            hidden_scale = call.scalings[HIDDEN].scale
            out = _product(hidden, hidden_scale, down.cast, down.scale, call.dtype, fast=True)
            args = out, down_bias, x, norm, norm_bias, call.eps, call.rate, call.seed
            if call.output is None:
                y, mean, rstd = run("dropout_add_norm_fwd", args)
                y8 = y8t = x8.new_empty(0)
            else:
                y, mean, rstd, y8, y8t = _scaled("fp8_norm_fwd", args, call.output, call.calibrating)
        ctx.save_for_backward(x, x8t, pre, hidden_t, out, mean, rstd, *parameters)
        ctx.call, ctx.x_scale, ctx.hidden_scale = call, x_scale, hidden_scale
        ctx.mark_non_differentiable(y8, y8t)
        return y, y8, y8t

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        call: Feeding8 = ctx.call
        x, x8t, pre, hidden_t, out, mean, rstd, *parameters = ctx.saved_tensors
        up, up_bias, down, down_bias, norm, _ = parameters
        _, needs_x, _, _, _, *needs = ctx.needs_input_grad
        up8, down8 = call.weights[2:]
        dup = ddown = None
        with no_autocast(x):
            args = dy.contiguous(), out, down_bias, x, norm, mean, rstd, call.rate, call.seed
            scaling = call.scalings[DOUT_FEED]
            dout, (dx, ddown_bias, dnorm, dnorm_bias) = _backward(*_NORM, args, scaling, call.calibrating)
            if needs[2]:
                hidden = lambda: run("bias_gelu_fwd", (pre, up_bias, call.tanh))[0]  # noqa: E731
                ddown = dout.weight(hidden_t, ctx.hidden_scale, hidden, down.dtype)
            gelu_args = _input(dout, down8, call.dtype), pre, up_bias, call.tanh
            dpre, (dup_bias,) = _backward(*_GELU, gelu_args, call.scalings[DPRE], call.calibrating)
            if needs[0]:
                dup = dpre.weight(x8t, ctx.x_scale, lambda: x, up.dtype)
            if needs_x:
                _add_input(dx, dpre, up8)
        gradients = dup, dup_bias, ddown, None if down_bias is None else ddown_bias, dnorm, dnorm_bias
        kept = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
        return None, dx if needs_x else None, None, None, None, *kept
