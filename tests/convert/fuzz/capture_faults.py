"""Planted faults of captured calls: each breaks the owner of graphs while optimised models run, and the judge must see it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from bertfast.graphs import cache, encode
from bertfast.graphs.inputs import Inputs

from fuzz.draw import Case
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


def results_overwritten() -> AbstractContextManager[None]:
    """What a call gives lies in the graph, where the next call writes."""
    run = encode.run

    def without_copy(*args: Any, finish: Any, **kwargs: Any) -> Any:
        return run(*args, finish=lambda rows: finish(rows.zero_() if rows.requires_grad else rows * 1.01), **kwargs)

    return _put(encode, "run", without_copy)
