"""Texts with their ids from text files, JSONL and Parquet, one after another in memory that does not grow with the files.

What cannot be used (invalid UTF-8, malformed JSON, a missing field, no text, null, another type) is a `BadLine` in its place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertfast.data import encodings
from bertfast.data.files import missing_extra
from bertfast.data.lines import BadLine, Progress, SourceError, fault, read_lines
from bertfast.data.sources import parse_row
from bertfast.tasks.lines import DataError, described, file_kind, nearest

KINDS = ("text", "jsonl", "parquet")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}  # others are text
TEXT_FIELD = "text"  # holds the text where nothing else is asked for
_ROWS = 4096  # of a Parquet file that are read at once
Id = int | str


@dataclass(frozen=True)
class Text:
    """One text to encode. Its id is what `id_field` holds, or its line's number, behind the file's name where there are several."""

    id: Id
    text: str


class Input:
    """Files of texts, in their order; each pass over it gives the same.

    Args:
        paths: text files (a text a line), JSONL (an object a line) and Parquet, told apart by their endings; .gz of the first two.
        field: of JSONL and Parquet, what holds the text.
        id_field: of JSONL and Parquet, what holds a text's id, all integers or all texts; None for numbers of lines, from 1.
        kind: "text", "jsonl" or "parquet", whatever the endings say.
        encoding: of text files and JSONL; UTF-8 where None.

    Attributes:
        progress: bytes of the files that were read so far, of how many.

    Raises:
        DataError: a file is not there, its ending is unknown, a Parquet file has no such column, or fields are asked for and
            the files are plain text.
        ImportError: a file is Parquet, and pyarrow is not installed.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        field: str = TEXT_FIELD,
        id_field: str | None = None,
        kind: str | None = None,
        encoding: str | None = None,
    ) -> None:
        if not paths:
            raise DataError("there is no input: name one file or more")
        if kind not in (None, *KINDS):
            raise DataError(f"input format {kind!r} is unknown; it is text, jsonl or parquet")
        if encoding is not None and not encodings.known(encoding):
            raise DataError(f"encoding {encoding!r} is unknown to Python; utf-16, cp932 and euc_jp are some")
        self.paths, self.field, self.id_field, self.encoding = list(paths), field, id_field, encoding
        self.kinds = [_kind(path, kind) for path in paths]
        if id_field is not None and "text" in self.kinds:
            raise DataError(
                f"{paths[self.kinds.index('text')]} has lines of plain text, which hold no id: leave the id field out"
            )
        if field != TEXT_FIELD and set(self.kinds) == {"text"}:
            raise DataError(
                f"{paths[0]} has lines of plain text, which hold no field {field!r}: leave the field out, or read the file as "
                "JSONL (--input-format jsonl)"
            )
        for path, each in zip(self.paths, self.kinds, strict=True):
            if each == "parquet":
                _open_parquet(path, field, id_field)
        self._id_type: type | None = None
        self.progress = Progress(sum(path.stat().st_size for path in self.paths))

    def describe(self) -> dict[str, Any]:
        """Names and sizes of the files and how they are read: what a run is compared by before it is resumed."""
        files = [
            {"name": path.name, "bytes": path.stat().st_size, "format": kind}
            for path, kind in zip(self.paths, self.kinds, strict=True)
        ]
        return {"files": files, "field": self.field, "id_field": self.id_field, "encoding": self.encoding}

    def __iter__(self) -> Iterator[Text | BadLine]:
        """DataError where a file breaks off or is no text at all."""
        self.progress.done, self._id_type = 0, None
        for path, kind in zip(self.paths, self.kinds, strict=True):
            try:
                yield from {"text": self._lines, "jsonl": self._objects, "parquet": self._rows}[kind](path)
            except SourceError as error:
                raise DataError(str(error)) from None

    def _place(self, path: Path, number: int) -> Id:
        return number if len(self.paths) == 1 else f"{path}:{number}"

    def _lines(self, path: Path) -> Iterator[Text | BadLine]:
        for item in read_lines(path, self.progress, self.encoding):
            yield (
                item
                if isinstance(item, BadLine)
                else self._checked(f"{path}:{item[0]}", self._place(path, item[0]), item[1])
            )

    def _objects(self, path: Path) -> Iterator[Text | BadLine]:
        for item in read_lines(path, self.progress, self.encoding):
            if isinstance(item, BadLine):
                yield item
                continue
            number, line = item
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = parse_row(line, self.field)
            except (ValueError, RecursionError) as error:
                yield BadLine(where, "malformed JSON", str(error) or "nested too deeply")
                continue
            yield self._of_object(path, number, row)

    def _of_object(self, path: Path, number: int, row: Any) -> Text | BadLine:
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            hint = ", and an object a line is read: convert it, as by jq -c '.[]'" if isinstance(row, list) else ""
            return BadLine(where, "JSON that is no object", described(row) + hint)
        for name in (self.field, self.id_field):
            if name is not None and name not in row:
                return BadLine(where, "missing field", f"there is no {name!r}{nearest(name, row)}")
        given = self._place(path, number) if self.id_field is None else row[self.id_field]
        return self._checked(where, given, row[self.field])

    def _rows(self, path: Path) -> Iterator[Text | BadLine]:
        before, size = self.progress.done, path.stat().st_size
        number = 0
        file = _open_parquet(path, self.field, self.id_field)
        columns = [name for name in (self.field, self.id_field) if name is not None]
        try:
            for batch in file.iter_batches(_ROWS, columns=columns):
                texts = _column(batch.column(self.field))
                given = texts if self.id_field is None else _column(batch.column(self.id_field))
                for text, each in zip(texts, given, strict=True):
                    number += 1
                    where = f"{path}:{number}"
                    if isinstance(text, bytes):
                        yield BadLine(where, "invalid UTF-8")
                    else:
                        yield self._checked(where, self._place(path, number) if self.id_field is None else each, text)
                self.progress.done = before + size * number // max(1, file.metadata.num_rows)
        except OSError as error:
            raise DataError(
                f"{path}: damaged Parquet data after row {number} ({error}): copy or make it again"
            ) from None
        self.progress.done = before + size

    def _checked(self, where: str, given: Any, text: Any) -> Text | BadLine:
        if not isinstance(text, str):
            return BadLine(where, "null" if text is None else "wrong type", f"{self.field!r} is {described(text)}")
        if not text.strip():
            return BadLine(where, "empty text")
        if wrong := fault(text):
            return BadLine(where, *wrong)
        if self.id_field is not None:
            kind = type(given)
            if kind not in (int, str) or (kind is int and not -(1 << 63) <= given < 1 << 63):
                return BadLine(
                    where, "bad id", f"{self.id_field!r} is {described(given)}, neither a 64-bit integer nor text"
                )
            if kind is str and (wrong := fault(given)):
                return BadLine(where, "bad id", ": ".join(wrong))
            self._id_type = self._id_type or kind
            if kind is not self._id_type:
                others = "integers" if self._id_type is int else "texts"
                return BadLine(
                    where, "bad id", f"{self.id_field!r} is {described(given)}, and those before it are {others}"
                )
        return Text(given, text)


def _kind(path: Path, kind: str | None) -> str:
    """DataError where the path is no readable file, or its ending names nothing that is read."""
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the files in it")
    if str(path) == "-" and not path.exists():
        raise DataError("standard input is not read, since input may be read twice: write it to a file")
    if not path.is_file():
        what = "is no regular file, and input may be read twice" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}: name text files, JSONL or Parquet")
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty")
    if kind is not None:
        return kind
    ending = file_kind(path)
    if ending in (".csv", ".tsv", ".arrow", ".xlsx", ".feather"):
        raise DataError(
            f"{path}: {ending} is not read; make it JSONL or Parquet, or say that it is plain text (--input-format text)"
        )
    return _ENDINGS.get(ending, "text")


def _open_parquet(path: Path, field: str, id_field: str | None) -> Any:
    """The file, whose columns are as they should be. DataError where they are not, and where it is no Parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra(error, "encode", "reading Parquet") from None
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path} is no Parquet file, or a damaged one ({error}): copy or make it again") from None
    for name in (field, id_field):
        if name is not None and name not in file.schema_arrow.names:
            there = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path}: no column {name!r}; it has {there}{nearest(name, file.schema_arrow.names)}")
    kind = file.schema_arrow.field(field).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)):
        raise DataError(f"{path}: column {field!r} is {kind}, and text is read: name another one with --field")
    return file


def _column(column: Any) -> list[Any]:
    """Python values; where a text is no UTF-8 its bytes."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast("large_binary").to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value
