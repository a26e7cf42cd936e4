"""Odd files of sentences and pairs: TSV, JSON lines, CSV."""

import gzip
import json
from typing import Any

from odd_files import Odd, lines_with, wholes

GOOD_TSV = [b"the film is good\tgood", b"paris is bad\tbad"] * 3
GOOD_JSONL = [json.dumps({"sentence1": s, "label": w}).encode() for s, w in (("a film", "good"), ("paris", "bad"))] * 3
GOOD_CSV = [b"sentence1,label", *[b'"a film, very good",good', b"paris is bad,bad"] * 3]
GOOD_PAIRS = [b"premise,hypothesis,label", *[b"the film,a film,good", b"paris,france,bad"] * 3]


def _tsv(name: str, line: bytes, why: str, **more: Any) -> Odd:
    return Odd(f"tsv: {name}", "in.tsv", lines_with(GOOD_TSV, 3, line), f"in.tsv:3: {why}", 6, 1, why, **more)


def _jsonl(name: str, line: bytes, why: str, **more: Any) -> Odd:
    return Odd(f"jsonl: {name}", "in.jsonl", lines_with(GOOD_JSONL, 3, line), f"in.jsonl:3: {why}", 6, 1, why, **more)


def _csv(name: str, line: bytes, why: str, **more: Any) -> Odd:
    return Odd(f"csv: {name}", "in.csv", lines_with(GOOD_CSV, 4, line), f"in.csv:4: {why}", 6, 1, why, **more)


def _item(**cells: Any) -> bytes:
    return json.dumps({"sentence1": "france", "label": "good", **cells}).encode()


def _without(name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(_item()).items() if key != name}).encode()


MANY = [b"the film is good,good"] * 3200
LONG_CELL = b"film " * 40_000

PAIR = [
    *wholes("tsv", "in.tsv", b"\n".join(GOOD_TSV) + b"\n", 6),
    *wholes("csv", "in.csv", b"\n".join(GOOD_CSV) + b"\n", 6),
    *wholes("jsonl", "in.jsonl", b"\n".join(GOOD_JSONL) + b"\n", 6),
    Odd("ending in capitals", "in.TSV", b"\n".join(GOOD_TSV), read=6),
    Odd("gzip by its name", "in.tsv.gz", gzip.compress(b"\n".join(GOOD_TSV)), read=6),
    Odd("unknown ending", "in.xlsx", b"\n".join(GOOD_TSV), "files end in"),
    # TSV
    _tsv("one column", b"paris", "another number of columns"),
    _tsv("three columns", b"paris\tfrance\tgood", "another number of columns"),
    _tsv("no sentence", b"  \tgood", "no text in sentence1"),
    _tsv("no label", b"paris\t ", "no label", labels=True),
    _tsv("a zero byte", b"par\0is\tgood", "NUL character"),
    _tsv("a zero byte in the label", b"paris\tgo\0od", "NUL character"),
    _tsv("latin-1", "café\tgood".encode("latin-1"), "bytes that are no UTF-8: 0xe9 at byte 3"),
    _tsv("carriage return within", b"paris\rfrance\tgood", "a carriage return within the line"),
    Odd(
        "tsv: line separators of Unicode",
        "in.tsv",
        lines_with(GOOD_TSV, 3, "a\u2028b\x85c\x0bd\x0c\tgood".encode()),
        read=7,
    ),
    Odd(
        "tsv: a very long sentence", "in.tsv", lines_with(GOOD_TSV, 3, LONG_CELL + b"\tgood"), read=7, noted="were cut"
    ),
    Odd("tsv: header alone", "in.tsv", b"sentence\tlabel\n", "names the columns, and there is nothing after it"),
    Odd("tsv: label first", "in.tsv", b"label\tsentence\ngood\tparis\n", "a header with the label first"),
    Odd("tsv: four columns", "in.tsv", b"a\tb\tc\td\n", "4 columns"),
    Odd(
        "tsv: a header that is not seen as one",
        "in.tsv",
        lines_with(GOOD_TSV, 1, b"review\tgold"),
        read=7,
        noted="in.tsv:1 may be a header",
        labels=True,
    ),
    Odd("tsv: quoted", "in.tsv", b'"the ""film"""\tgood\n"a\tbad\n', read=2, noted="a TSV file has no quoting"),
    Odd("tsv: one label", "in.tsv", b"a\tgood\nb\tgood\n", "all labels are 'good'", None, labels=True),
    Odd(
        "tsv: one number in two spellings",
        "in.tsv",
        b"a\t1\nb\t0\na\t1.0\n",
        "in.tsv:3: the label '1.0' is the number '1'",
        None,
        labels=True,
    ),
    Odd(
        "tsv: labels that differ by case",
        "in.tsv",
        b"a\tgood\nb\tbad\na\tGood\n",
        read=3,
        noted="differ by case alone",
        labels=True,
    ),
    Odd("tsv: scores", "in.tsv", b"a\t0.5\nb\t3.25\na\t4\n", read=3, noted="give --regression", labels=True),
    Odd(
        "tsv: markers",
        "in.tsv",
        b"[E1] paris [/E1] is\tgood\n[E1] film [/E1]\tbad\n",
        read=2,
        noted="--special-tokens",
    ),
    # JSONL
    _jsonl("broken", b'{"sentence1": "a"', "text that is no JSON"),
    _jsonl("two objects", _item() + b" " + _item(), "text that is no JSON"),
    _jsonl("nested beyond reason", b"[" * 100_000, "text that is no JSON"),
    *(_jsonl(f"a line {word.decode()}", word, "JSON that is no object") for word in (b"[1]", b"3", b"null", b'"a"')),
    _jsonl(
        "a key twice", b'{"sentence1": "a", "label": "good", "label": "bad"}', "text that is no JSON: the key 'label'"
    ),
    _jsonl("no sentence", _without("sentence1"), "no text in sentence1: there is no 'sentence1'"),
    *(
        _jsonl(f"sentence {json.dumps(value)}", _item(sentence1=value), f"no text in sentence1: {what}")
        for value, what in (
            (None, "'sentence1' is null"),
            (3, "'sentence1' is a number (3)"),
            (True, "'sentence1' is a boolean (true)"),
            (["a"], "'sentence1' is a list"),
            ({"a": 1}, "'sentence1' is an object"),
            (" ", "'sentence1' is empty"),
        )
    ),
    _jsonl("no label", _without("label"), "no label: there is no 'label'", labels=True),
    *(
        _jsonl(f"label {json.dumps(value)}", _item(label=value), f"no label: {what}", labels=True)
        for value, what in (
            (None, "'label' is null"),
            (True, "'label' is a boolean (true)"),
            ([1], "'label' is a list"),
            ({"a": 1}, "'label' is an object"),
            ("", "'label' is empty"),
            (float("nan"), "'label' is a number (NaN)"),
        )
    ),
    _jsonl("half of a surrogate pair", _item(sentence1="a\ud800"), "invalid UTF-8"),
    _jsonl("half of a surrogate pair as label", _item(label="a\ud800"), "invalid UTF-8", labels=True),
    _jsonl("latin-1", b'{"sentence1": "caf\xe9", "label": "good"}', "bytes that are no UTF-8"),
    Odd("json: one list", "in.json", json.dumps([json.loads(_item())], indent=1).encode(), "one JSON list"),
    Odd(
        "jsonl: other keys",
        "in.jsonl",
        b'{"sentence_1": "a", "label": "x"}\n',
        "no 'sentence1'; it has sentence_1, label",
    ),
    Odd(
        "jsonl: singles and pairs",
        "in.jsonl",
        lines_with(GOOD_JSONL, 3, _item(sentence2="b")),
        "single sentences and pairs in one file",
    ),
    # CSV
    _csv("a quote that stays open", b'"paris,good', "a quote that is never closed"),
    _csv("text after a quote", b'"paris" is,good', "text after a closing quote"),
    _csv("too many columns", b"paris,france,good", "another number of columns"),
    _csv("too few columns", b"paris", "another number of columns"),
    _csv("no label", b"paris,", "no label: 'label' is empty", labels=True),
    _csv("latin-1", "café,good".encode("latin-1"), "bytes that are no UTF-8: 0xe9"),
    _csv("a zero byte", b"par\0is,good", "NUL character"),
    Odd(
        "csv: a quote that stays open before 3,200 rows",
        "in.csv",
        b"\n".join([GOOD_CSV[0], b'"paris,bad', *MANY, b"a,bad"]),
        "in.csv:2: a quote that is never closed: it opens here, and the 3,201 lines after it",
        3201,
        1,
        noted="in.csv:2: a quote that is never closed",
    ),
    Odd(
        "csv: a cell over the usual limit",
        "in.csv",
        lines_with(GOOD_CSV, 4, LONG_CELL + b",good"),
        read=7,
        noted="were cut",
    ),
    Odd(
        "csv: line ends in a cell",
        "in.csv",
        lines_with(GOOD_CSV, 4, b'"a\nb\nc",good'),
        read=7,
        noted="line ends within a cell",
    ),
    Odd("csv: header alone", "in.csv", b"sentence1,label\n", "names the columns, and there is nothing after it"),
    Odd(
        "csv: no header",
        "in.csv",
        b"paris,good\nfilm,bad\n",
        "in.csv:1: no column 'sentence1'; it has paris, good. Name them with --fields.",
    ),
    Odd("csv: semicolons", "in.csv", b"sentence1;label\na;good\n", "parted by ';'"),
    Odd("csv: a column twice", "in.csv", b"sentence1,label,label\na,b,c\n", "the column 'label' stands twice"),
    Odd(
        "csv: a named column is missing",
        "in.csv",
        b"premise,hypotheses,label\na,b,good\n",
        "in.csv:1: no column 'hypothesis'; it has premise, hypotheses, label; did you mean 'hypotheses'?",
        options=("--fields", "premise,hypothesis,label"),
    ),
    Odd(
        "jsonl: a named key is missing",
        "in.jsonl",
        b'{"premise": "a", "hypotheses": "b", "label": "x"}\n',
        "no 'hypothesis'; it has premise, hypotheses, label; did you mean 'hypotheses'?",
        options=("--fields", "premise,hypothesis,label"),
    ),
    Odd(
        "tsv: a named column is missing",
        "in.tsv",
        b"premise\thypotheses\tlabel\na\tb\tgood\n",
        "in.tsv:1: no column 'hypothesis'; it has premise, hypotheses, label; did you mean 'hypotheses'? Name them with --fields.",
        options=("--fields", "premise,hypothesis,label"),
    ),
    Odd(
        "tsv: columns by name",
        "in.tsv",
        b"label\tid\tpremise\thypothesis\ngood\t1\ta\tb\nbad\t2\tc\td\n",
        read=2,
        options=("--fields", "premise,hypothesis,label"),
    ),
    Odd(
        "tsv: names and no header",
        "in.tsv",
        b"a\tb\tgood\nc\td\tbad\n",
        read=2,
        noted="has no header",
        options=("--fields", "premise,hypothesis,label"),
    ),
]
