"""All layers of a stack in training on a GPU, from their parameters: two autograd nodes a layer (`halves`), and what a call shares.

Drawn once a call are the seeds of all dropouts, and written once the copies that products read (`joined`): query, key and value as
one matrix, and everything in 16 bits under autocast. The copies are a call's own, so that a second forward before the first one's
backward changes nothing; a trainer that knows when weights change holds them instead (`joined.held`). Nothing here waits for the
device or depends on what tensors hold, gradient checkpointing included, so that a CUDA graph can hold it all.

Under bfloat16 autocast the residual stream between wide layers is bfloat16 too. That spares a cast before each product and float32
additions of gradients, and errors stay within twice those of eager autocast, whose stream is float32. In narrower layers they would
not, as their products' own errors are smaller (`python -m benchmarks.gpu.stream`); who wants the speed asks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertfast.nn import fp8_training, halves, joined
from bertfast.nn.fp8_state import Recipe, State, state_of, why_not
from bertfast.nn.joined import Copies
from bertfast.nn.launches import Launches
from bertfast.nn.layout import Packed
from bertfast.nn.parts import PARAMETERS, Kind, LayerParts, parts_of, widths
from bertfast.nn.plain import dropout_rate, is_unwatched, needs_gradients, product_dtype

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
_OF_ATTENTION = 10  # of these
# Columns, BERT-large's: the least at which every gradient was measured to be exact enough with initial weights.
WIDE = 1024
_BIASES_AND_NORMS = (7, 8, 9, 11, 13, 14, 15)


def stream_dtype(x: Tensor, products: torch.dtype, narrow: bool = False) -> torch.dtype:
    """Of the residual stream between layers, where its rows come as x [N, E] and products are of this dtype.

    narrow: in 16 bits whatever the width. bfloat16 alone: scaled gradients of a float16 stream may overflow where stock's do not.
    """
    return products if products is torch.bfloat16 and (narrow or x.shape[1] >= WIDE) else x.dtype


@dataclass(frozen=True)
class Trained:
    """
    Attributes:
        owner: the module whose copies a trainer may hold.
        parts: of each layer.
        parameters: of all layers, 16 each, as `LayerParts.parameters` orders them.
        kind: of every layer.
        rates: of each layer's dropouts, as they are now.
        dtype: of the products.
        checkpointing: keep only each layer's input for backward and compute the layer again there.
        narrow_stream: whether the residual stream is of the products' dtype whatever its width.
        fp8: how the first layers multiply in FP8; None where none does.
    """

    owner: nn.Module
    parts: tuple[LayerParts, ...]
    parameters: list[Tensor | None]
    kind: Kind
    rates: tuple[tuple[float, float, float], ...]
    dtype: torch.dtype
    checkpointing: bool = False
    narrow_stream: bool = False
    fp8: Recipe | None = None

    @property
    def seeds(self) -> int:
        """How many a call needs: one for each dropout that is on."""
        return sum(rate > 0.0 for rates in self.rates for rate in rates)

    @property
    def scales(self) -> State | None:
        """Those of the layers in FP8; None where none is."""
        if self.fp8 is None:
            return None
        return state_of(self.owner, self.fp8, len(self.parts), self.parameters[0].device)

    def begin(self) -> None:
        """Before a forward, outside of what is captured: scales move on, where it is not a trainer that says when."""
        scales = self.scales
        if scales is not None and not joined.is_held(self.owner):
            scales.begin()

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, read: Tensor | None, seeds: Tensor | None
    ) -> Tensor:
        """Packed tokens through all layers.

        Args:
            x: [N, E].
            cu_seqlens: [B + 1] int32, from 0 to N; max_seqlen: a bound on the longest sequence.
            read: [R] int64, the rows that the last layer makes, in any order; None for all.
            seeds: int64 [`self.seeds`, 2]; None where there are none.

        Returns:
            [N, E] or [R, E] in x's dtype, as stock's layers give it.

        Raises:
            ValueError: on bounds that do not rise from 0 to N by at most max_seqlen; on a GPU at a later call.
        """
        given = x.dtype
        every, last = Packed(cu_seqlens.contiguous(), max_seqlen), Packed(cu_seqlens.contiguous(), max_seqlen, read)
        rest = iter(() if seeds is None else seeds.unbind())
        copies = self._copies()
        launches = Launches() if len(self.rates) > 1 and self._alike() else None
        x = x.to(stream_dtype(x, self.dtype, self.narrow_stream)).contiguous()
        first = 0
        if self.fp8 is not None:
            first = self.fp8.layers(len(self.parts))
            shared = self.kind, self.dtype, self.parts, self.parameters, self.rates, rest, copies, self.checkpointing
            x = fp8_training.layers(self.owner, self.fp8, x, every, last, given, *shared)
        for number, rates in enumerate(self.rates[first:], first):
            layer = _Layer(
                last if number == len(self.rates) - 1 else every,
                self.kind,
                self.dtype,
                tuple(float(norm.eps) for norm in self.parts[number].norms),
                rates,
                tuple(next(rest) if rate > 0.0 else None for rate in rates),
                copies[number],
                launches,
                given if number == len(self.rates) - 1 else None,
            )
            parameters = self.parameters[number * PARAMETERS : (number + 1) * PARAMETERS]
            if self.checkpointing:
                # Seeds are arguments: a state of the generator could be neither saved nor put back inside a CUDA graph.
                x = checkpoint(layer, x, *parameters, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, *parameters)
        return x

    def _copies(self) -> Sequence[Copies]:
        with torch.no_grad():
            held = joined.held_copies(self.owner, self.parameters, self.dtype)
            return joined.fresh(self.parameters, self.dtype) if held is None else held

    def _alike(self) -> bool:
        """Whether launchers would do the same in every layer: products apart, they see biases and norms."""
        if len(set(self.rates)) > 1:
            return False
        layers = range(0, len(self.parameters), PARAMETERS)
        traits = [[_traits(self.parameters[first + number]) for number in _BIASES_AND_NORMS] for first in layers]
        return all(other == traits[0] for other in traits)


def _traits(parameter: Tensor | None) -> Any:
    return parameter if parameter is None else (parameter.dtype, parameter.shape, joined.is_aligned(parameter))


class _Layer(NamedTuple):
    layout: Packed
    kind: Kind
    dtype: torch.dtype
    eps: tuple[float, ...]
    rates: tuple[float, float, float]
    seeds: tuple[Tensor | None, ...]
    copies: Copies
    launches: Launches | None
    output: torch.dtype | None  # of the last layer; its norm's gradients come from those of the output as they are

    def __call__(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        mixing = halves.Mixing(
            self.layout,
            (x.shape[0],),
            self.kind.heads,
            self.kind.scale,
            self.dtype,
            self.eps[0],
            self.rates[:2],
            self.seeds[:2],
            self.copies,
            self.launches,
        )
        x = halves.attention(mixing, x, *parameters[:_OF_ATTENTION])
        if self.output is not None:
            x = x.to(self.output)
        tanh = self.kind.approximate == "tanh"
        feeding = halves.Feeding(
            tanh, self.dtype, self.eps[1], self.rates[2], self.seeds[2], self.copies, self.launches
        )
        return halves.feed_forward(feeding, x, *parameters[_OF_ATTENTION:])


def find(
    owner: nn.Module,
    modules: Sequence[nn.Module],
    x: Tensor,
    kind: Kind,
    checkpointing: bool = False,
    narrow_stream: bool = False,
    fp8: Recipe | None = None,
) -> Trained | None:
    """What runs the layers on such x [N, E] in training on a GPU; None where each must be called, or there are neither gradients
    nor dropout.

    Under dropout grad mode decides nothing. A GPU's generator gives other seeds in one draw than in several, and a reentrant
    checkpoint around a model goes through it without gradients first, and with them in backward.

    Args:
        owner: the module that the copies of weights belong to.
        modules: layers with BERT's names inside, all of this kind.
        checkpointing, narrow_stream: as in `Trained`.
        fp8: likewise, where products are in bfloat16; elsewhere they stay as they are.
    """
    if not is_unwatched():
        return None
    parts = tuple(parts_of(module) for module in modules)
    if any(type(linear) is not nn.Linear for part in parts for linear in part.linears):
        return None
    parameters = [parameter for part in parts for parameter in part.parameters()]
    rates: Any = tuple(tuple(dropout_rate(dropout) for dropout in part.dropouts) for part in parts)
    drops = any(rate > 0.0 for layer in rates for rate in layer)
    if not (drops or needs_gradients(x, parameters)) or not joined.takes(parts, parameters):
        return None
    dtype = product_dtype(x)
    dtypes = {x.dtype, dtype, *[p.dtype for p in parameters if p is not None]}
    if not dtypes <= _DTYPES or parameters[0].device != x.device or not halves.takes(x, parameters):
        return None
    if fp8 is not None and (fp8.layers(len(parts)) == 0 or why_not(x.device, dtype, *widths(parts)) is not None):
        fp8 = None
    return Trained(owner, parts, parameters, kind, rates, dtype, checkpointing, narrow_stream, fp8)
