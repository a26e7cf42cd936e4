"""The model families that optimize() knows: a record in a file each, which is loaded when a model of the family is met.

To add one: a file here, named as the folder in transformers, with a record `FAMILY`; and its name in `_FILES`.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import nn

from bertfast import _torch

if TYPE_CHECKING:
    from bertfast.convert.families.record import Family

_FILES = ("bert", "roberta", "xlm_roberta", "camembert", "electra", "ernie", "distilbert", "mpnet")


_unfit: dict[str, str] = {}  # families whose record the installed transformers does not fit: what it lacks


class _Families(Mapping[str, "Family"]):
    """Name to record, in the order of `_FILES`; without those that the installed transformers does not fit."""

    def __getitem__(self, name: str) -> "Family":
        if name in _FILES and name not in _unfit:
            try:
                return importlib.import_module(f"{__name__}.{name}").FAMILY
            except (AttributeError, ImportError) as error:
                # A release that renames a class costs the family its speed, and the others nothing.
                _unfit[name] = f"{type(error).__name__}: {error}"
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in _FILES if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


FAMILIES: Mapping[str, "Family"] = _Families()


def _name_of(cls: type) -> str | None:
    """The name of the family that a class of transformers belongs to, whether its record fits or not."""
    parts = cls.__module__.split(".")
    return parts[2] if parts[:2] == ["transformers", "models"] and parts[2:3] and parts[2] in _FILES else None


def unfit(model: nn.Module) -> str | None:
    """Why a model's family has no record here though bertfast knows it; None where that is not so."""
    names = {_name_of(type(module)) for module in model.modules()}
    return next((f"{name}: {why}" for name, why in _unfit.items() if name in names), None)


def of(cls: type) -> "Family | None":
    """The family of a class of transformers, or of ours; None of any other."""
    own = getattr(cls, "family", None)
    if own is not None and cls.__module__ == own.file:
        return own
    name = _name_of(cls)
    return None if name is None else FAMILIES.get(name)


def of_instance(module: nn.Module) -> "Family | None":
    """The family of a module whose class may be a user's, made of one of transformers'."""
    return next((family for family in map(of, type(module).__mro__) if family is not None), None)


def fast_class(module: nn.Module) -> type[nn.Module] | None:
    """What optimize() swaps in for a module's class as it is; pre-training heads apart."""
    kind = _torch.unsharded_class(type(module))
    family = of(kind)
    return None if family is None else family.fast.get(kind)


def masked_class(module: nn.Module) -> type[nn.Module] | None:
    """What `masked_head` swaps in."""
    family = of(type(module))
    return None if family is None else family.fast_masked.get(stock_class(module) or type(module))


def averaged_class(module: nn.Module) -> type[nn.Module] | None:
    """What `average_over_accumulation` swaps in for a head that has no other fast class."""
    family = of(type(module))
    return None if family is None else family.fast_averaged.get(stock_class(module) or type(module))


def stock_class(module: nn.Module) -> type[nn.Module] | None:
    """What was swapped out for a module's class; None for a module that is not swapped."""
    kind = _torch.unsharded_class(type(module))
    own = getattr(kind, "family", None)
    if own is None or kind.__module__ != own.file:
        return None
    return kind.__dict__.get("stock")
