"""An option of a dataclass: its help, limits and flag, which YAML files, flags and a checkpoint's settings go by alike."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: Sequence[str] | Mapping[str, str] = (),
    low: float | None = None,
    high: float | None = None,
    free: bool = False,
    passing: bool = False,
    hidden: bool = False,
    flags: Sequence[str] = (),
    argument: bool = False,
    repeated: bool = False,
    stored: str | None = None,
    predicting: str = "",
) -> Any:
    """A dataclass field with its help and limits. A list or another mutable default is copied for each instance.

    Args:
        choices: all values that it may have; a mapping says in the help what each does.
        free: may change when a run is resumed.
        passing: is of one process and not of the run, so it is not written down.
        hidden: has no flag.
        flags: names on the command line besides the one that is made of the field's. One with a slash, which names both sides
            of a switch, or the field's own, which is then a switch without a "no", stands in its place.
        argument: is given without a flag.
        repeated: of a list: the flag is given once for each item, rather than once with commas.
        stored: under which name a fine-tuned model keeps it.
        predicting: may be given to `predict` as well, whose help says this of it.
    """
    meanings = dict(choices) if isinstance(choices, Mapping) else {}
    metadata = {
        "help": help, "choices": tuple(choices), "meanings": meanings, "low": low, "high": high, "free": free, "passing": passing,
        "hidden": hidden, "flags": tuple(flags), "argument": argument, "repeated": repeated, "stored": stored,
        "predicting": predicting,
    }  # fmt: skip
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def usual(field: "dataclasses.Field[Any]") -> Any:
    """A field's default; `dataclasses.MISSING` where it has none."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def shown_name(field: "dataclasses.Field[Any]") -> str:
    """What an option is on the command line: `--name`, the first of its own flags, or NAME of an argument; "" where it has none."""
    if field.metadata.get("hidden"):
        return ""
    if field.metadata.get("argument"):
        return field.name.upper()
    own = [each for each in field.metadata.get("flags", ()) if "/" not in each]
    return own[0] if own else f"--{field.name.replace('_', '-')}"


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: those of `X | None`, or the one."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def is_list(kind: Any) -> bool:
    """Whether a value may be a list."""
    return any(typing.get_origin(each) is list for each in kinds_of(kind))


def kind_name(kind: Any) -> str:
    """What a value must be, in words: "a whole number or nothing"."""
    return " or ".join("nothing" if each is type(None) else _name(each) for each in kinds_of(kind))


def _name(kind: Any) -> str:
    inner = typing.get_args(kind)
    return f"a list of {_name(inner[0])}" if inner else _NAMES.get(kind, kind.__name__)


def explained(field: "dataclasses.Field[Any]") -> str:
    """Its choices with what each does, the default first: "refuse (default): ...; skip: ..."; empty where none says that."""
    default = usual(field)
    meanings = field.metadata.get("meanings", {})
    names = sorted(meanings, key=lambda name: name != default)
    return "; ".join(f"{name}{' (default)' if name == default else ''}: {meanings[name]}" for name in names)


def fit(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` is of type `kind`, and it as one."""
    for each in kinds_of(kind):
        fits, found = _fit(each, value)
        if fits:
            return True, found
    return False, value


def _fit(kind: Any, value: Any) -> tuple[bool, Any]:
    if typing.get_origin(kind) is list:
        inner = typing.get_args(kind)[0]
        found = [_fit(inner, item) for item in value] if isinstance(value, (list, tuple)) else [(False, None)]
        return all(fits for fits, _ in found), [item for _, item in found]
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4 as text
            return True, float(value)
        except ValueError:
            return False, None
    if kind in (str, Path) and isinstance(value, (str, Path)):
        return True, kind(value)
    return type(value) is kind, value


def limit_problem(field: "dataclasses.Field[Any]", value: Any) -> str:
    """What `value` must be by the field's choices and bounds, in words; empty where it is that."""
    choices, low, high = (field.metadata.get(name) for name in ("choices", "low", "high"))
    if value is None:
        return ""
    if choices and value not in choices:
        return f"one of {', '.join(choices)}"
    for limit, word, is_bad in ((low, "at least", lambda v: v < low), (high, "at most", lambda v: v > high)):
        if limit is not None and not (value == value and not is_bad(value)):
            return f"{word} {limit}"
    return ""
