"""Dataclasses from YAML, flags and `--set`: types checked, unknown keys refused, every mistake with its place.

Nothing here knows the options of training; `config.py` holds those, and each command adds its own.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bertfast._extras import install
from bertfast.options import explained, fit, kind_name, limit_problem, shown_name
from bertfast.train.errors import ConfigError

T = TypeVar("T")


class Settings:
    """Nested values with the origin of each: a file and line, a flag, or `--set`."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def put(self, path: str, value: Any, origin: str) -> None:
        """Set the value at a dotted path, over what was there."""
        *parents, last = path.split(".")
        at = self.values
        for depth, parent in enumerate(parents):
            inner = at.setdefault(parent, {})
            if not isinstance(inner, dict):
                section = ".".join(parents[: depth + 1])
                raise ConfigError(
                    f"{self.origin(section)}: {section} is a section of options, found {inner!r}; {origin} belongs in it"
                )
            at = inner
        at[last] = value
        self.origins[path] = origin

    def read(self, path: Path) -> None:
        """Read a YAML file. ConfigError names the line of what cannot be read, and of a key that stands twice."""
        yaml = _yaml()
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: no valid YAML: {error}") from None
        if values is None:
            return
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected sections of options, found {values!r}")
        for key, line in _lines(node, ""):
            if key in self.origins:
                raise ConfigError(f"{path}:{line}: {key} stands twice, first in {self.origins[key]}; keep one")
            self.origins[key] = f"{path}:{line}"
        self.values = values

    def origin(self, path: str) -> str:
        """Where the value at `path`, or the nearest section around it, came from."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return "options"


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError(f"configuration files need PyYAML: {install('train')}") from None
    return yaml


def _lines(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        yield path, key.start_mark.line + 1
        if value.id == "mapping":
            yield from _lines(value, f"{path}.")


def build(cls: type[T], settings: Settings, values: Any = None, path: str = "") -> T:
    """An instance of dataclass `cls` from `settings`. ConfigError: unknown key, wrong type or value, missing option."""
    values = settings.values if values is None and not path else values
    where = settings.origin(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {path} is a section of options, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kinds = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            _refuse_unknown(settings, path, str(key), kinds)
    given: dict[str, Any] = {}
    missing = ""
    for name, field in fields.items():
        at = f"{path}{name}"
        if name in values:
            given[name] = _convert(settings, kinds[name], values[name], at)
            _check_limits(settings, field, given[name], at)
        elif dataclasses.is_dataclass(kinds[name]):
            given[name] = build(kinds[name], settings, {}, f"{at}.")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            missing = missing or _missing(field, at)
    if missing:  # after what is wrong with the options that are there
        raise ConfigError(missing)
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if path else str(error)) from None


def _missing(field: "dataclasses.Field[Any]", path: str) -> str:
    """Says that an option without a default was not given, and where to give it."""
    in_file = f"`{path}:` in --config"
    shown = shown_name(field)
    where = f"{shown} (or {in_file})" if shown else in_file
    return f"{where} is missing: {field.metadata.get('help') or 'it has no default'}"


def _refuse_unknown(settings: Settings, path: str, key: str, kinds: dict[str, Any]) -> None:
    """kinds: the options there, by name; one that is a dataclass is a section with options of its own."""
    sections = [name for name, kind in kinds.items() if dataclasses.is_dataclass(kind)]
    inside = [name for name in sections if key in (field.name for field in dataclasses.fields(kinds[name]))]
    near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5)
    meant = [f"{path}{name}.{key}" for name in inside] or near
    hint = f"; did you mean {' or '.join(meant)}?" if meant else f"; known here: {', '.join(kinds)}"
    raise ConfigError(f"{settings.origin(f'{path}{key}')}: unknown option {path}{key}{hint}")


def _convert(settings: Settings, kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(kind, settings, {} if value is None else value, f"{path}.")  # type: ignore[arg-type]
    fits, found = fit(kind, value)
    if not fits:
        raise ConfigError(f"{settings.origin(path)}: {path} must be {kind_name(kind)}, got {value!r}")
    return found


def _check_limits(settings: Settings, field: Any, value: Any, path: str) -> None:
    if wrong := limit_problem(field, value):
        raise ConfigError(f"{settings.origin(path)}: {path} must be {wrong}, got {value!r}")


def resolve(cls: type[T], file: Path | None = None, flags: Mapping[str, Any] = {}, sets: Sequence[str] = ()) -> T:
    """The configuration of a command: defaults, then a YAML file, then flags, then `--set`, later ones winning.

    flags: dotted path -> value; None means that the flag was not given. sets: texts such as "train.learning_rate=1e-4".
    Raises ConfigError.
    """
    settings = Settings()
    if file is not None:
        settings.read(file)
    for path, value in flags.items():
        if value is not None:
            settings.put(path, value, f"--{path.rpartition('.')[2].replace('_', '-')}")
    for text in sets:
        path, sign, value = text.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set {text}: expected name=value, for example train.learning_rate=1e-4")
        yaml = _yaml()
        try:
            settings.put(path.strip(), yaml.safe_load(value), f"--set {text}")
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: the value is no valid YAML") from None
    return build(cls, settings)


def to_yaml(config: Any) -> str:
    """YAML that `resolve` reads back to an equal configuration, but for options that are passing."""
    return _yaml().safe_dump(_lasting(config), sort_keys=False, allow_unicode=True)


def _lasting(config: Any) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if not f.metadata.get("passing")}
    return {name: _lasting(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def changes(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two configurations of one class and may not when a run is resumed, as "name: old -> new"."""
    found: list[str] = []
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(after):
            found += changes(before, after, f"{path}{field.name}.")
        elif before != after and not field.metadata.get("free"):
            found.append(f"{path}{field.name}: {before!r} -> {after!r}")
    return found


def describe(cls: Any, path: str = "") -> str:
    """All options of a configuration, one a line: name, kind, default, help."""
    kinds = typing.get_type_hints(cls)
    lines = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[field.name]):
            lines.append(describe(kinds[field.name], f"{path}{field.name}."))
            continue
        needed = field.default is dataclasses.MISSING
        default = "required" if needed else "none" if field.default is None else field.default
        choices = explained(field) or " | ".join(field.metadata["choices"])
        what = "; ".join(part for part in (choices, field.metadata["help"]) if part)
        lines.append(f"{path + field.name:32} {default!s:10} {what}".rstrip())
    return "\n".join(lines)
