"""All layers of a stack in training as one function of their rows, parameters and seeds: what a captured graph holds.

The numbers are those of `core.attention_block` and `core.mlp_block`, by the same ops in the same order. Unlike them it takes
parameters as tensors and seeds as given, so that the same call can be computed again, with other tensors in the parameters' places.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertfast import ops
from bertfast.nn.core import dropout_rate, product_dtype
from bertfast.nn.feed_forward import feed_forward
from bertfast.nn.linear import joined_linear
from bertfast.nn.parts import Kind, parts_of
from bertfast.nn.plain import is_unwatched, needs_gradients

_TYPES = (nn.Parameter, Tensor)
_PARAMETERS = 16  # of a layer, as `LayerParts.parameters` orders them


class _Linear(NamedTuple):
    weight: Any
    bias: Any


@dataclass(frozen=True)
class Trained:
    """
    Attributes:
        parameters: of all layers, as `LayerParts.parameters` orders those of each; None for an absent one.
        kind: of every layer.
        rates: of each layer's dropouts as they are to be applied: of the probabilities, behind the attention, behind the
            feed-forward half.
        eps: of each layer's norms.
        dtype: of the products.
    """

    parameters: list[Tensor | None]
    kind: Kind
    rates: tuple[tuple[float, float, float], ...]
    eps: tuple[tuple[float, float], ...]
    dtype: torch.dtype

    @property
    def seeds(self) -> int:
        """How many a call needs: one for each dropout that is on."""
        return sum(rate > 0.0 for rates in self.rates for rate in rates)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, read: Tensor | None, seeds: Tensor | None
    ) -> Tensor:
        """x [N, E] with cu_seqlens [B + 1] int32 to [N, E], or to [R, E] of the rows `read`, [R] int64.

        seeds: int64 [`seeds`, 2] in the order of the dropouts; None where there are none.
        """
        rest = iter(() if seeds is None else seeds.unbind())
        last = len(self.rates) - 1
        for number, (rates, eps) in enumerate(zip(self.rates, self.eps, strict=True)):
            given = self.parameters[number * _PARAMETERS : (number + 1) * _PARAMETERS]
            query, key, value, dense, first, up, down, norm = (_Linear(*given[i : i + 2]) for i in range(0, 16, 2))
            drawn = [next(rest) if rate > 0.0 else None for rate in rates]
            qkv = joined_linear(x.to(self.dtype), (query, key, value), bias=True)
            context = ops.attention(
                qkv.view(x.shape[0], 3, self.kind.heads, -1),
                cu_seqlens,
                max_seqlen,
                scale=self.kind.scale,
                dropout_p=rates[0],
                rng=drawn[0],
            ).flatten(1)
            if number == last and read is not None:
                context, x = context[read], x[read]
            out = joined_linear(context, (dense,), bias=False)
            x = ops.dropout_add_norm(out, x, *first, bias=dense.bias, eps=eps[0], dropout_p=rates[1], rng=drawn[1])
            out = feed_forward(x.to(self.dtype), up.weight, up.bias, down.weight, self.kind.approximate)
            x = ops.dropout_add_norm(out, x, *norm, bias=down.bias, eps=eps[1], dropout_p=rates[2], rng=drawn[2])
        return x


def find(modules: Iterable[nn.Module], x: Tensor, kind: Kind) -> Trained | None:
    """The layers as they are now, for a call on x [N, E] with a backward; None where there is none, or they must be called.

    modules: layers with BERT's names inside, all of this kind.
    """
    if type(x) is not Tensor or not x.numel() or not torch.is_grad_enabled() or not is_unwatched():
        return None
    parts = [parts_of(module) for module in modules]
    if not parts or any(type(linear) is not nn.Linear for part in parts for linear in part.linears):
        return None
    parameters = [parameter for part in parts for parameter in part.parameters()]
    if not needs_gradients(x, parameters):
        return None
    if any(type(p) not in _TYPES or p.dtype != x.dtype or p.device != x.device for p in parameters if p is not None):
        return None
    for part in parts:
        biases = [linear._parameters["bias"] is None for linear in part.attention[:3]]
        if any(biases) != all(biases) or part.mlp.up._parameters["bias"] is None:
            return None
        if any(norm._parameters[name] is None for norm in part.norms for name in ("weight", "bias")):
            return None
    rates: Any = tuple(tuple(dropout_rate(dropout) for dropout in part.dropouts) for part in parts)
    if any(rate >= 1.0 for each in rates for rate in each):
        return None
    eps = tuple((float(part.attention.norm.eps), float(part.mlp.norm.eps)) for part in parts)
    return Trained(parameters, kind, rates, eps, product_dtype(x))
