"""The layers of a stack that train in FP8: the first ones, before those that stay in 16 bits (`training`)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertfast.nn import fp8_halves, fp8_state, joined
from bertfast.nn.fp8_halves import Cast
from bertfast.nn.fp8_state import Recipe, Scaling, Weight, Weights
from bertfast.nn.halves import Mixing
from bertfast.nn.joined import Copies
from bertfast.nn.layout import Packed
from bertfast.nn.parts import PARAMETERS, Kind, LayerParts

_OF_ATTENTION = 10  # of a layer's parameters


class _Layer(NamedTuple):
    layout: Packed
    kind: Kind
    dtype: torch.dtype
    eps: tuple[float, ...]
    rates: tuple[float, float, float]
    seeds: tuple[Tensor | None, ...]
    qkv_bias: Tensor | None
    scalings: list[Scaling]
    weights: list[Weight]
    calibrating: float | None
    output: Scaling | None  # how the next layer's input is cast
    given: torch.dtype | None  # of the stack's output, where this is its last layer

    def __call__(self, x: Tensor, x8: Cast, *parameters: Tensor | None) -> tuple[Tensor, Cast | None]:
        kind, shared = self.kind, (self.scalings, self.weights, self.calibrating)
        mixing = Mixing(
            self.layout, (x.shape[0],), kind.heads, kind.scale, self.dtype, self.eps[0], self.rates[:2], self.seeds[:2]
        )
        mixing8 = fp8_halves.Mixing8(mixing, self.qkv_bias, *shared)
        x, x8 = fp8_halves.attention(mixing8, x, x8, *parameters[:_OF_ATTENTION])
        if self.given is not None:
            x = x.to(self.given)
        tanh = kind.approximate == "tanh"
        feeding = fp8_halves.Feeding8(tanh, self.dtype, self.eps[1], self.rates[2], self.seeds[2], *shared, self.output)
        return fp8_halves.feed_forward(feeding, x, x8, *parameters[_OF_ATTENTION:])


def layers(
    owner: nn.Module,
    recipe: Recipe,
    x: Tensor,
    every: Packed,
    last: Packed,
    given: torch.dtype,
    kind: Kind,
    dtype: torch.dtype,
    parts: Sequence[LayerParts],
    parameters: Sequence[Any],
    rates: Sequence[tuple[float, float, float]],
    seeds: Iterator[Tensor],
    copies: Sequence[Copies],
    checkpointing: bool,
) -> Tensor:
    """Packed tokens x [N, E] through the first `recipe.layers(len(parts))` layers: [N, E], or [R, E] where these are all.

    Args:
        owner: the stack, whose scales these are.
        every: bounds of the sequences; last: of the stack's last layer, the rows that it makes too.
        given: dtype of the stack's output.
        parts, parameters, rates, copies: of all layers, as in `training`.
        seeds: of all dropouts that are on; those of these layers are taken from it.
    """
    state = fp8_state.state_of(owner, recipe, len(parts), x.device)

    def written() -> Weights:
        weights = Weights(state, parameters, copies)
        weights.write()
        return weights

    weights = joined.held_also(owner, copies, written)
    if weights is None:  # nobody holds them: the casts are this call's own
        weights = written()
    scalings, calibrating = state.of_call(), recipe.margin if state.is_calibrating() else None
    x8: Cast | None = None
    for number in range(state.layers):
        if x8 is None:
            x8 = fp8_halves.cast(x.detach(), scalings[number][fp8_halves.X], calibrating)
        is_last = number == len(parts) - 1
        layer = _Layer(
            last if is_last else every,
            kind,
            dtype,
            tuple(float(norm.eps) for norm in parts[number].norms),
            rates[number],
            tuple(next(seeds) if rate > 0.0 else None for rate in rates[number]),
            copies[number].qkv_bias,
            scalings[number],
            weights.layers[number],
            calibrating,
            scalings[number + 1][fp8_halves.X] if number + 1 < state.layers else None,
            given if is_last else None,
        )
        own = parameters[number * PARAMETERS : (number + 1) * PARAMETERS]
        if checkpointing:
            x, x8 = checkpoint(layer, x, x8, *own, use_reentrant=False, preserve_rng_state=False)
        else:
            x, x8 = layer(x, x8, *own)
    return state.watch(x)
