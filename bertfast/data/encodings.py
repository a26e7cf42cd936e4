"""What bytes a text file is made of: marks, other encodings than UTF-8, archives, and old line ends."""

import codecs
import io
import re
from typing import Any, BinaryIO

HEAD = 1 << 16  # bytes of a file that are looked at
CHUNK = 1 << 20
# The longer marks first: that of UTF-32 begins as that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = (
    (b"PK\x03\x04", "a zip archive (spreadsheets and e-books are, too): unpack it, or export text in UTF-8"),
    (b"%PDF-", "a PDF: extract its text first, as pdftotext does"),
    (b"BZh", "compressed by bzip2; plain text and gzip are read: unpack it"),
    (b"\xfd7zXZ\0", "compressed by xz; plain text and gzip are read: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; plain text and gzip are read: unpack it"),
    (b"PAR1", "a Parquet table: give --dataset parquet with it as the source"),
    (b"ARROW1", "an Arrow table: give --dataset arrow with it as the source"),
    (b"SQLite format 3\0", "an SQLite database: export its text"),
)
KANA = re.compile("[\u3041-\u30ff]")
_JAPANESE = re.compile("[\\s\x20-\x7e\u3000-\u30ff\u4e00-\u9fff\uff01-\uff5e]*")


def known(encoding: str) -> bool:
    """Whether Python reads text in an encoding of this name."""
    try:
        return isinstance("a".encode(encoding), bytes)
    except (LookupError, UnicodeError, ValueError):
        return False


def marked(head: bytes) -> str | None:
    """UTF-16 or UTF-32, where a file begins as such with a byte-order mark, or, for UTF-16, with every other byte zero."""
    kind = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if kind is None and len(head) > 7 and 3 * head.count(0) > len(head) > head.count(0):
        # The zero half of text that is mostly Latin says which end is first.
        return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    return kind


def not_text(head: bytes) -> str | None:
    """What a file is that is no text in any encoding, and what to do with it."""
    if head and head.count(0) == len(head):
        return f"no text: it begins with {len(head):,} zero bytes; copy or make the file again"
    return next((what for magic, what in _KINDS if head.startswith(magic)), None)


def is_line_wise(encoding: str) -> bool:
    """Whether lines in this encoding can be told apart before they are decoded."""
    return "a\n".encode(encoding) == b"a\n" and not encoding.lower().replace("_", "-").startswith(
        ("utf-7", "utf-16", "utf-32")
    )


def likely(line: bytes) -> str | None:
    """An encoding in which a line that is no UTF-8 reads as Japanese or as Western letters; None where none is likely."""
    for encoding in ("cp932", "euc_jp", "iso2022_jp"):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _JAPANESE.fullmatch(text) and (KANA.search(text) or not text.isascii()):
            return encoding
    text = line.decode("cp1252", errors="replace")
    odd = [char for char in text if not char.isascii()]
    letters = sum(char.isalpha() or char in "‘’“”–—…«»€°£§" for char in odd)
    return "cp1252" if odd and letters == len(odd) and 4 * len(odd) < len(text) + 8 else None


class Recoded(io.RawIOBase):
    """A binary stream with line feeds where it had lone carriage returns, and in UTF-8 where it is in another `encoding`.

    Without an encoding bytes pass as they are. UnicodeError where the bytes are not of the encoding; a UnicodeDecodeError's place
    is counted from the beginning.
    """

    def __init__(self, stream: BinaryIO, encoding: str | None) -> None:
        self._stream = stream
        # Latin-1 is every byte as a character.
        self._in, self._out = (encoding, "utf-8") if encoding else ("latin-1", "latin-1")
        self._decoder = codecs.getincrementaldecoder(self._in)()
        self._lines = io.IncrementalNewlineDecoder(None, translate=True)
        self._ready = memoryview(b"")
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._stream.read(CHUNK)
            try:
                text = self._decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                error.start += self._read + len(chunk) - len(error.object)
                raise
            self._read += len(chunk)
            self._ready = memoryview(self._lines.decode(text, final=not chunk).encode(self._out))
            if not chunk and not self._ready:
                return 0
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)
