"""What the calls of each swapped module did, for `report`. Kept beside the modules, in weak dictionaries.

A compiled graph runs no Python of a module's, but for its node of all layers (`compiled`), which has their parameters alone: what
it did is kept by the first of them. A graph without that node counts nothing; that it was made is noted while it is traced.
"""

from collections import Counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

FAST = "fast"
UNPADDED = "fast, padding removed"
SPLIT = "fast, padding removed but from sequences that begin with it"
COMPILED = " (compiled)"  # ends an outcome of a call that a compiled graph made
_calls: "WeakKeyDictionary[nn.Module, Counter[str]]" = WeakKeyDictionary()
_compiled: Any = WeakTensorKeyDictionary()  # first parameter of all layers -> outcomes of the node
_uncounted: dict[type, dict[str, None]] = {}  # class of a stack of layers -> why graphs have no such node


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
    for parameter in module.parameters():
        _compiled.pop(parameter, None)


def count_compiled(first: Tensor, outcome: str) -> None:
    """Note what the node of all layers did; `first`: the first of their parameters."""
    outcomes = _compiled.get(first)
    if outcomes is None:
        outcomes = _compiled.setdefault(first, Counter())
    outcomes[outcome + COMPILED] += 1


def compiled_calls(module: nn.Module) -> dict[str, int]:
    """How often each outcome came about in compiled graphs, for a stack of layers and any other that has the same parameters."""
    outcomes: Counter[str] = Counter()
    for parameter in module.parameters():
        outcomes.update(_compiled.get(parameter, {}))
    return dict(outcomes)


@torch.compiler.assume_constant_result
def note_uncounted(stack: type[nn.Module], reason: str = "") -> None:
    """Note that a graph is being traced which runs a stack of layers of this class padded, and so will not count its calls.

    Runs as it is while torch.compile traces, adds nothing to the graph and no guard. That is why it takes constants alone: a
    reason that names a dynamic size is none.
    """
    if torch.compiler.is_exporting():  # which makes no graph of this process's
        return
    reasons = _uncounted.setdefault(stack, {})
    if reason:
        reasons[reason] = None


def uncounted(stack: type[nn.Module]) -> tuple[str, ...] | None:
    """Why graphs traced in this process run stacks of this class padded, as far as it is known; None where none does."""
    reasons = _uncounted.get(stack)
    return None if reasons is None else tuple(reasons)
