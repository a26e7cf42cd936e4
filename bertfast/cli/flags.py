"""Flags and arguments of a command from the options of a dataclass: names, types, texts, choices and defaults stand there alone."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape

from bertfast.cli.common import fail
from bertfast.options import explained, is_list, kinds_of, usual

T = TypeVar("T")

# Panels of --help for the sections of a dataclass.
_PANELS = {"train": "Training", "model": "Model", "data": "Data"}


@dataclass(frozen=True)
class Flag:
    """path: of the option, dotted. annotation: as typer reads it. is_split: whether its text is a list with commas."""

    path: str
    annotation: Any
    is_split: bool
    is_required: bool


Flags = Mapping[str, Flag]
"""By the name of the command's parameter."""


def flags_of(cls: type, panel: str | None = None, section: str = "") -> dict[str, Flag]:
    """A flag for each option of a dataclass, nested sections laid flat; `panel`: of those outside sections."""
    made: dict[str, Flag] = {}
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            made |= flags_of(typing.cast(type, kind), _PANELS.get(field.name), f"{section}{field.name}.")
        elif not field.metadata.get("hidden"):
            made[field.name] = _flag(field, kind, panel, f"{section}{field.name}")
    return made


def _flag(field: "dataclasses.Field[Any]", kind: Any, panel: str | None, path: str) -> Flag:
    about, plain = field.metadata, _plain(kind)
    many = is_list(kind)
    splits = many and not (about.get("repeated") or about.get("argument"))
    if splits:
        plain = str
    text = escape(_help(field))
    needed = usual(field) is dataclasses.MISSING
    if about.get("argument"):
        return Flag(path, Annotated[plain | None, typer.Argument(help=text, rich_help_panel=panel)], False, needed)
    more = about.get("flags", ())
    name = f"--{field.name.replace('_', '-')}"
    names = [*more]
    if name not in more and not any("/" in each for each in more):
        names.append(f"{name}/--no-{name[2:]}" if plain is bool else name)
    choices = about.get("choices", ())

    def complete(begun: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(begun)]

    option: Any = typer.Option(*names, help=text, rich_help_panel=panel, autocompletion=complete if choices else None)
    return Flag(path, Annotated[plain | None, option], splits, needed)


def _help(field: "dataclasses.Field[Any]") -> str:
    """The option's own text, its choices and its default."""
    default = usual(field)
    if meanings := explained(field):
        return "; ".join(part for part in (field.metadata["help"], meanings) if part)
    parts = [field.metadata.get("help", ""), " | ".join(field.metadata.get("choices", ()))]
    if default not in (dataclasses.MISSING, None):
        parts.append(f"default {','.join(map(str, default)) if isinstance(default, (list, tuple)) else default}")
    return "; ".join(part for part in parts if part)


def _plain(kind: Any) -> Any:
    """X of X | None."""
    return next(each for each in kinds_of(kind) if each is not types.NoneType)


def values_of(flags: Flags, given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path of each option to what was given; None where it was not."""
    values = {}
    for name, flag in flags.items():
        value = given[name]
        values[flag.path] = [part.strip() for part in value.split(",")] if flag.is_split and value else value
    return values


def command(
    name: str,
    flags: Flags,
    run: Callable[..., None],
    help: str,
    *,
    extra: Mapping[str, tuple[Any, Any]] = {},
    demands: bool = False,
) -> Callable[..., None]:
    """A command for typer that calls `run(values, **extra)` with `values_of` its flags.

    Args:
        name: of the command.
        extra: further parameters before the flags: name to (annotation, default).
        demands: whether the command line must give the options that have no default, as where no file can.
    """

    def made(**given: Any) -> None:
        run(values_of(flags, given), **{each: given[each] for each in extra})

    own = {each: (flag.annotation, ... if demands and flag.is_required else None) for each, flag in flags.items()}
    parameters = [
        inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for each, (annotation, default) in {**extra, **own}.items()
    ]
    made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    made.__name__, made.__doc__ = name, help
    return made


def simple(name: str, cls: type[T], run: Callable[[T], None], help: str) -> Callable[..., None]:
    """A command whose options are all on the command line: `run` is called with an instance of `cls`, or the mistake is told."""

    def resolved(values: dict[str, Any]) -> None:
        from bertfast.train.errors import ConfigError
        from bertfast.train.settings import resolve

        try:
            options = resolve(cls, None, values)
        except ConfigError as error:
            raise fail(str(error)) from None
        run(options)

    return command(name, flags_of(cls), resolved, help, demands=True)
