"""Data files as lines, objects and texts, and their bad lines: each is named with its place and reason, and refused or left out."""

import codecs
import difflib
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertfast.data.lines import GZIP_MAGIC, fault

SHOWN = 5
_MOST_NAMES = 20
NO_UTF8 = "bytes that are no UTF-8"

BAD_LINES = {"refuse": "stop at a bad line", "skip": "leave bad lines out, count them and name the first"}
"""What the option `bad_lines` may be, and what each does."""

# The longer marks first: that of UTF-32 begins as that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_ESCAPED = re.compile("[\udc80-\udcff]")
_SAMPLE = 4096  # bytes that are looked at for UTF-16 without a mark


class DataError(ValueError):
    """Data, or an option about it, cannot be used as it is; the message names the file, the line, the reason and what to do."""


@dataclass
class BadLines:
    """What was wrong with the lines of one file.

    skip: whether a bad line is left out (and counted) rather than refused with a DataError.
    header: the place of a line that was passed over because it names the columns.
    parts: what was left out of examples that stay.
    remarks: what a user should know of the file as a whole.
    """

    skip: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    header: str | None = None
    remarks: list[str] = field(default_factory=list)

    def report(self, where: str, why: str, detail: str = "", *, part: bool = False) -> None:
        """One bad line: `why` is the reason it is counted under, `detail` what it says of this line alone.

        part: only a part of the example is left out.

        Raises:
            DataError: bad lines are not to be skipped.
        """
        line = f"{where}: {why}{': ' + detail if detail else ''}"
        if not self.skip:
            raise DataError(f"{line}. Fix the line, or leave such lines out with --bad-lines skip")
        (self.parts if part else self.counts)[why] += 1
        if len(self.named) < SHOWN:
            self.named.append(line)

    def __bool__(self) -> bool:
        return bool(self.counts or self.parts)

    def summary(self) -> str:
        """One line of counts and the first few places, for a terminal or a log; empty where nothing was bad."""
        if not self:
            return ""
        kinds = (("left out", self.counts), ("left out of examples that stay", self.parts))
        counts = [f"{name}: {_counted(kind)}" for name, kind in kinds if kind]
        more = self.counts.total() + self.parts.total() - len(self.named)
        return f"{'; '.join([*counts, *self.named])}{f'; and {more} more' if more else ''}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} with {why}" for why, count in counts.most_common())


def file_kind(path: Path) -> str:
    """The ending that says how a file is read, in small letters: ".tsv" of "A.TSV" and of "a.tsv.gz"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_bytes(path: Path) -> bytes:
    """The file's content, gzip undone.

    Raises:
        DataError: there is no such file, it cannot be read, or it is no UTF-8 as a whole (UTF-16, UTF-32, an archive).
    """
    if escaped_fault(str(path)):
        raise DataError(
            f"{str(path)!a}: the file's name is no UTF-8, and could not be written down with the results; rename it"
        )
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip data ({error}): copy or make the file again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name an existing file") from None
    _check_encoding(path, content)
    return content


def _check_encoding(path: Path, content: bytes) -> None:
    if content.startswith(b"PK\x03\x04"):
        raise DataError(
            f"{path} is a zip archive (spreadsheets are, too): unpack it, or export the sheet as CSV in UTF-8"
        )
    kind = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    sample = content[:_SAMPLE]
    zeros = sample.count(0)
    if kind is None and sample and zeros == len(sample):
        raise DataError(f"{path} begins with {zeros} zero bytes: it holds no text; copy or make the file again")
    if kind is None and 3 * zeros > len(sample) > 7:  # every other byte of text that is mostly ASCII
        kind = "UTF-16"
    if kind is not None:
        raise DataError(f"{path} is text in {kind}, and UTF-8 is read: convert it, as by iconv -f {kind} -t UTF-8")


def read_content(path: Path, bad: BadLines) -> bytes:
    """`read_bytes` without a byte-order mark, and with line feeds in place of lone carriage returns where there is no line feed.

    Raises:
        DataError: also where the file is empty.
    """
    content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise DataError(f"{path}: the file is empty")
    if b"\r" in content and b"\n" not in content:
        bad.remarks.append(f"{path}: each line ends in a lone carriage return, which was read as a line end")
        content = content.replace(b"\r", b"\n")
    return content


@dataclass(frozen=True)
class Line:
    """One line without its end; `where` is "FILE:NUMBER", `wrong` why it cannot be used, as `BadLines.report` takes it."""

    where: str
    text: str
    wrong: tuple[str, str] | None = None


def all_lines(path: Path, bad: BadLines) -> Iterator[Line]:
    """Every line of a UTF-8 text file. DataError where the file cannot be read or is empty."""
    for number, raw in enumerate(read_content(path, bad).split(b"\n"), 1):
        where = f"{path}:{number}"
        raw = raw.removesuffix(b"\r")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield Line(where, "", (NO_UTF8, f"0x{raw[error.start]:02x} at byte {error.start}"))
            continue
        wrong = text_fault(text)
        if wrong is None and "\r" in text:
            wrong = "a carriage return within the line", f"at character {text.index(chr(13))}"
        yield Line(where, text, wrong)


def text_lines(path: Path, bad: BadLines) -> Iterator[tuple[str, str]]:
    """(place, line) of those lines that are neither blank nor bad. DataError also for a bad one that is not to be skipped."""
    for line in all_lines(path, bad):
        if line.wrong is not None:
            bad.report(line.where, *line.wrong)
        elif line.text.strip():
            yield line.where, line.text


def objects(path: Path, bad: BadLines) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, JSON object) of each line. DataError also for a file that is one JSON list."""
    first = True
    for where, line in text_lines(path, bad):
        if first and line.lstrip().startswith("[") and _is_one_list(path):
            raise DataError(f"{path} holds one JSON list, and an object a line is read: convert it, as by jq -c '.[]'")
        first = False
        try:
            item = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            bad.report(where, "text that is no JSON", str(error))
            continue
        if not isinstance(item, dict):
            bad.report(where, "JSON that is no object", described(item))
            continue
        yield where, item


def _is_one_list(path: Path) -> bool:
    try:
        return isinstance(json.loads(read_bytes(path).removeprefix(codecs.BOM_UTF8)), list)
    except (ValueError, RecursionError):
        return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all stand once."""
    item = dict(pairs)
    if len(item) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return item


def text_fault(*texts: str | None) -> tuple[str, str] | None:
    """Why one of these texts cannot be read by a tokenizer (NUL, half of a surrogate pair), as `BadLines.report` takes it."""
    return next((wrong for text in texts if text is not None and (wrong := fault(text))), None)


def escaped_fault(text: str) -> tuple[str, str] | None:
    """Why a text decoded with "surrogateescape", as the command line is, was no UTF-8, as `BadLines.report` takes it."""
    escaped = None if text.isascii() else _ESCAPED.search(text)
    return (NO_UTF8, f"0x{ord(escaped[0]) - 0xDC00:02x} at character {escaped.start()}") if escaped else None


def check_text(option: str, text: str) -> None:
    """DataError where a text of the command line is empty, holds a NUL, or bytes that were no UTF-8."""
    if not text.strip():
        raise DataError(f"the text is empty: give {option} something to read")
    if wrong := escaped_fault(text):
        raise DataError(f"{option}: {': '.join(wrong)}; give the text in UTF-8")
    if wrong := text_fault(text):
        raise DataError(f"{option}: {': '.join(wrong)}; give text without it")


def described(value: object) -> str:
    """What a value of JSON is, in words: "null", "a number (3)", "text"."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text" if value.strip() else "empty"
    if isinstance(value, bool):
        return f"a boolean ({json.dumps(value)})"
    if isinstance(value, (int, float)):
        return f"a number ({json.dumps(value)[:40]})"
    return "a list" if isinstance(value, (list, tuple)) else "an object"


def cell_problem(item: dict[str, Any], name: str) -> str:
    """Why the value of a key is not what it should be: it is absent, or of another type."""
    return f"'{name}' is {described(item[name])}" if name in item else f"there is no '{name}'{nearest(name, item)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """A question after the name that was meant; empty where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def no_column(
    where: str, what: str, name: str, names: Sequence[str], advice: str = "Name them with --fields"
) -> DataError:
    """That a name which was asked for is none of those that there are."""
    shown = ", ".join(names[:_MOST_NAMES]) + (
        f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    )
    meant = nearest(name, names) or "."
    return DataError(f"{where}: no {what}{name!r}; it has {shown or 'none'}{meant} {advice}.")
