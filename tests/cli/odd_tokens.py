"""Odd files of tagged words and of entities in texts."""

import json
from typing import Any

from odd_files import Odd, lines_with, wholes

GOOD_CONLL = [b"paris B-LOC", b"is O", b"", b"film O", b"good O", b"", b"france B-LOC", b""]  # three sentences
GOOD_SPANS = [
    json.dumps({"text": "paris is", "entities": [{"start": 0, "end": 5, "label": "LOC"}]}).encode(),
    json.dumps({"tokens": ["film", "is"], "tags": ["O", "O"]}).encode(),
    json.dumps({"text": "the film", "entities": []}).encode(),
]


def _conll(name: str, lines: list[bytes], why: str, line: int = 7, **more: Any) -> Odd:
    content = b"\n".join([*GOOD_CONLL[:6], *lines, b"", *GOOD_CONLL[6:]])
    return Odd(f"conll: {name}", "in.conll", content, f"in.conll:{line}: {why}", 3, 1, why, **more)


def _spans(name: str, item: Any, why: str, **more: Any) -> Odd:
    line = item if isinstance(item, bytes) else json.dumps(item).encode()
    content = lines_with(GOOD_SPANS, 2, line)
    return Odd(f"spans: {name}", "in.jsonl", content, f"in.jsonl:2: {why}", 3, 1, why, **more)


def _entity(name: str, why: str, **cells: Any) -> Odd:
    entity = {"start": 0, "end": 5, "label": "LOC", **cells}
    return _spans(name, {"text": "paris is", "entities": [entity]}, f"text that is no example: {why}", labels=True)


TOKEN = [
    *wholes("conll", "in.conll", b"\n".join(GOOD_CONLL) + b"\n", 3),
    *wholes("spans", "in.jsonl", b"\n".join(GOOD_SPANS) + b"\n", 3),
    Odd("conll: unknown ending", "in.csv", b"\n".join(GOOD_CONLL), "files end in"),
    _conll("no tag", [b"paris B-LOC", b"is"], "another number of columns", 8),
    _conll("a word in two", [b"is O", b"new york B-LOC"], "another number of columns", 8),
    _conll("tabs among spaces", [b"is O", b"paris\tB-LOC\tO"], "another number of columns", 8),
    _conll("a comment", [b"# sent id 3", b"is O"], "another number of columns"),
    _conll("a tag of no scheme", [b"is O", b"paris PERSON"], "a tag of no known scheme", 8, labels=True),
    _conll("a zero byte", [b"is O", b"par\0is O"], "NUL character", 8),
    _conll("a zero byte in a tag", [b"is O", b"paris B-L\0C"], "NUL character", 8),
    _conll("latin-1", [b"is O", b"caf\xe9 O"], "bytes that are no UTF-8", 8),
    _conll("carriage return within", [b"is O\rthe O"], "a carriage return within the line"),
    Odd(
        "conll: a no-break space",
        "in.conll",
        b"\n".join([*GOOD_CONLL, "10\u00a0000 O".encode(), b""]),
        "in.conll:9: white space within a word",
        3,
        1,
        "white space within a word",
    ),
    Odd(
        "conll: white space within a word",
        "in.tsv",
        b"paris\tB-LOC\n\nnew york\tB-LOC\n",
        "in.tsv:3: white space within a word",
        1,
        1,
        "white space within a word",
    ),
    Odd(
        "conll: no word",
        "in.tsv",
        b"paris\tB-LOC\n\n\tO\nis\tO\n",
        "in.tsv:3: no word before the tag",
        1,
        1,
        "no word before the tag",
    ),
    Odd("conll: one column", "in.conll", b"paris\nis\n", "in.conll:1: no tag", None, labels=True),
    Odd("conll: O alone", "in.conll", b"paris O\nis O\n", "the only tag is O", None, labels=True),
    Odd("conll: -DOCSTART- alone", "in.conll", b"-DOCSTART- O\n\n", "no usable sentence"),
    Odd("conll: a very long sentence", "in.conll", b"film O\n" * 3000 + b"paris B-LOC\n", read=1),
    _spans("broken", b'{"tokens": ["a"]', "text that is no JSON"),
    _spans("nested beyond reason", b"[" * 100_000, "text that is no JSON"),
    _spans("a list", [1], "JSON that is no object: a list"),
    _spans("a key twice", b'{"tokens": ["a"], "tags": ["O"], "tags": ["O"]}', "text that is no JSON: the key 'tags'"),
    _spans("other keys", {"words": ["a"]}, "text that is no example: there is no 'text'"),
    _spans("tokens as text", {"tokens": "ab", "tags": ["O", "O"]}, "text that is no example: 'tokens' is text"),
    _spans("no tokens", {"tokens": [], "tags": []}, "text that is no example: 'tokens' is empty"),
    _spans(
        "a number as token",
        {"tokens": ["a", 3], "tags": ["O", "O"]},
        "text that is no example: token 2 is a number (3)",
    ),
    _spans("null as token", {"tokens": [None], "tags": ["O"]}, "text that is no example: token 1 is null"),
    _spans("an empty token", {"tokens": [" "], "tags": ["O"]}, "text that is no example: token 1 is empty"),
    _spans("no tags", {"tokens": ["a"], "ner_tags": ["O"]}, "text that is no example: there is no 'tags'", labels=True),
    _spans(
        "numbers as tags", {"tokens": ["a"], "tags": [0]}, "text that is no example: tag 1 is a number (0)", labels=True
    ),
    _spans(
        "fewer tags", {"tokens": ["a", "b"], "tags": ["O"]}, "text that is no example: 2 tokens and 1 tags", labels=True
    ),
    _spans(
        "a tag of no scheme", {"tokens": ["a"], "tags": ["LOC"]}, "text that is no example: the tag 'LOC'", labels=True
    ),
    _spans("a surrogate", {"tokens": ["\ud800"], "tags": ["O"]}, "invalid UTF-8"),
    _spans("a surrogate as tag", {"tokens": ["a"], "tags": ["B-\ud800"]}, "invalid UTF-8", labels=True),
    _spans("text null", {"text": None, "entities": []}, "text that is no example: 'text' is null"),
    _spans("text empty", {"text": " ", "entities": []}, "text that is no example: 'text' is empty"),
    _spans("no entities", {"text": "paris"}, "text that is no example: there is no 'entities'", labels=True),
    _spans(
        "entities null", {"text": "paris", "entities": None}, "text that is no example: 'entities' is null", labels=True
    ),
    _spans(
        "entities as lists",
        {"text": "paris", "entities": [[0, 5, "LOC"]]},
        "text that is no example: entity 1 is a list",
        labels=True,
    ),
    _entity("a fraction", "'start' of entity 1 is a number (0.0)", start=0.0),
    _entity("an offset as text", "'end' of entity 1 is text", end="5"),
    _entity("an offset that is true", "'end' of entity 1 is a boolean (true)", end=True),
    _entity("an offset that is null", "'end' of entity 1 is null", end=None),
    _entity("a number as label", "'label' of entity 1 is a number (3)", label=3),
    _entity("an empty label", "'label' of entity 1 is empty", label=" "),
    _entity("outside the text", "entity 1 ('LOC' at 0..99) is not within the text", end=99),
    _spans(
        "overlap",
        {"text": "paris is", "entities": [{"start": 0, "end": 5, "label": "A"}, {"start": 3, "end": 8, "label": "B"}]},
        "text that is no example: entities overlap",
        labels=True,
    ),
    Odd(
        "spans: a key is missing",
        "in.jsonl",
        GOOD_SPANS[0] + b'\n{"text": "paris", "entities": [{"start": 0, "label": "LOC"}]}\n',
        "there is no 'end'",
        1,
        1,
        "there is no 'end'",
        labels=True,
    ),
    Odd(
        "spans: one list", "in.json", json.dumps([{"tokens": ["a"], "tags": ["O"]}], indent=1).encode(), "one JSON list"
    ),
]
