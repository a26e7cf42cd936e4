"""What a source is a stream of, and lines of files: plain or gzip, checked, with their numbers."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_LINE = 1 << 24  # bytes
LONGEST_DOCUMENT = 1 << 23  # characters; a longer one goes on as another document
GZIP_MAGIC = b"\x1f\x8b"


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


def open_text(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """The file's text, and the raw file whose position tells how far it is."""
    raw = path.open("rb")
    if raw.peek(2)[:2] == GZIP_MAGIC:
        return gzip.GzipFile(fileobj=raw), raw  # type: ignore[return-value]
    return raw, raw


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


def read_lines(path: Path, progress: Progress) -> Iterator[tuple[int, str] | BadLine]:
    """(number, line) of each line without its end, or what is wrong with it. SourceError for a damaged gzip file."""
    before = progress.done
    try:
        text, raw = open_text(path)
        with raw:
            number = 0
            while line := text.readline(LONGEST_LINE):
                number += 1
                progress.done = before + raw.tell()
                yield _line(path, number, line, text)
            progress.done = before + raw.tell()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(
            f"{path}: damaged gzip data after line {number} ({error}); copy or make the file again"
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error})") from None


def _line(path: Path, number: int, line: bytes, text: BinaryIO) -> tuple[int, str] | BadLine:
    where = f"{path}:{number}"
    if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
        while (rest := text.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
            pass
        return BadLine(where, "line too long", f"more than {LONGEST_LINE} bytes")
    try:
        decoded = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return BadLine(where, "invalid UTF-8", f"byte {error.start} of the line is {line[error.start]:#04x}")
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
