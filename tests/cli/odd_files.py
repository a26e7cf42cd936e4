"""Files that people have and that no reader expects, as data: what each command must say of them, and what it must keep.

`Odd` is one file for one kind of reader. `WHOLE_FILE` are changes of any good file, for readers of other kinds to build rows from.
"""

import codecs
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ABSENT = b"\0absent"  # as content: there is no such file


@dataclass(frozen=True)
class Odd:
    """One file, and what a command says of it.

    file: its name, whose ending chooses the reader. content: None for a folder of that name.
    refused: words of the refusal where bad lines are refused, which is the default; empty where the file is read.
    read: examples read, with bad lines left out where `refused` has words. None: refused then as well.
    left: examples counted as left out then. read + left is what the file holds.
    noted: words of a note where the file is read; empty: nothing is said.
    labels: the fault is one of labels, which `predict` does not read: it reads all examples.
    options: further arguments of the command.
    """

    name: str
    file: str
    content: bytes | None
    refused: str = ""
    read: int | None = None
    left: int = 0
    noted: str = ""
    labels: bool = False
    options: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        if self.content is None:
            path.mkdir()
        elif self.content != ABSENT:
            path.write_bytes(self.content)
        return path


@dataclass(frozen=True)
class Whole:
    """A change of a whole good file. refused, noted: as of `Odd`, where every reader says the same."""

    name: str
    change: Callable[[bytes], bytes | None]
    refused: str = ""
    noted: str = ""


WHOLE_FILE = [
    Whole("byte order mark", lambda good: codecs.BOM_UTF8 + good),
    Whole("no line end at the end", lambda good: good.rstrip(b"\n")),
    Whole("windows line ends", lambda good: good.replace(b"\n", b"\r\n")),
    Whole("old mac line ends", lambda good: good.replace(b"\n", b"\r"), noted="carriage return"),
    Whole("blank lines at the end", lambda good: good + b"\n\n\n"),
    Whole("gzip", gzip.compress),
    Whole("gzip cut short", lambda good: gzip.compress(good)[:-12], refused="damaged gzip data"),
    Whole("gzip with other bytes", lambda good: gzip.compress(good)[:20] + b"\0" * 40, refused="damaged gzip data"),
    Whole("empty", lambda good: b"", refused="the file is empty"),
    Whole("a byte order mark alone", lambda good: codecs.BOM_UTF8, refused="the file is empty"),
    Whole("line ends alone", lambda good: b"\n\r\n\n", refused="the file is empty"),
    Whole("utf-16", lambda good: good.decode().encode("utf-16"), refused="UTF-16"),
    Whole("utf-16, big end first", lambda good: codecs.BOM_UTF16_BE + good.decode().encode("utf-16-be"), "UTF-16"),
    Whole("utf-16 without a mark", lambda good: good.decode().encode("utf-16-le"), refused="UTF-16"),
    Whole("utf-32", lambda good: good.decode().encode("utf-32"), refused="UTF-32"),
    Whole("zero bytes alone", lambda good: b"\0" * 4096, refused="zero bytes"),
    Whole("a zip archive", lambda good: b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(range(256)), refused="zip archive"),
    Whole("a folder", lambda good: None, refused="Is a directory"),
    Whole("absent", lambda good: ABSENT, refused="No such file"),
]


def wholes(kind: str, file: str, good: bytes, count: int) -> Iterator[Odd]:
    """A row for each change of a good file of `count` examples."""
    for whole in WHOLE_FILE:
        read = None if whole.refused else count
        yield Odd(f"{kind}: {whole.name}", file, whole.change(good), whole.refused, read, noted=whole.noted)


def lines_with(good: list[bytes], place: int, odd: bytes) -> bytes:
    """Good lines with another one at `place`, counted from 1."""
    return b"\n".join([*good[: place - 1], odd, *good[place - 1 :]]) + b"\n"
