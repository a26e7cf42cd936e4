"""Whether a model and all inside it is as it was: classes, modules, hooks, options, parameters by identity (csrc/snapshot.h).

To look through a hundred modules in Python takes as long as a layer of MiniLM does on a query of 16 tokens; this takes a twentieth
of that. What lies in the parameters is not looked at: `ops.stamps` says where they lie, prepacked copies what they hold.
"""

import functools
from collections.abc import Iterable
from types import BuiltinFunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bertfast import _ext

# Functions of an activation and shapes of a norm among them. Not functions and methods of Python, which may hold the model itself
# and would keep it alive.
_KINDS = (nn.Module, Tensor, torch.dtype, BuiltinFunctionType, functools.partial, tuple)
_INSIDE = {
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_bertfast",
}


class Snapshot(Protocol):
    def holds(self, model: nn.Module) -> bool:
        """Whether nothing has changed."""


def take(model: nn.Module, others: Iterable[Any] = (), kinds: tuple[type, ...] = ()) -> Snapshot | None:
    """A snapshot of a model and every module inside; it keeps the latter alive, not the model. None without the C++ extension.

    others: objects outside the modules whose attributes count as well, such as configs; they are kept.
    kinds: further classes whose instances are compared by identity where an attribute holds one.
    """
    extension: Any = _ext.load()
    if extension is None:
        return None
    inside = [module for module in model.modules() if module is not model]
    return extension.Snapshot(model, [*inside, *others], (*_KINDS, *kinds), _INSIDE)
