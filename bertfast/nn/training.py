"""All layers of a stack in training, from their parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import ops
from bertfast.nn.core import dropout_rate, product_dtype
from bertfast.nn.parts import Kind, LayerParts, parts_of
from bertfast.nn.plain import is_unwatched, needs_gradients

_TYPES = (nn.Parameter, Tensor)
_PARAMETERS = 16


@dataclass(frozen=True)
class Trained:
    """
    Attributes:
        parts: of each layer.
        parameters: of all layers, 16 each, as `LayerParts.parameters` orders them.
        kind: of every layer.
        rates: of each layer's dropouts, as they are now.
        dtype: of the products.
    """

    parts: tuple[LayerParts, ...]
    parameters: list[Tensor | None]
    kind: Kind
    rates: tuple[tuple[float, ...], ...]
    dtype: torch.dtype

    def is_ready(self) -> bool:
        return is_unwatched()

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, read: Tensor | None, seeds: Tensor | None
    ) -> Tensor:
        rest = iter(() if seeds is None else seeds.unbind())

        def rng(p: float) -> Tensor | None:
            return next(rest) if p > 0.0 else None

        for number, (part, rates) in enumerate(zip(self.parts, self.rates, strict=True)):
            given = self.parameters[number * _PARAMETERS : (number + 1) * _PARAMETERS]
            q, qb, k, kb, v, vb, o, ob, first, first_b, up, upb, down, downb, norm, norm_b = given
            heads, dtype = self.kind.heads, self.dtype
            qkv = F.linear(x.to(dtype), torch.cat([q, k, v]).to(dtype), torch.cat([qb, kb, vb]).to(dtype))
            context = ops.attention(
                qkv.view(x.shape[0], 3, heads, -1),
                cu_seqlens,
                max_seqlen,
                scale=self.kind.scale,
                dropout_p=rates[0],
                rng=rng(rates[0]),
            ).flatten(1)
            if read is not None and number == len(self.parts) - 1:
                context, x = context[read], x[read]
            out = F.linear(context, o.to(dtype))
            x = ops.dropout_add_norm(
                out, x, first, first_b, bias=ob, eps=part.attention.norm.eps, dropout_p=rates[1], rng=rng(rates[1])
            )
            hidden = F.gelu(F.linear(x.to(dtype), up.to(dtype), upb.to(dtype)), approximate=self.kind.approximate)
            out = F.linear(hidden, down.to(dtype))
            x = ops.dropout_add_norm(
                out, x, norm, norm_b, bias=downb, eps=part.mlp.norm.eps, dropout_p=rates[2], rng=rng(rates[2])
            )
        return x


def find(modules: Sequence[nn.Module], x: Tensor, kind: Kind) -> Trained | None:
    parts = tuple(parts_of(module) for module in modules)
    parameters = [p for part in parts for p in part.parameters()]
    if not is_unwatched() or not needs_gradients(x, parameters):
        return None
    if any(type(linear) is not nn.Linear for part in parts for linear in part.linears):
        return None
    rates = tuple(tuple(dropout_rate(d) for d in part.dropouts) for part in parts)
    return Trained(parts, parameters, kind, rates, product_dtype(x))
