"""What the calls of each swapped module did, for `report`. Kept beside the modules, in a weak dictionary."""

from collections import Counter
from weakref import WeakKeyDictionary

import torch
from torch import nn

FAST = "fast"
UNPADDED = "fast, padding removed"
SPLIT = "fast, padding removed but from sequences that begin with it"
_calls: "WeakKeyDictionary[nn.Module, Counter[str]]" = WeakKeyDictionary()


def count(module: nn.Module, outcome: str) -> None:
    """Note what a call of `module` did; nothing while compiling, which runs Python only once."""
    if not torch.compiler.is_compiling():
        counter(module)[outcome] += 1


def counter(module: nn.Module) -> Counter[str]:
    """The outcomes of `module`'s calls; until `forget` the same object."""
    outcomes = _calls.get(module)
    return _calls.setdefault(module, Counter()) if outcomes is None else outcomes


def calls(module: nn.Module) -> dict[str, int]:
    """How often each outcome came about since optimize()."""
    return dict(_calls.get(module, {}))


def forget(module: nn.Module) -> None:
    """Drop the outcomes of `module`'s calls, as though none had been made."""
    _calls.pop(module, None)
