"""The ops of a call's layers: each by its launcher at first, then by the launches that it made, on other tensors.

All layers launch the same kernels on the same sizes, so what a launcher finds out (tile, grid, compiled kernel) is found once a
call. Results are in memory of their own each time: they are kept for backward, or are gradients.
"""

import importlib
from collections.abc import Hashable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from bertfast import _library
from bertfast.triton import repeats


@cache
def _mailbox() -> Any:
    """The module, which loads Triton: for where a launcher has loaded it."""
    return importlib.import_module("bertfast.triton.mailbox")


@lru_cache(maxsize=1024)
def _form(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of this form on one element of memory: the quickest that torch makes others from."""
    return torch.empty((), dtype=dtype, device=device).expand(shape)


def _form_of(result: Tensor) -> Tensor:
    form = _form if type(result) is Tensor else _form.__wrapped__  # fake tensors belong to their mode
    return form(result.shape, result.dtype, result.device)


class _Again:
    """A launcher's launches, and the form of its results."""

    def __init__(self, repeat: repeats.Repeat, results: Sequence[Tensor]) -> None:
        self._repeat = repeat
        self.may_run = repeat.may_run
        self._forms = [_form_of(result) for result in results]

    def __call__(self, values: list[Any]) -> tuple[Tensor, ...]:
        results = tuple([torch.empty_like(form) for form in self._forms])
        self._repeat(*values, *results)
        return results


class Launches:
    """Of one call, forward and backward, whose layers are alike in all that launchers look at but sizes."""

    def __init__(self) -> None:
        self._again: dict[Hashable, _Again | None] = {}

    def run(
        self,
        name: str,
        args: tuple[Any, ...],
        varying: Sequence[int],
        *,
        slot: int = 0,
        scratch: int = 0,
        optional: Sequence[int] = (),
    ) -> tuple[Tensor, ...]:
        """The results of an op.

        Args:
            name: of the op.
            args: its arguments, the first one a tensor.
            varying: numbers of the arguments that are others in other layers: contiguous tensors, floats, or None in every layer.
            slot: tells calls of one op within a layer apart.
            scratch: how many tensors its launcher may make for itself.
            optional: which of `varying`, counted there, it may have no use for.
        """
        place = name, slot, args[0].shape
        again = self._again.get(place)
        if again is not None and again.may_run():
            return again([args[number] for number in varying])
        function = _library.resolved(name, "CUDA")
        if place in self._again:
            return _results(function(*args))
        with repeats.noting() as made:
            results = _results(function(*args))
        repeat = None
        if made:
            values = [*(args[number] for number in varying), *results]
            fixed = (*args, _mailbox().box(args[0].device))
            empty = [len(varying) + number for number, result in enumerate(results) if result.numel() == 0]
            repeat = repeats.repeat(made, values, fixed, scratch=scratch, optional=[*optional, *empty])
        self._again[place] = None if repeat is None else _Again(repeat, results)
        return results


def run(name: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The results of an op by its launcher."""
    return _results(_library.resolved(name, "CUDA")(*args))


def _results(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results or ()
