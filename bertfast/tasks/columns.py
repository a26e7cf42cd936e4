"""Rows of tables: TSV, CSV and JSON lines, to the cells that are asked for by name."""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bertfast.tasks.lines import (
    BadLines,
    DataError,
    escaped_fault,
    file_kind,
    no_column,
    objects,
    read_content,
    text_fault,
    text_lines,
)

ABSENT = object()
"""In place of a cell: the line has no such key."""

_HEADERS = ("sentence", "sentence1")  # of the first column
_OTHER_DELIMITERS = {";": "';'", "\t": "tabs", "|": "'|'"}
_COUNT = "another number of columns"


@dataclass(frozen=True)
class Columns:
    """What is to be read of a table.

    first, second, label: names of the sentences and the label; None for what is not read.
    sentences: 1 or 2, None where the file tells.
    given: whether the user named them: each of them is then demanded, the second too.
    labelled: whether the label is demanded.
    """

    first: str
    second: str | None
    label: str | None
    sentences: int | None = None
    given: bool = False
    labelled: bool = True

    @property
    def demanded(self) -> list[str]:
        """Names without which a file cannot be read as asked."""
        with_second = self.sentences == 2 or (self.given and self.sentences != 1)
        names = (self.first, self.second if with_second else None, self.label if self.labelled else None)
        return [name for name in names if name is not None]

    @property
    def names(self) -> tuple[str | None, str | None, str | None]:
        return self.first, self.second, self.label

    def check(self, where: str, what: str, names: Sequence[str]) -> None:
        """DataError where one of the demanded names is none of `names`, or stands twice."""
        for name in self.demanded:
            if name not in names:
                raise no_column(where, what, name, names)
        for each in self.names:
            if each and names.count(each) > 1:
                raise DataError(f"{where}: the column {each!r} stands twice; give each its own name")


@dataclass(frozen=True)
class Row:
    """A place, and the cells of first sentence, second sentence and label: text, another value of JSON, or ABSENT."""

    where: str
    cells: list[Any] = field(default_factory=list)


def read_rows(path: Path, columns: Columns, bad: BadLines) -> Iterator[Row]:
    """The rows of a file by its ending. DataError: another ending, a column that is not there, bad lines that are refused."""
    readers = {".tsv": _tsv, ".txt": _tsv, ".csv": _csv, ".jsonl": _jsonl, ".json": _jsonl}
    kind = file_kind(path)
    if kind not in readers:
        raise DataError(f"{path}: files end in {', '.join(readers)}, each also in .gz")
    return readers[kind](path, columns, bad)


# --- TSV ----------------------------------------------------------------------------------------------------------------------


def _names_columns(where: str, cells: Sequence[str], columns: Columns) -> bool:
    """Whether the first line of a TSV file names its columns. DataError where it says that the label comes first."""
    first, last = (cell.strip().lower() for cell in (cells[0], cells[-1]))
    if first == "label" and len(cells) > 1:
        raise DataError(
            f"{where}: a header with the label first, but in a TSV file the label is the last column; "
            "change their order, or name the columns with --fields"
        )
    return first in (*_HEADERS, columns.first.lower()) or last in ("label", (columns.label or "label").lower())


class _TsvLayout:
    """Which cells of a TSV file are what: by the names of its first line, or by position."""

    def __init__(self, where: str, cells: Sequence[str], columns: Columns, bad: BadLines) -> None:
        self.count = len(cells)
        names = [cell.strip() for cell in cells]
        self.header = True
        if self._is_by_name(names, columns):
            columns.check(where, "column ", names)
            self.places = [names.index(name) if name in names else None for name in columns.names]
            if unread := [name for name in names if name not in columns.names]:
                bad.remarks.append(f"{where}: columns that are not read: {', '.join(unread)}")
            return
        if columns.given and any(name in names for name in columns.names):
            columns.check(where, "column ", names)
        sentences = columns.sentences or (1 + (columns.second is not None) if columns.given else max(1, self.count - 1))
        if not sentences <= self.count <= sentences + 1 or sentences > 2:
            raise DataError(
                f"{where}: {self.count} columns; a TSV file has sentence<TAB>label or sentence<TAB>sentence<TAB>label, or a first "
                "line with the names of --fields"
            )
        self.header = _names_columns(where, cells, columns)
        if columns.given and self.header:
            columns.check(where, "column ", names)
        if columns.given:
            bad.remarks.append(
                f"{where} has no header with {', '.join(columns.demanded)}: columns were read by their position"
            )
        self.places = [0, 1 if sentences == 2 else None, sentences if self.count > sentences else None]

    @staticmethod
    def _is_by_name(names: Sequence[str], columns: Columns) -> bool:
        """Whether the first line has the names: those that the user gave, or the usual ones alone, or more than positions say."""
        if not all(name in names for name in columns.demanded):
            return False
        return columns.given or len(names) > 3 or all(name in columns.names for name in names)


def _tsv(path: Path, columns: Columns, bad: BadLines) -> Iterator[Row]:
    """Columns without quoting: those that the first line names, or one or two sentences and the label."""
    layout: _TsvLayout | None = None
    quoted: list[str] = []
    lines = doubled = 0
    for where, line in text_lines(path, bad):
        cells = line.split("\t")
        if layout is None:
            layout = _TsvLayout(where, cells, columns, bad)
            if layout.header:
                bad.header = where
                continue
        if len(cells) != layout.count:
            bad.report(where, _COUNT, f"{len(cells)} instead of {layout.count}")
            continue
        lines += 1
        if any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells):
            quoted.append(where)
            doubled += any('""' in cell[1:-1] for cell in cells)
        yield Row(where, [ABSENT if place is None else cells[place] for place in layout.places])
    if doubled or 2 * len(quoted) > lines:
        bad.remarks.append(
            f"{path}: {len(quoted)} lines have a cell in double quotes, first {quoted[0]}: a TSV file has no quoting, so they were "
            "read as a part of the text; write it without, or as .csv"
        )


# --- JSON lines ---------------------------------------------------------------------------------------------------------------


def _jsonl(path: Path, columns: Columns, bad: BadLines) -> Iterator[Row]:
    items = list(objects(path, bad))
    if items:
        columns.check(str(path), "", list(dict.fromkeys(name for _, item in items for name in item)))
    for where, item in items:
        yield Row(where, [ABSENT if name is None else item.get(name, ABSENT) for name in columns.names])


# --- CSV ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """Lines first..last (counted from 1) and their cells, or why they cannot be parted."""

    first: int
    last: int
    cells: list[str] = field(default_factory=list)
    wrong: tuple[str, str] | None = None


def _records(lines: list[str]) -> list[_Record]:
    """The records of a CSV file. A line with a quote that goes wrong is bad alone: reading goes on with the line after it."""
    records: list[_Record] = []
    start = 0
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process
    try:
        while start < len(lines):
            reader = csv.reader(islice(lines, start, None), strict=True)
            begin = start
            try:
                for cells in reader:
                    end = start + reader.line_num
                    records.append(_Record(begin + 1, end, cells))
                    begin = end
                start = len(lines)
            except csv.Error as error:
                opened = _opening(lines, begin)
                why, detail = _quote_problem(str(error), opened, start + reader.line_num, len(lines))
                if opened > begin:  # cells before it have line ends of their own
                    detail += f"; its row begins in line {begin + 1} and is left out with it"
                records.append(_Record(opened + 1, opened + 1, wrong=(why, detail)))
                start = opened + 1
    finally:
        csv.field_size_limit(limit)
    return records


def _opening(lines: list[str], begin: int) -> int:
    """The line (from 0) of the last quote that opens a cell in the record that begins at `begin`, up to where it goes wrong."""
    opened, inside = begin, False
    for number in range(begin, len(lines)):
        line, place, fresh = lines[number], 0, not inside
        while place < len(line):
            char = line[place]
            if inside:
                if char == '"' and line[place + 1 : place + 2] == '"':
                    place += 1
                elif char == '"':
                    inside = False
                    if line[place + 1 : place + 2] not in (",", "\r", "\n", ""):
                        return opened
            elif char == '"' and fresh:
                inside, opened = True, number
            fresh = not inside and char == ","
            place += 1
    return opened


def _quote_problem(error: str, opened: int, reached: int, lines: int) -> tuple[str, str]:
    if "unexpected end" in error:
        after = lines - opened - 1
        return (
            "a quote that is never closed",
            f"it opens here, and the {after:,} lines after it would be of the same cell; they are read as rows of their own",
        )
    if reached == opened + 1:
        return "text after a closing quote", "a quote within a cell is written twice"
    return (
        "a quote that is never closed",
        f"it opens here, and the next quote, in line {reached}, ends no cell; the lines after this one are rows of their own",
    )


def _csv(path: Path, columns: Columns, bad: BadLines) -> Iterator[Row]:
    places: list[int | None] = []

    def check(where: str, names: list[str]) -> None:
        _check_delimiter(where, names, columns.first)
        columns.check(where, "column ", names)
        places.extend(names.index(name) if name in names else None for name in columns.names)

    for where, _, cells in _csv_rows(path, bad, check):
        yield Row(where, [ABSENT if place is None else cells[place] for place in places])


def _csv_rows(
    path: Path, bad: BadLines, check: Callable[[str, list[str]], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """(place, names of the columns, cells) of each row; `check` is called with the header's place and names first."""
    text = read_content(path, bad).decode(errors="surrogateescape")
    records = [record for record in _records(io.StringIO(text, newline="").readlines()) if record.cells or record.wrong]
    header = records[0]
    if header.wrong:
        raise DataError(f"{path}:{header.first}: {': '.join(header.wrong)}; this line names the columns")
    names = [name.strip() for name in header.cells]
    check(f"{path}:{header.first}", names)
    bad.header = f"{path}:{header.first}"
    broken: list[_Record] = []
    for record in records[1:]:
        where = f"{path}:{record.first}"
        wrong = record.wrong or _cells_problem(record.cells, len(names))
        if wrong is not None:
            bad.report(where, *wrong)
            continue
        if record.last > record.first:
            broken.append(record)
        yield where, names, record.cells
    if broken:
        longest = max(broken, key=lambda record: record.last - record.first)
        bad.remarks.append(
            f"{path}: {len(broken)} rows have line ends within a cell, the longest is lines {longest.first} to {longest.last}: "
            "where that is not meant, a quote is missing"
        )


def _check_delimiter(where: str, names: list[str], first: str) -> None:
    other = next((mark for mark in _OTHER_DELIMITERS if len(names) == 1 and mark in names[0]), None)
    if other is not None and first not in names:
        advice = "name it .tsv" if other == "\t" else "write it with commas"
        raise DataError(
            f"{where}: the columns are parted by {_OTHER_DELIMITERS[other]}, and a CSV file has commas: {advice}"
        )


def _cells_problem(cells: list[str], count: int) -> tuple[str, str] | None:
    if len(cells) != count:
        return _COUNT, f"{len(cells)}, the header has {count}"
    return next((wrong for cell in cells if (wrong := escaped_fault(cell))), None) or text_fault(*cells)


# --- whole rows ---------------------------------------------------------------------------------------------------------------


def read_items(
    path: Path, bad: BadLines, check: Callable[[str, list[str]], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, cells by their names) of each row: JSON lines, and TSV and CSV whose first line names the columns.

    check: called with the place and the names of the first line of a table, which may raise DataError.

    Raises:
        DataError: another ending, a name that stands twice, bad lines that are refused.
    """

    def checked(where: str, names: list[str]) -> None:
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{where}: the column {twice!r} stands twice; give each its own name")
        check(where, names)

    kind = file_kind(path)
    if kind in (".jsonl", ".json"):
        yield from objects(path, bad)
    elif kind == ".csv":
        for where, names, cells in _csv_rows(path, bad, checked):
            yield where, dict(zip(names, cells, strict=True))
    elif kind in (".tsv", ".txt"):
        yield from _tsv_items(path, bad, checked)
    else:
        raise DataError(f"{path}: files end in .tsv, .txt, .csv, .jsonl, .json, each also in .gz")


def _tsv_items(
    path: Path, bad: BadLines, check: Callable[[str, list[str]], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    names: list[str] | None = None
    for where, line in text_lines(path, bad):
        cells = line.split("\t")
        if names is None:
            names = [cell.strip() for cell in cells]
            check(where, names)
            bad.header = where
        elif len(cells) != len(names):
            bad.report(where, _COUNT, f"{len(cells)} instead of {len(names)}")
        else:
            yield where, dict(zip(names, cells, strict=True))
