"""The options of `optimize` that a swapped module goes by: plain values in one dict on the instance, kept by copies."""

from typing import Any

from torch import nn

from bertfast.graphs import Limits

NAME = "_bertfast"  # the attribute


def option(module: nn.Module, name: str) -> Any:
    """The value of an option; None where it was not given, and for a module that is not swapped."""
    return module.__dict__.get(NAME, {}).get(name)


def give(module: nn.Module, options: dict[str, Any]) -> None:
    """Set all options of a module; the dict is new, so that whoever compares by identity sees a change."""
    module.__dict__[NAME] = options


def limits_of(module: nn.Module) -> Limits:
    """The bounds of a model's captured calls, as `optimize` gave them to every module inside."""
    given = {"max_graphs": option(module, "max_graphs"), "max_bytes": option(module, "max_graph_bytes")}
    return Limits(**{name: number for name, number in given.items() if number is not None})


def drop(module: nn.Module) -> None:
    """Take all options from a module; one that has none stays as it is."""
    module.__dict__.pop(NAME, None)
