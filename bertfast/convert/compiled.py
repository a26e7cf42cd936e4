"""All layers of a stack as one node of a compiled graph, which in inference takes the padding out as an eager call does.

A compiler needs shapes that do not depend on data, and the number of real tokens does; so what depends on it happens inside the
node, which takes and gives [B, S, E]. Its arguments are all that it reads, the parameters among them: the graph, and any cache of
it, stays right for every model of the same form and for weights that change in place.

It stands here rather than in `ops` since it needs the layers of `nn`, and what transformers' 4-D masks mean.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertfast import _library
from bertfast.convert import checks, chunking
from bertfast.convert.counts import SPLIT, UNPADDED, count_compiled
from bertfast.convert.options import option
from bertfast.convert.unpadding import packing_of, splitting_saves
from bertfast.nn import prepack, stack
from bertfast.nn.core import attention_block, mlp_block
from bertfast.nn.layout import Layout, Packed, Padded
from bertfast.nn.parts import PARAMETERS, AttentionParts, Kind, MlpParts, parts_of
from bertfast.nn.plain import needs_gradients
from bertfast.nn.tokens import sequences_of


def reason(encoder: Any, x: Tensor) -> str | None:
    """Why the layers stay single and padded in the graph that is being traced, apart from what an eager call asks as well."""
    if torch.compiler.is_exporting():
        return "an export must run without bertfast"
    if x.device.type != "cpu":
        return "a compiled graph on a GPU needs shapes that do not depend on data"
    layers = list(encoder.layer)
    if encoder.training or any(layer.training or checks.drops(layer) for layer in layers):
        return "dropout is on"
    if chunking.common_size(layers):
        return "chunk_size_feed_forward is set, and a compiled graph keeps the padding then"
    if any(type(linear) is not nn.Linear for layer in layers for linear in parts_of(layer).linears):
        return "a compiled graph with adapters needs shapes that do not depend on data"
    if needs_gradients(x, list(encoder.parameters())):
        return "a compiled graph with gradients needs shapes that do not depend on data"
    kinds = [checks.kind_of(layer) for layer in layers]
    return None if kinds and all(kind == kinds[0] for kind in kinds) else "its layers differ"


def run(encoder: Any, call: dict[str, Any]) -> Tensor:
    """Hidden states [B, S, E] through all layers, as one node; zeros at padding."""
    parts = [parts_of(layer) for layer in encoder.layer]
    return _layers(
        call["hidden_states"],
        call.get("attention_mask"),
        [parameter for part in parts for parameter in part.parameters()],
        *checks.kind_of(encoder.layer[0]),
        [norm.eps for part in parts for norm in part.norms],
        option(encoder, "first_token_read") is True,
        option(encoder, "prepack") is not False,
        option(encoder, "int8") is True,
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
    )


class _Leaf(NamedTuple):
    """A Linear or a LayerNorm, as far as the core looks at it."""

    weight: Tensor
    bias: Tensor | None
    owner: prepack.Owner
    eps: float = 0.0


class _Layers(NamedTuple):
    """What a node knows of its layers."""

    parameters: list[Any]
    eps: tuple[tuple[float, float], ...]
    kind: Kind
    prepack: bool
    int8: bool

    def through(self, x: Tensor, layout: Layout) -> Tensor:
        """x through all layers: [T, E] for a `Packed` layout, [B, S, E] for a `Padded` one."""
        if self.prepack and isinstance(layout, Packed):
            native = stack.of_parameters(self.parameters, self.eps, x, self.kind, int8=self.int8)
            if native is not None:
                return native.forward(x.contiguous(), layout.cu_seqlens, layout.max_seqlen, None)
        heads, scale, approximate = self.kind
        how = {"use_prepack": self.prepack, "int8": self.int8}
        for attention, mlp in self._parts():
            x = attention_block(x, layout, attention, heads, scale=scale, **how)
            x = mlp_block(x, mlp, approximate=approximate, **how)
        return x

    def _parts(self) -> Iterator[tuple[AttentionParts, MlpParts]]:
        weights, biases = self.parameters[::2], self.parameters[1::2]
        owners = prepack.owners_of(weights[0], len(weights))
        leaves = iter(map(_Leaf, weights, biases, owners))
        for first, last in self.eps:
            query, key, value, dense, norm, up, down, end = islice(leaves, PARAMETERS // 2)
            yield (
                AttentionParts(query, key, value, dense, norm._replace(eps=first), None, None),
                MlpParts(up, down, end._replace(eps=last), None),
            )


def _run_node(
    x: Tensor,
    mask: Tensor | None,
    parameters: list[Any],
    heads: int,
    scale: float,
    approximate: str,
    eps: Sequence[float],
    first_read: bool,
    keep_copies: bool,
    int8: bool,
    autocast: torch.dtype | None,
) -> Tensor:
    """x [B, S, E] through the layers, each sequence padded or not as `FastEncoder.fast_forward` has it.

    mask: 4-D, as stock makes it; None where every token is real.
    parameters: of all layers one after another, as `LayerParts.parameters` orders them; eps: of all norms in turn.
    first_read: whether somebody reads position 0 of each sequence, real or not.
    keep_copies: whether reordered copies of the weights are kept.
    autocast: the dtype of products, None for x's own. A graph runs with autocast off, whatever it was traced under.
    """
    pairs = tuple(zip(eps[::2], eps[1::2], strict=True))
    layers = _Layers(parameters, pairs, Kind(heads, scale, approximate), keep_copies, int8)
    with torch.no_grad(), nullcontext() if autocast is None else torch.autocast("cpu", autocast):
        y, outcome = _computed(layers, x, mask, first_read)
    count_compiled(parameters[0], outcome)
    return y


def _computed(layers: _Layers, x: Tensor, mask: Tensor | None, first_read: bool) -> tuple[Tensor, str]:
    """x [B, S, E] through the layers, and how."""
    real = checks.key_padding(mask, *x.shape[:2])
    if real is None and mask is not None:
        return layers.through(x, Padded(mask)), "kept padded: the mask is more than padding"
    if real is None or not first_read or real[:, 0].all() or not splitting_saves(real):
        return _together(layers, x, mask, real, first_read)
    begins = real[:, 0]
    rows = begins.nonzero()[:, 0], (~begins).nonzero()[:, 0]
    masks = None if mask is None else mask.expand(x.shape[0], *mask.shape[1:])
    parts = [_together(layers, x[own], None if masks is None else masks[own], real[own], first_read)[0] for own in rows]
    return torch.cat(parts)[torch.argsort(torch.cat(rows))], SPLIT


def _together(
    layers: _Layers, x: Tensor, mask: Tensor | None, real: Tensor | None, first_read: bool
) -> tuple[Tensor, str]:
    """x [B, S, E] through the layers, all sequences padded or none, and how."""
    kept, packing = packing_of(real, first_read)
    if kept is not None:
        return layers.through(x, Padded(mask)), f"kept padded: {kept}"
    sequences = sequences_of(packing, *x.shape[:2], x.device)
    return sequences.restore(layers.through(sequences.take(x), sequences.layout())), UNPADDED


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_layers = _library.opaque(
    "encoder_layers(Tensor x, Tensor? mask, Tensor?[] parameters, int heads, float scale, str approximate, float[] eps, "
    "bool first_read, bool keep_copies, bool int8, ScalarType? autocast) -> Tensor",
    _run_node,
    _fake,
)
