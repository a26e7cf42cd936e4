"""Odd files of texts to encode: lines, JSONL and Parquet. `refused` has the words of --strict where there is something to read."""

import io
import json
from dataclasses import replace

import pyarrow
from odd_files import Odd, lines_with, wholes
from pyarrow import parquet

LINES = [b"the film is good", b"the film is bad", b"paris"]
OBJECTS = [json.dumps({"id": n, "text": line.decode()}).encode() for n, line in enumerate(LINES)]
# What is said of whole files in other words than those of fine-tuning's readers.
_SAID = {
    "a folder": "is a folder",
    "absent": "does not exist",
    "a byte order mark alone": "no text to encode",
    "line ends alone": "no text to encode",
}


def _whole(kind: str, file: str, good: list[bytes]) -> list[Odd]:
    rows = []
    for odd in wholes(kind, file, b"\n".join(good) + b"\n", len(good)):
        name = odd.name.removeprefix(f"{kind}: ")
        if name == "blank lines at the end" and kind == "texts":
            odd = replace(odd, refused="empty text", left=3)
        rows.append(replace(odd, refused=_SAID.get(name, odd.refused)))
    return rows


def _line(name: str, odd: bytes, refused: str) -> Odd:
    return Odd(f"texts: {name}", "a.txt", lines_with(LINES, 2, odd), refused, 3, 1)


def _object(name: str, odd: bytes | dict, refused: str, *options: str) -> Odd:
    line = odd if isinstance(odd, bytes) else json.dumps(odd).encode()
    return Odd(f"objects: {name}", "a.jsonl", lines_with(OBJECTS, 2, line), refused, 3, 1, options=options)


def _table(**columns: object) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


GOOD = _table(text=[line.decode() for line in LINES])
ID = ("--id-field", "id")
TEXTS = [
    *_whole("texts", "a.txt", LINES),
    _line("a blank line", b"", "a.txt:2: empty text"),
    _line("white space alone", " \t\u3000".encode(), "a.txt:2: empty text"),
    _line("no UTF-8", b"caf\xe9 au lait", "a.txt:2: invalid UTF-8: byte 3 of the line is 0xe9"),
    _line("a NUL", b"a\0b", "a.txt:2: NUL character"),
    Odd("texts: a carriage return in a line", "a.txt", b"the film\ris good\nparis\n", read=3),
    Odd("texts: an unknown ending", "a.log", b"paris\n", read=1),
    Odd("texts: a table of text", "a.csv", b"a,b\n", refused=".csv is not read"),
    Odd("texts: a table of text all the same", "a.csv", b"a,b\n", read=1, options=("--input-format", "text")),
    Odd("texts: an id where there is none", "a.txt", b"a\n", refused="hold no id", options=ID),
    Odd("texts: in another encoding", "a.txt", "a\nb\n".encode("utf-16"), read=2, options=("--encoding", "utf-16")),
    *_whole("objects", "a.jsonl", OBJECTS),
    _object("no JSON", b"{", "a.jsonl:2: malformed JSON"),
    _object("a list", b'["text"]', "a.jsonl:2: JSON that is no object: a list"),
    _object("no field", {"texts": "a"}, "a.jsonl:2: missing field: there is no 'text'; did you mean 'texts'?"),
    _object("null", {"text": None}, "a.jsonl:2: null: 'text' is null"),
    _object("a number", {"text": 5}, "a.jsonl:2: wrong type: 'text' is a number (5)"),
    _object("a list of texts", {"text": ["a"]}, "a.jsonl:2: wrong type: 'text' is a list"),
    _object("an empty text", {"text": " "}, "a.jsonl:2: empty text"),
    _object("half of a pair", b'{"text": "\\ud800"}', "a.jsonl:2: invalid UTF-8: half of a surrogate pair"),
    _object("a key that stands twice", b'{"text": "a", "text": "b"}', "a.jsonl:2: malformed JSON: the field 'text' stands twice"),
    _object("no UTF-8", b'{"text": "\xff"}', "a.jsonl:2: invalid UTF-8"),
    _object("no id", {"text": "a"}, "a.jsonl:2: missing field: there is no 'id'", *ID),
    _object("an id that is none", {"text": "a", "id": 1.5}, "a.jsonl:2: bad id: 'id' is a number (1.5)", *ID),
    _object("an id of another kind", {"text": "a", "id": "x"}, "bad id: 'id' is text, and those before it are integers", *ID),
    _object("an id that is too large", {"text": "a", "id": 1 << 63}, "a.jsonl:2: bad id", *ID),
    Odd("objects: deeply nested", "a.jsonl", lines_with(OBJECTS, 2, b"[" * 100_000), "a.jsonl:2: malformed JSON", 3, 1),
    Odd("objects: one list", "a.json", b"[" + b",".join(OBJECTS) + b"]\n", refused="jq -c '.[]'"),
    Odd("rows: good", "a.parquet", GOOD, read=3),
    Odd("rows: null", "a.parquet", _table(text=["a", None, "b"]), "a.parquet:2: null", 2, 1),
    Odd("rows: empty", "a.parquet", _table(text=["a", ""]), "a.parquet:2: empty text", 1, 1),
    Odd("rows: no such column", "a.parquet", _table(texts=["a"]), "no column 'text'; it has texts; did you mean 'texts'?"),
    Odd("rows: a column of numbers", "a.parquet", _table(text=[1, 2]), "column 'text' is int64"),
    Odd("rows: none", "a.parquet", _table(text=pyarrow.array([], "string")), "no text to encode"),
    Odd("rows: cut short", "a.parquet", GOOD[:-9], "no Parquet file, or a damaged one"),
    Odd("rows: no table", "a.parquet", b"paris\n", "no Parquet file, or a damaged one"),
    Odd("rows: an id of another type", "a.parquet", _table(text=["a"], id=[1.5]), "no text to encode", options=ID),
]  # fmt: skip
