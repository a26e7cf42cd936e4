"""A layer in training on a GPU: two differentiable steps, one for each half, that call launchers without the dispatcher in between.

    attention    y = norm(x + dropout(W_o attention(W_qkv x + b_qkv) + b_o))
    feed-forward y = norm(x + dropout(W_2 gelu(W_1 x + b_1) + b_2))

Their kernels are those of the ops, and so are the numbers but for what one product does in place of two passes: the gradient of the
residual is added inside the product that makes the gradient of x, and a weight's gradient leaves its product in the weight's
own dtype, where autocast would round it to 16 bits and cast it. Saved are both products of each half, what attention and the norm
need, and x; weights are read from copies that a whole call shares (`joined`), or joined here.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertfast import _library
from bertfast.nn import products
from bertfast.nn.joined import Copies
from bertfast.nn.launches import Launches, run
from bertfast.nn.layout import Layout, Packed
from bertfast.nn.products import launched

_PLAIN = frozenset({Tensor, nn.Parameter})
# Arguments of the norm's ops that differ from layer to layer.
_NORM_VARYING = (0, 1, 2, 3, 4, 5, 7)
_NORM_BACKWARD_VARYING = (0, 1, 2, 3, 4, 5, 6, 8)
# Names of a layer's products where several are the same op; a product and its gradients share one.
_QKV, _DENSE, _DENSE_BACK, _UP, _DOWN = range(5)


class Mixing(NamedTuple):
    """What the attention half computes now, besides its parameters.

    Attributes:
        layout: packed or padded; its `read` names the rows that are made.
        shape: of the tokens, [N] or [B, S].
        heads, scale: of attention.
        dtype: of the products, and of `copies`.
        eps: of the norm.
        rates: dropout of the probabilities, and behind the output product.
        seeds: int64 [2] for each of these, None where its rate is 0.
        copies: of weights, which the products read; None where this half makes what it needs.
        launches: of the call, whose layers share them; None where this half is called alone.
    """

    layout: Layout
    shape: tuple[int, ...]
    heads: int
    scale: float
    dtype: torch.dtype
    eps: float
    rates: tuple[float, float]
    seeds: tuple[Tensor | None, Tensor | None]
    copies: Copies | None = None
    launches: Launches | None = None

    @property
    def read(self) -> Tensor | None:
        return self.layout.read if isinstance(self.layout, Packed) else None

    def attend(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 3 H D] as attention has it, the context [N, H, D] or [B, S, H, D], and the log-sum-exp."""
        options = self.scale, self.rates[0], self.seeds[0]
        split = qkv.view(*self.shape, 3, self.heads, -1)
        if isinstance(self.layout, Packed):
            args = split, self.layout.cu_seqlens, self.layout.max_seqlen, *options
            context, lse = launched(self.launches, "attention_fwd", args, (0, 5))
        else:
            context, lse = run("attention_padded_fwd", (split, self.layout.mask, *options))
        return split, context, lse

    def attend_backward(self, dcontext: Tensor, split: Tensor, context: Tensor, lse: Tensor) -> Tensor:
        """The gradient [N, 3 H D] of what attention read, from that of the context [N, H D] and what `attend` gave."""
        options = self.scale, self.rates[0], self.seeds[0]
        given = dcontext.view(context.shape), split, context, lse
        if isinstance(self.layout, Packed):
            args = *given, self.layout.cu_seqlens, self.layout.max_seqlen, *options
            # One kernel makes all gradients of short sequences, without the context; of two the second reads a sum of the first.
            (dqkv,) = launched(self.launches, "attention_bwd", args, (0, 1, 2, 3, 8), scratch=1, optional=(2,))
        else:
            (dqkv,) = run("attention_padded_bwd", (*given, self.layout.mask, *options))
        return dqkv.view(dcontext.shape[0], -1)


class Feeding(NamedTuple):
    """What the feed-forward half computes now, besides its parameters; fields as in `Mixing`.

    Attributes:
        tanh: whether GELU is the approximation.
    """

    tanh: bool
    dtype: torch.dtype
    eps: float
    rate: float
    seed: Tensor | None
    copies: Copies | None = None
    launches: Launches | None = None


def takes(x: Tensor, parameters: list[Tensor | None]) -> bool:
    """Whether these are plain tensors: a launcher reads memory, and other kinds of tensors mean something by it."""
    return type(x) in _PLAIN and all(p is None or type(p) in _PLAIN for p in parameters)


def attention(call: Mixing, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """The attention half of x [N, E]: to [N, E], or [R, E] of the rows that are read.

    parameters: weight and bias of query, key, value, the output product and the norm, in turn; a bias of a product may be None.
    """
    return _Attention.apply(call, x, *parameters)


def feed_forward(call: Feeding, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """The feed-forward half of x [N, E], to [N, E].

    parameters: weight and bias of the first and second product and of the norm, in turn; the second bias may be None.
    """
    return _FeedForward.apply(call, x, *parameters)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Mixing, x: Tensor, *parameters: Tensor | None) -> Tensor:
        with no_autocast(x):
            *projections, dense, dense_bias, norm, norm_bias = parameters
            qkv = products.linear(call.launches, _cast(x, call.dtype), *_joined(call, projections), slot=_QKV)
            split, context, lse = call.attend(qkv)
            kept, residual = rows_of(context.view(x.shape[0], -1), call.read), rows_of(x, call.read)
            weight = _weight(call.copies and call.copies.dense, dense, call.dtype)
            out = products.linear(call.launches, kept, weight, slot=_DENSE)
            args = out, dense_bias, residual, norm, norm_bias, call.eps, call.rates[1], call.seeds[1]
            y, mean, rstd = launched(call.launches, "dropout_add_norm_fwd", args, _NORM_VARYING)
        ctx.save_for_backward(x, split, context, lse, out, mean, rstd, *parameters)
        ctx.call = call
        return y

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        call: Mixing = ctx.call
        x, split, context, lse, out, mean, rstd, *parameters = ctx.saved_tensors
        *projections, dense, dense_bias, norm, _ = parameters
        needs = ctx.needs_input_grad[1:]
        gradients: list[Tensor | None] = [None] * len(parameters)
        with no_autocast(x):
            residual = rows_of(x, call.read)
            args = dy.contiguous(), out, dense_bias, residual, norm, mean, rstd, call.rates[1], call.seeds[1]
            dout, dresidual, dbias, gradients[8], gradients[9] = launched(
                call.launches, "dropout_add_norm_bwd", args, _NORM_BACKWARD_VARYING, scratch=1
            )
            gradients[7] = None if dense_bias is None else dbias
            if needs[7]:
                kept = rows_of(context.view(x.shape[0], -1), call.read)
                gradients[6] = products.weight_gradient(call.launches, dout, kept, dense.dtype, slot=_DENSE)
            dx = spread(dresidual, call.read, x.shape[0]) if needs[0] else None
            if any(needs[:7]):
                weight = _weight(call.copies and call.copies.dense, dense, call.dtype)
                dcontext = products.input_gradient(call.launches, dout, weight, slot=_DENSE_BACK)
                dqkv = call.attend_backward(spread(dcontext, call.read, x.shape[0]), split, context, lse)
                if any(needs[1:7]):
                    _projection_gradients(gradients, call, dqkv, _cast(x, call.dtype), projections, needs[1:7])
                if dx is not None:
                    joined = _joined(call, projections, with_bias=False)[0]
                    dx = products.add_product(call.launches, dx, dqkv, joined, slot=_QKV)
        return None, dx, *[gradient if need else None for gradient, need in zip(gradients, needs[1:], strict=True)]


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Feeding, x: Tensor, *parameters: Tensor | None) -> Tensor:
        with no_autocast(x):
            up, up_bias, down, down_bias, norm, norm_bias = parameters
            weight = _weight(call.copies and call.copies.up, up, call.dtype)
            hidden, pre = products.linear_gelu(call.launches, _cast(x, call.dtype), weight, up_bias, call.tanh)
            weight = _weight(call.copies and call.copies.down, down, call.dtype)
            out = products.linear(call.launches, hidden, weight, slot=_DOWN)
            args = out, down_bias, x, norm, norm_bias, call.eps, call.rate, call.seed
            y, mean, rstd = launched(call.launches, "dropout_add_norm_fwd", args, _NORM_VARYING, slot=1)
        ctx.save_for_backward(x, pre, hidden, out, mean, rstd, *parameters)
        ctx.call = call
        return y

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        call: Feeding = ctx.call
        x, pre, hidden, out, mean, rstd, up, up_bias, down, down_bias, norm, _ = ctx.saved_tensors
        needs_x, needs_up, needs_up_bias, needs_down, needs_down_bias, *needs_norm = ctx.needs_input_grad[1:]
        dup = dup_bias = ddown = dx = None
        with no_autocast(x):
            args = dy.contiguous(), out, down_bias, x, norm, mean, rstd, call.rate, call.seed
            dout, dresidual, ddown_bias, dnorm, dnorm_bias = launched(
                call.launches, "dropout_add_norm_bwd", args, _NORM_BACKWARD_VARYING, slot=1, scratch=1
            )
            if needs_down:
                ddown = products.weight_gradient(call.launches, dout, hidden, down.dtype, slot=_DOWN)
            if needs_x or needs_up or needs_up_bias:
                weight = _weight(call.copies and call.copies.down, down, call.dtype)
                dpre, dup_bias = products.linear_dgelu(call.launches, dout, weight, pre, up_bias, call.tanh)
                if needs_up:
                    dup = products.weight_gradient(call.launches, dpre, _cast(x, call.dtype), up.dtype, slot=_UP)
                if needs_x:
                    weight = _weight(call.copies and call.copies.up, up, call.dtype)
                    dx = products.add_product(call.launches, dresidual, dpre, weight, slot=_UP)
        return (
            None,
            dx,
            dup,
            dup_bias if needs_up_bias else None,
            ddown,
            ddown_bias if needs_down_bias else None,
            dnorm if needs_norm[0] else None,
            dnorm_bias if needs_norm[1] else None,
        )


def no_autocast(x: Tensor) -> Any:
    """Everything here is of the dtype that it is to be multiplied in."""
    return torch.autocast(x.device.type, enabled=False) if torch.is_autocast_enabled(x.device.type) else _NOTHING


class _Nothing:
    """A context that costs less than contextlib's."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


_NOTHING = _Nothing()


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def _weight(copy: Tensor | None, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight [N, K] as its product reads it: its copy, where a call has one."""
    return _cast(weight, dtype) if copy is None else copy


def _joined(call: Mixing, projections: list[Any], with_bias: bool = True) -> tuple[Tensor, Tensor | None]:
    """The weights of query, key and value as one, [3 H D, E], and their biases [3 H D]."""
    if call.copies is not None:
        return call.copies.qkv, call.copies.qkv_bias
    weight = torch.cat(projections[::2]).to(call.dtype)
    return weight, torch.cat(projections[1::2]).to(call.dtype) if with_bias and projections[1] is not None else None


def _projection_gradients(
    gradients: list[Tensor | None],
    call: Mixing,
    dqkv: Tensor,
    x: Tensor,
    projections: list[Any],
    needs: tuple[bool, ...],
) -> None:
    """Put weight and bias gradients of query, key and value, from dqkv [N, 3 H D] and x [N, E], into the first six places."""
    sizes = [weight.shape[0] for weight in projections[::2]]
    dweight = sums = None
    if any(needs[::2]) and any(needs[1::2]):
        kinds = projections[0], projections[1].dtype
        dweight, sums = products.weight_and_bias_gradients(call.launches, dqkv, x, *kinds, slot=_QKV)
    elif any(needs[::2]):
        dweight = products.weight_gradient(call.launches, dqkv, x, projections[0].dtype, slot=_QKV)
    else:
        sums = _cast(products.column_sums(call.launches, dqkv, x, projections[0]), projections[1].dtype)
    if dweight is not None:
        gradients[0:6:2] = torch.split_with_sizes(dweight, sizes)
    if sums is not None:
        gradients[1:6:2] = torch.split_with_sizes(sums, sizes)


def rows_of(values: Tensor, read: Tensor | None) -> Tensor:
    """The rows that are read. Every token is a key and a value; behind attention a token that nobody reads ceases to matter."""
    return values if read is None else values.index_select(0, read)


def spread(values: Tensor, read: Tensor | None, rows: int) -> Tensor:
    """Gradients of the rows that are read, [R, E], among all [N, E]; those of one that is named twice are added.

    Whatever their order: two numbers added to zero have one sum, and of a row that is named more often, as empty slots of masked
    words do, all gradients but two are zero.
    """
    return values if read is None else values.new_zeros(rows, values.shape[1]).index_add_(0, read, values)
