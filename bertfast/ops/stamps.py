"""Whether tensors lie where they lay: one look at storage, address, shape, strides, dtype and device of each, and at no number.

For code that reads tensors by address, such as a captured graph: what is written into them in place it sees by itself, and anything
else that can happen to a parameter (replaced, loaded with `assign`, swapped through `.data`, moved to another dtype or device)
gives it another address or form. A stamp keeps no memory alive, but the identity of each storage: a new tensor that was given the
address of one that is gone is another tensor. 200 tensors take about 5 us in C++ (csrc/stamp.cpp), 0.3 ms in Python.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from bertfast import _ext


class Stamp(Protocol):
    """What a sequence of tensors was."""

    def holds(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these are the same tensors in the same places, whatever is written in them."""


def stamp(tensors: Sequence[Tensor | None]) -> Stamp:
    """The stamp of these tensors; None stands for one that is absent.

    It never holds where one of them answers for its own memory (fake, sharded) or has none to look at (sparse).

    Raises:
        TypeError: where there is anything but tensors and None.
    """
    extension: Any = _ext.load()
    return PythonStamp(tensors) if extension is None else extension.Stamp(tensors)


class PythonStamp:
    """The stamp where the extension is absent."""

    def __init__(self, tensors: Sequence[Tensor | None]):
        self._seen = [_look(t) for t in tensors]

    def holds(self, tensors: Sequence[Tensor | None]) -> bool:
        return (
            len(tensors) == len(self._seen)
            and all(seen is not False for seen in self._seen)
            and all(_look(t) == seen for t, seen in zip(tensors, self._seen, strict=True))
        )


def _look(t: Tensor | None) -> Any:
    """What a stamp compares; False for a tensor of which it can say nothing, None for an absent one."""
    if t is None:
        return None
    if not isinstance(t, Tensor):
        raise TypeError(f"tensors must hold tensors and None, got {type(t).__name__}")
    if type(t) not in (Tensor, nn.Parameter) or t.layout is not torch.strided:
        return False
    return StorageWeakRef(t.untyped_storage()), t.data_ptr(), t.shape, t.stride(), t.dtype, t.device
