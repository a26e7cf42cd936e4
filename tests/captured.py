"""Captured calls on a CPU: a tape replays what a GPU's graph would, and references compute what kernels would."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from bertfast import _library
from bertfast.graphs import backend as backends
from bertfast.nn import device

_NO_NUMBERS = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "alias")
_now = threading.local()


class _Tape(TorchDispatchMode):
    """Every function that runs, with its arguments and results: an op of ours as one, though its reference calls others."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []  # (function, args, kwargs, result)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or func.overloadpacket.__name__ in _NO_NUMBERS):
            self._note(func, args, kwargs or {}, result)
        return result

    def op(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with _disable_current_modes():  # thousands of functions inside, none of them a step
            result = function(*args)
        self._note(function, args, {}, result)
        return result

    def _note(self, *step: Any) -> None:
        """Memory is noted, not the tensor that names it: `.data` gives a parameter other memory."""
        self.steps.append(tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, step))


class _Recorded(backends.Graph):
    """What ran once, run again as it was: the same functions on the same memory with the same scalars, whatever the model has
    become meanwhile. Python around it does not run, so a number that Python read is that of the capture."""

    def __init__(self, tape: _Tape, outputs: tuple[Tensor, ...]):
        self._steps, self.outputs = tape.steps, outputs
        self.nbytes = sum(output.nbytes for output in outputs)

    def replay(self, function: backends.Function) -> None:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):  # below which it ran
            for step, args, kwargs, result in self._steps:
                again = tree_leaves(step(*args, **kwargs))
                for target, source in zip(tree_leaves(result), again, strict=True):
                    if isinstance(target, Tensor) and target.data_ptr() != source.data_ptr():
                        target.copy_(source)

    def reset(self) -> None:
        self.outputs, self._steps = (), []


class Taping(backends.StandIn):
    """A stand-in that is as blind to Python as a CUDA graph is."""

    def capture(self, function: backends.Function, pool: str = backends.INFERENCE) -> backends.Graph:
        tape = _Tape()
        _now.tape = tape
        try:
            with tape:
                outputs = function()
        finally:
            _now.tape = None
        for output in outputs:  # it holds no numbers before the first replay; to autograd it is as it was
            output.data.fill_(float("nan"))
        return _Recorded(tape, outputs)


def _launchers() -> Callable[[str, str], Callable[..., Any]]:
    """In place of `_library.resolved`: references, one step of a tape each; the same function at each call."""
    made: dict[str, Callable[..., Any]] = {}

    def resolved(name: str, key: str) -> Callable[..., Any]:
        reference = _library.meaning(name)

        def launch(*args: Any) -> Any:
            tape = getattr(_now, "tape", None)
            with torch.autocast("cpu", enabled=False):  # of which a kernel knows nothing
                return reference(*args) if tape is None else tape.op(reference, args)

        return made.setdefault(name, launch)

    return resolved


@contextmanager
def captured_on_cpu(backend: backends.Backend | None = None) -> Iterator[backends.Backend]:
    """Models on the CPU run as on a GPU whose kernels are verified."""
    backend = Taping() if backend is None else backend
    with pytest.MonkeyPatch.context() as patch, backends.installed(backend):
        patch.setattr(device, "KINDS", device.KINDS | {"cpu"})
        patch.setattr(device, "runs_kernels", lambda: True)
        patch.setattr(_library, "resolved", _launchers())
        yield backend
