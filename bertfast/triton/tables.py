"""Launch tables: the tile that a kernel runs with, by architecture and shape. Data in JSON files beside their ops, read here.

A file holds tables by name. A table has `fields`, the values that each number of a tile may take (what `python -m
benchmarks.tune` tries, beside whole tiles under `also`), and `entries`, one a line:

    {"arch": 90, "size": "many", "tile": {"m": 128, ...}, "reason": "...", "measured": {...}}

`arch` is the least architecture that the entry is for, what stands beside it is its part of the key (what it does not name may be
anything), and `reason` says why these numbers. Of the entries that fit, the one that names most serves; of those that name as much,
that of the newest architecture. `measured` is there only where times on a real device chose the tile: device, date, code
(of the kernels), gain (over the tile before) and the microseconds of the cases. The tuner writes it; where something else measured,
`by` says what.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Tile = Mapping[str, int]
ARCHITECTURES = (80, 90, 100)
MEASURED = frozenset(("device", "date", "code", "gain", "cases"))
_NOT_KEYS = ("arch", "tile", "reason", "measured")


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of a table; compared by identity."""

    table: str
    arch: int
    key: frozenset[tuple[str, int | str]]
    tile: Tile
    reason: str
    measured: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        key = " ".join(f"{name}={value}" for name, value in sorted(self.key))
        return f"{self.table} sm_{self.arch} {key}".rstrip()


def _key(line: Mapping[str, Any]) -> frozenset[tuple[str, int | str]]:
    return frozenset((name, value) for name, value in line.items() if name not in _NOT_KEYS)


def _numbers(tile: Any) -> bool:
    return isinstance(tile, dict) and all(type(value) is int for value in tile.values())


def _entry_faults(one: Any, fields: dict[str, list[int]], also: list[Any]) -> Iterator[str]:
    if not isinstance(one, dict) or not {"arch", "tile", "reason"} <= one.keys():
        yield "must have arch, tile and reason"
        return
    tile, measured, reason = one["tile"], one.get("measured"), one["reason"]
    if type(one["arch"]) is not int or (one["arch"] not in ARCHITECTURES and measured is None):
        yield f"arch must be one of {ARCHITECTURES}, or what the tuner ran on, not {one['arch']!r}"
    if any(not isinstance(value, int | str) for name, value in one.items() if name not in _NOT_KEYS):
        yield "its part of the key must be numbers and words"
    if not _numbers(tile) or tile.keys() != fields.keys():
        yield f"tile must have the numbers {sorted(fields)}, not {tile!r}"
    elif tile not in also:
        yield from (
            f"{name} {value} is not among its fields' {fields[name]}"
            for name, value in tile.items()
            if value not in fields[name]
        )
    if measured is not None and not (isinstance(measured, dict) and measured.keys() >= MEASURED):
        yield f"measured must have {sorted(MEASURED)}, as the tuner writes it"
    if not str(reason).startswith("predicted: " if measured is None else "measured on "):
        yield f'reason must begin with "predicted: ", or "measured on " where it was, not {reason!r}'


def faults(data: Any) -> Iterator[str]:
    """What is wrong with the content of a file of tables, each with its table and entry."""
    if not isinstance(data, dict):
        yield "must be tables by name"
        return
    for table, found in data.items():
        if not isinstance(found, dict) or not {"fields", "entries"} <= found.keys() <= {"fields", "also", "entries"}:
            yield f"table {table!r} must have fields and entries, may have also, and nothing else"
            continue
        fields, also = found["fields"], found.get("also", [])
        if not isinstance(fields, dict) or not all(
            isinstance(v, list) and v and all(type(x) is int for x in v) for v in fields.values()
        ):
            yield f"table {table!r}: fields must be names with the numbers that may be tried"
            continue
        for tile in also:
            if not _numbers(tile) or tile.keys() != fields.keys():
                yield f"table {table!r}: a tile under also must have the numbers {sorted(fields)}, not {tile!r}"
        for number, one in enumerate(found["entries"]):
            yield from (f"table {table!r}, entry {number}: {text}" for text in _entry_faults(one, fields, also))


_loaded: dict[str, "Tables"] = {}
_override: dict[Entry, Tile] = {}
_reached: set[Entry] | None = None


class Tables:
    """The tables of one file.

    Raises:
        ValueError: naming the file, table, entry and what must be there, where the file is not as it should be.
    """

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{file}: no JSON: {problem}") from problem
        if wrong := list(faults(data)):
            raise ValueError(f"{file}: " + "; ".join(wrong))
        self.fields: dict[str, dict[str, list[int]]] = {table: found["fields"] for table, found in data.items()}
        self.also: dict[str, list[Tile]] = {table: found.get("also", []) for table, found in data.items()}
        self.entries = [
            Entry(
                table,
                one["arch"],
                _key(one),
                one["tile"],
                one["reason"],
                one.get("measured"),
            )
            for table, found in data.items()
            for one in found["entries"]
        ]
        # One cache an object: a look-up is on the way of every eager call.
        self._locate = cache(self._search)

    def _search(self, table: str, arch: int, key: frozenset[tuple[str, int | str]]) -> Entry | None:
        fit = [e for e in self.entries if e.table == table and e.arch <= arch and e.key <= key]
        # What an entry says of itself comes first: a new one for some architecture then never takes another's shapes.
        return max(fit, key=lambda e: (len(e.key), e.arch), default=None)

    def get(self, table: str, arch: int, *, used: bool = True, **key: int | str) -> Tile | None:
        """The tile of the entry that names most of this key, of the newest architecture up to `arch`; None where there is none.

        used: False where the tile is only looked at, to choose between it and another.
        """
        entry = self._locate(table, arch, frozenset(key.items()))
        if entry is None:
            return None
        if used and _reached is not None:
            _reached.add(entry)
        return _override.get(entry, entry.tile) if _override else entry.tile

    def find(self, table: str, arch: int, *, used: bool = True, **key: int | str) -> Tile:
        """As `get`.

        Raises:
            KeyError: where the table has no such entry, which is a fault of the file or of the caller, never of the user.
        """
        tile = self.get(table, arch, used=used, **key)
        if tile is None:
            raise KeyError(f"{self.file}: no entry of {table!r} for sm_{arch} and {key}")
        return tile

    def record(self, entry: Entry, arch: int, tile: Tile, reason: str, measured: Mapping[str, Any]) -> None:
        """Write what was measured on `arch` into the file: in place of `entry` where it is that architecture's, else beside it."""
        data = json.loads(self.file.read_text(encoding="utf-8"))
        lines = data[entry.table]["entries"]
        same = [n for n, one in enumerate(lines) if _key(one) == entry.key]
        place = next((n for n in same if lines[n]["arch"] == arch), None)
        if place is None:
            place = same[-1] + 1
            lines.insert(place, {"arch": arch, **dict(sorted(entry.key))})
        lines[place] |= {"tile": dict(tile), "reason": reason, "measured": dict(measured)}
        self.file.write_text(dump(data), encoding="utf-8")


def load(name: str, file: Path) -> Tables:
    """Read the tables of `file`, known to the tuner and the docs as `name`."""
    return _loaded.setdefault(name, Tables(name, file))


def known() -> dict[str, Tables]:
    """Every file of tables read so far: those of the kernels that are imported."""
    return dict(_loaded)


def dump(data: Mapping[str, Any]) -> str:
    """JSON with one entry a line, so that a change of one reads as one line."""
    parts = []
    for table, found in data.items():
        lines = ",\n".join(f"   {json.dumps(one, ensure_ascii=False)}" for one in found["entries"])
        head = "".join(f'  "{name}": {json.dumps(found[name])},\n' for name in ("fields", "also") if name in found)
        parts.append(f' {json.dumps(table)}: {{\n{head}  "entries": [\n{lines}\n  ]\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def watched() -> bool:
    """Whether somebody overrides tiles or watches what is looked up: only then may a caller not keep what it found."""
    return bool(_override) or _reached is not None


@contextmanager
def override(tiles: Mapping[Entry, Tile]) -> Iterator[None]:
    """Other tiles for some entries meanwhile. Not for several threads: it is what the tuner uses."""
    global _override
    before, _override = _override, {**_override, **tiles}
    try:
        yield
    finally:
        _override = before


@contextmanager
def reached() -> Iterator[set[Entry]]:
    """Collect the entries that are looked up meanwhile."""
    global _reached
    before, _reached = _reached, set()
    try:
        yield _reached
    finally:
        _reached = before
