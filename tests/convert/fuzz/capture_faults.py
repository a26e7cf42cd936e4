"""Planted faults of captured calls: each breaks the owner of graphs while optimised models run, and the judge must see it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from bertfast.convert.encoder import FastEncoder
from bertfast.convert.families.record import Family
from bertfast.graphs import cache, encode
from bertfast.graphs.inputs import Inputs
from fuzz.mutants import Mutant

Fault = Callable[[], AbstractContextManager[None]]


@contextmanager
def _put(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def stale_inputs() -> AbstractContextManager[None]:
    """The buffers keep what the capture put there."""
    fill, filled = Inputs.fill, []

    def once(self: Inputs, *args: Any) -> None:
        if self not in filled:
            filled.append(self)
            fill(self, *args)

    return _put(Inputs, "fill", once)


def stale_bounds() -> AbstractContextManager[None]:
    """The sequences are those of the capture."""
    fill = Inputs.fill

    def without_bounds(self: Inputs, *args: Any) -> None:
        before = self.tokens.bounds.clone()
        first = self._used == 0
        fill(self, *args)
        if not first:
            self.tokens.bounds.copy_(before)

    return _put(Inputs, "fill", without_bounds)


def _nothing(model: nn.Module) -> None:
    """The fault is not the model's."""


class _Always:
    def holds(self, tensors: Any) -> bool:
        return True


def stale_weights() -> AbstractContextManager[None]:
    """Graphs outlive the tensors that they read."""
    return _put(cache, "stamp", lambda tensors: _Always())


def stale_numbers() -> AbstractContextManager[None]:
    """Graphs outlive the numbers that Python handed to kernels."""
    encoder_of = encode.Encoder.of.__func__

    def of(kind: type, *args: Any) -> Any:
        made = encoder_of(kind, *args)
        return None if made is None else replace(made, eps=())

    return _put(encode.Encoder, "of", classmethod(of))


def _is_captured(family: Family) -> bool:
    """Layers with relative positions are not."""
    return family.encoder_role is FastEncoder


CAPTURED = {"mode": "no_grad", "rehearsals": 2}
ORDINARY = {"hidden_act": "gelu"}
SAME_SIZE = {**CAPTURED, "mask": "ones"}
FAULTS: dict[str, tuple[Fault, Mutant]] = {
    "stale inputs": (stale_inputs, Mutant(_nothing, CAPTURED, ORDINARY, captured=True, shows=_is_captured)),
    "stale bounds": (stale_bounds, Mutant(_nothing, CAPTURED, ORDINARY, captured=True, shows=_is_captured)),
    "stale weights": (
        stale_weights,
        Mutant(_nothing, SAME_SIZE, ORDINARY, later="data_assigned", captured=True, shows=_is_captured),
    ),
    "stale numbers": (
        stale_numbers,
        Mutant(_nothing, SAME_SIZE, ORDINARY, later="other_eps", captured=True, shows=_is_captured),
    ),
}
