"""Bad lines of a data file: each is named with its place and reason, and either refused or counted and left out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bertfast.data.lines import fault

SHOWN = 5


class DataError(ValueError):
    """Data, or an option about it, cannot be used as it is; the message names the file, the line, the reason and what to do."""


@dataclass
class BadLines:
    """What was wrong with the lines of one file.

    skip: whether a bad line is left out (and counted) rather than refused with a DataError.
    header: the place of a line that was passed over because it names the columns.
    """

    skip: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    header: str | None = None

    def report(self, where: str, why: str, detail: str = "") -> None:
        """One bad line: `why` is the reason it is counted under, `detail` what it says of this line alone.

        Raises:
            DataError: bad lines are not to be skipped.
        """
        line = f"{where}: {why}{': ' + detail if detail else ''}"
        if not self.skip:
            raise DataError(f"{line}. Mend the line, or leave such lines out with --bad-lines skip")
        self.counts[why] += 1
        if len(self.named) < SHOWN:
            self.named.append(line)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def summary(self) -> str:
        """One line of counts and the first few places, for a terminal or a log; empty where nothing was bad."""
        if not self:
            return ""
        counts = ", ".join(f"{count} with {why}" for why, count in self.counts.most_common())
        more = self.counts.total() - len(self.named)
        return f"left out: {counts}; {'; '.join(self.named)}{f'; and {more} more' if more else ''}"


def text_lines(path: Path, bad: BadLines) -> Iterator[tuple[str, str]]:
    """(place, line) of a UTF-8 text file, the place as "FILE:NUMBER", line ends removed; a byte-order mark is passed over.

    Raises:
        DataError: the file cannot be read, or a line is no UTF-8 and bad lines are refused.
    """
    for number, raw in enumerate(read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            yield where, raw.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            bad.report(where, "bytes that are no UTF-8", f"0x{raw[error.start]:02x} at byte {error.start}")


def text_fault(*texts: str | None) -> tuple[str, str] | None:
    """Why one of these texts cannot be read by a tokenizer (NUL, half of a surrogate pair), as `BadLines.report` takes it."""
    return next((found for text in texts if text is not None and (found := fault(text))), None)


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name an existing file") from None
