"""What a source is a stream of, and lines of files: plain or gzip, checked, with their numbers.

A line ends at a line feed, a carriage return, or both. The other line separators of Unicode, vertical tabs and form feeds are
white space within a line, in files as in the fields of rows.
"""

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from bertfast.data import encodings

LONGEST_LINE = 1 << 24  # bytes
LONGEST_DOCUMENT = 1 << 23  # characters; a longer one goes on as another document
GZIP_MAGIC = b"\x1f\x8b"
LIKELY = "it reads as text with --encoding"


class SourceError(ValueError):
    """A source that cannot be read at all."""


@dataclass
class Document:
    """Lines (sentences or paragraphs) of one document; `where` is "file:line" of its first; `headings` were left out of it."""

    where: str
    lines: list[str] = field(default_factory=list)
    headings: int = 0
    cut: bool = False  # the rest follows as another document


@dataclass
class BadLine:
    """Something that was not taken: where, one of a few reasons, and what exactly."""

    where: str
    reason: str
    detail: str = ""


Item = Document | BadLine


class Progress:
    """Bytes (or rows) of the sources read so far, of how many."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0


LINE_END = re.compile(r"\r\n|\r|\n")


def open_text(path: Path, encoding: str | None = None) -> tuple[BinaryIO, BinaryIO, str]:
    """The file's text, the raw file whose position tells how far it is, and the encoding of the text, lone or all lines.

    SourceError where the file is no text, or in UTF-16 without `encoding` saying so.
    """
    raw = path.open("rb", buffering=encodings.HEAD)
    try:
        text, lines = _decompressed(path, raw, encoding)
    except BaseException:
        raw.close()
        raise
    return text, raw, lines


def _decompressed(path: Path, raw: BinaryIO, encoding: str | None) -> tuple[BinaryIO, str]:
    packed = raw.peek(2)[:2] == GZIP_MAGIC  # type: ignore[attr-defined]
    text: Any = gzip.GzipFile(fileobj=raw) if packed else raw
    head = text.peek(encodings.HEAD)[: encodings.HEAD]
    if what := encodings.not_text(head):
        raise SourceError(f"{path} is {what}")
    kind = encodings.marked(head)
    if kind is not None and not encoding:
        raise SourceError(
            f"{path} is text in {kind.upper()}, and UTF-8 is read: give --encoding {kind}, or convert it, as by "
            f"iconv -f {kind.upper()} -t UTF-8"
        )
    if encoding and not encodings.is_line_wise(encoding):
        return io.BufferedReader(encodings.Recoded(text, encoding), encodings.CHUNK), "utf-8"
    if b"\r" in head and b"\n" not in head:
        warnings.warn(f"{path}: its lines end in carriage returns alone, which are read as line ends", stacklevel=2)
        text = io.BufferedReader(encodings.Recoded(text, None), encodings.CHUNK)
    return text, encoding or "utf-8"


def fault(text: Any) -> tuple[str, str] | None:
    """Why `text` cannot be a line of a corpus: a reason and what exactly, or None where it can."""
    if not isinstance(text, str):
        return "wrong type", f"{type(text).__name__} instead of text"
    if "\0" in text:
        return "NUL character", f"at character {text.index(chr(0))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return "invalid UTF-8", f"half of a surrogate pair at character {error.start}"
    return None


def read_lines(path: Path, progress: Progress, encoding: str | None = None) -> Iterator[tuple[int, str] | BadLine]:
    """(number, line) of each line without its end, or what is wrong with it; UTF-8 without an `encoding`.

    SourceError for a damaged gzip file, one that is no text, and one in UTF-16 and the like that breaks off or is damaged.
    """
    before, number, place = progress.done, 0, 0
    try:
        text, raw, own = open_text(path, encoding)
        with raw:
            while line := text.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    number += 1
                    while (rest := text.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                    yield BadLine(f"{path}:{number}", "line too long", f"more than {LONGEST_LINE} bytes")
                    continue
                progress.done = before + raw.tell()
                kept = line.rstrip(b"\r\n")
                at = place
                place += len(line)
                for part in kept.split(b"\r") if b"\r" in kept else (kept,):
                    number += 1
                    yield _line(path, number, part, at, own)
                    at += len(part) + 1
            progress.done = before + raw.tell()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(
            f"{path}: damaged gzip data after line {number} ({error}); copy or make the file again"
        ) from None
    except UnicodeError as error:
        byte = f"byte {error.start}, " if isinstance(error, UnicodeDecodeError) else ""
        raise SourceError(
            f"{path}: after line {number}, {byte}it is not {encoding} ({getattr(error, 'reason', error)}); check "
            "--encoding, or copy the file again"
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error})") from None


def _line(path: Path, number: int, line: bytes, place: int, encoding: str) -> tuple[int, str] | BadLine:
    """A line whose first byte is number `place` of the text."""
    where = f"{path}:{number}"
    try:
        decoded = line.decode("utf-8-sig" if number == 1 and encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} of the line is {line[error.start]:#04x}, byte {place + error.start} of the text"
        if encoding != "utf-8":
            return BadLine(where, f"invalid {encoding}", byte)
        guess = encodings.likely(line)
        return BadLine(where, "invalid UTF-8", f"{byte}; {LIKELY} {guess}" if guess else byte)
    wrong = fault(decoded)
    return BadLine(where, *wrong) if wrong else (number, decoded)


class Gather:
    """Lines into documents, a long one cut at a line's end."""

    def __init__(self) -> None:
        self.document: Document | None = None
        self.size = 0

    def at(self, where: str) -> Document:
        if self.document is None:
            self.document, self.size = Document(where), 0
        return self.document

    def add(self, where: str, line: str) -> Iterator[Document]:
        if self.document is not None and self.size + len(line) > LONGEST_DOCUMENT:
            self.document.cut = True
            yield from self.end()
        self.at(where).lines.append(line)
        self.size += len(line)

    def end(self) -> Iterator[Document]:
        if self.document is not None and self.document.lines:
            yield self.document
            self.document = None
