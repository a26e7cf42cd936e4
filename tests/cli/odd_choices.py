"""Odd files of questions with their choices: CSV, TSV, JSON lines."""

import json
from typing import Any

from odd_files import Odd, lines_with, wholes

GOOD_JSONL = [
    json.dumps({"question": "what film", "choices": ["good", "bad"], "answer": 0}).encode(),
    json.dumps({"context": "paris", "choices": ["france", "a film", "is"], "answer": "france"}).encode(),
] * 3
GOOD_CSV = [b"context,ending0,ending1,ending2,label", *[b'"the film, very",good,bad,,1', b"paris is,a,b,c,2"] * 3]
GOOD_TSV = [line.replace(b'"the film, very"', b"the film").replace(b",", b"\t") for line in GOOD_CSV]


def _jsonl(name: str, why: str, item: dict[str, Any], **more: Any) -> Odd:
    line = json.dumps({"question": "what", "choices": ["a", "b"], "answer": 1} | item).encode()
    return Odd(f"choices: {name}", "in.jsonl", lines_with(GOOD_JSONL, 3, line), f"in.jsonl:3: {why}", 6, 1, why, **more)


def _csv(name: str, line: bytes, why: str, **more: Any) -> Odd:
    return Odd(f"choices, csv: {name}", "in.csv", lines_with(GOOD_CSV, 4, line), f"in.csv:4: {why}", 6, 1, why, **more)


CHOICE = [
    *wholes("choices, csv", "in.csv", b"\n".join(GOOD_CSV) + b"\n", 6),
    *wholes("choices, jsonl", "in.jsonl", b"\n".join(GOOD_JSONL) + b"\n", 6),
    Odd("choices, tsv", "in.tsv", b"\n".join(GOOD_TSV) + b"\n", read=6),
    Odd("choices: unknown ending", "in.xlsx", b"\n".join(GOOD_TSV), "files end in"),
    Odd("choices: tsv without names", "in.tsv", b"paris\ta\tb\t0\n", "no column 'context'"),
    Odd("choices: a single ending", "in.csv", b"context,ending0,label\na,b,0\n", "no column 'ending1'"),
    Odd("choices: one name twice", "in.csv", b"context,ending0,ending1,ending1,label\na,b,c,d,0\n", "stands twice"),
    Odd("choices: no label", "in.csv", b"context,ending0,ending1\na,b,c\n", "no column 'label'", None, labels=True),
    _csv("an empty ending between others", b"paris,a,,c,0", "a choice without text"),
    _csv("a single choice", b"paris,a,,,0", "fewer than two choices"),
    _csv("another number of columns", b"paris,a,b,c", "another number of columns"),
    _csv("no context", b",a,b,c,0", "no context and no question"),
    _csv("a label beyond the choices", b"paris,a,b,,2", "an answer that is none of 2 choices", labels=True),
    _jsonl("no question", "no context and no question", {"question": None}),
    _jsonl("a number as question", "no text in question", {"question": 3}),
    _jsonl("no choices", "fewer than two choices", {"choices": []}),
    _jsonl("choices that are text", "no list of choices", {"choices": "a"}),
    _jsonl("a choice that is a number", "a choice without text", {"choices": ["a", 3]}),
    _jsonl("no answer", "an answer that is none of 2 choices", {"answer": None}, labels=True),
    _jsonl("a fraction as answer", "an answer that is none of 2 choices", {"answer": 0.5}, labels=True),
    _jsonl("true as answer", "an answer that is none of 2 choices", {"answer": True}, labels=True),
    _jsonl("two of one text", "an answer that is none", {"choices": ["a", "a"], "answer": "a"}, labels=True),
    _jsonl("a text or a number", "an answer that is none", {"choices": ["1", "0"], "answer": "1"}, labels=True),
    _jsonl("a zero byte", "NUL character", {"choices": ["a\0", "b"]}),
]
