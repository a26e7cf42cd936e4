"""Captured training steps on a CPU: a tape in a graph's place, and the trainer run as on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from captured import Taping, captured_on_cpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bertfast import _library, _torch
from bertfast.graphs import backend as backends
from bertfast.nn import tokens


@cache
def _effects(function: Any) -> tuple[tuple[tuple[int, str], ...], bool]:
    """The arguments, by place and name, that a function writes to, and whether its results may be memory that was there before."""
    schema = function._schema
    written = tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return written, any(result.alias_info is not None for result in schema.returns)


class _Undo(TorchDispatchMode):
    """Keeps what functions write into memory that they did not make, to put it back. Ops of ours run below all modes, and say it.

    Attributes:
        current: the one that is entered, or None.
    """

    current: "_Undo | None" = None

    def __init__(self) -> None:
        super().__init__()
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._alive: list[Tensor] = []  # so that no address is given to another tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, func, args, kwargs or {})

    def run(self, function: Callable[..., Any], op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function with the schema of `op` gives."""
        written, aliases = _effects(op)
        for place, name in written:
            for tensor in tree_leaves(args[place] if place < len(args) else kwargs.get(name)):
                self._keep(tensor)
        result = function(*args, **kwargs)
        if not aliases:
            for tensor in (result,) if isinstance(result, Tensor) else tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._made.add(tensor.untyped_storage().data_ptr())
                    self._alive.append(tensor)
        return result

    def __enter__(self) -> "_Undo":
        _Undo.current = self
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        _Undo.current = None
        super().__exit__(*error)

    def _keep(self, tensor: object) -> None:
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._made and storage.data_ptr() not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._before[storage.data_ptr()] = whole, whole.clone()

    def restore(self) -> None:
        for whole, before in self._before.values():
            whole.copy_(before)


def _without_autocast(resolved: Callable[[str, str], Callable[..., Any]]) -> Callable[[str, str], Callable[..., Any]]:
    """Kernels do not look whether autocast is on; references call torch's functions, which do."""
    made: dict[str, Callable[..., Any]] = {}

    def without(name: str, key: str) -> Callable[..., Any]:
        launch = resolved(name, key)

        def plain(*args: Any) -> Any:
            with torch.autocast("cpu", enabled=False):
                if _Undo.current is None:
                    return launch(*args)
                return _Undo.current.run(launch, getattr(torch.ops.bertfast, name).default, args, {})

        return made.setdefault(name, plain)

    return without


class SteppingTape(Taping):
    """A tape of procedures: as with a CUDA graph, capturing one changes nothing that there was.

    Attributes:
        captures, replays: how many of procedures there were.
        fail_at: numbers of captures, from 1, that raise `error` when they are over.
    """

    def __init__(self, fail_at: tuple[int, ...] = (), error: Exception | None = None) -> None:
        super().__init__()
        self.captures = self.replays = 0
        self.fail_at, self.error = fail_at, error or RuntimeError("operation not permitted when stream is capturing")

    def capture(self, function: backends.Function, pool: str = backends.INFERENCE) -> backends.Graph:
        counts = pool == backends.TRAINING  # else it is of an evaluation between
        graph = self._undone(function, pool) if counts else super().capture(function, pool)
        replay = graph.replay

        def counting(function: backends.Function) -> None:
            self.replays += counts
            with torch.autocast("cpu", enabled=False):  # a graph does not look whether it is on
                replay(function)

        graph.replay = counting
        return graph

    def _undone(self, function: backends.Function, pool: str) -> backends.Graph:
        self.captures += 1
        generator, undo = torch.get_rng_state(), _Undo()
        try:
            with undo, pytest.MonkeyPatch.context() as patch:
                # Calls that a dispatch mode watches take another way.
                patch.setattr(_torch, "is_watched", lambda: False)
                graph = super().capture(function, pool)
        finally:
            undo.restore()
            torch.set_rng_state(generator)
        if self.captures in self.fail_at:
            raise self.error
        return graph


@contextmanager
def stepping(backend: backends.Backend | None = None) -> Iterator[SteppingTape]:
    """The trainer runs on the CPU as on a GPU whose kernels are verified: packed batches are not looked into,
    rows that are read twice are not sorted out."""
    tape = SteppingTape() if backend is None else backend
    with captured_on_cpu(tape), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_library, "resolved", _without_autocast(_library.resolved))
        patch.setattr(tokens, "_checked", lambda cu_seqlens, total, longest: (0, longest or total))
        patch.setattr(torch, "unique", lambda rows, return_inverse: (rows, torch.arange(rows.shape[0])))
        yield tape
