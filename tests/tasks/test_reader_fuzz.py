"""Files with random damage: a reader gives examples or a DataError, never another exception, and counts each line once."""

import json
import os
import random
import time

import pytest

from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.pair import read_pairs
from bertfast.tasks.qa import read_squad
from bertfast.tasks.token import read_tokens

CASES = 80
VALUES = [None, True, 0, 1.5, float("nan"), "", " ", "x", "\ud800", "a\0b", [], ["x"], [[1]], {}, {"text": "x"}, 10**40]
BYTES = [
    b"\xff",
    b"\0",
    b"\r",
    b"\n",
    b"\t",
    b'"',
    b",",
    b" ",
    b"\\u",
    b"{",
    b"]",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"1e999",
    b"-",
]


def seed():
    """A fresh one each day in which nobody fixes it; a failure prints it."""
    return int(os.environ.get("BERTFAST_FUZZ_SEED", time.time() // 86400))


def damaged_bytes(draw, good):
    content = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(content) + 1)
        content[place : place + draw.choice([0, 0, 1, 3])] = draw.choice(BYTES)
    return bytes(content)


def damaged_json(draw, value, depth=0):
    """The value with something in it replaced by another, or a key of it left out."""
    if depth and draw.random() < 0.25:
        return draw.choice(VALUES)
    if isinstance(value, dict) and value:
        name = draw.choice(list(value))
        if draw.random() < 0.15:
            return {key: item for key, item in value.items() if key != name}
        return value | {name: damaged_json(draw, value[name], depth + 1)}
    if isinstance(value, list) and value:
        place = draw.randrange(len(value))
        return [*value[:place], damaged_json(draw, value[place], depth + 1), *value[place + 1 :]]
    return draw.choice(VALUES)


PAIRS = [{"sentence1": "the film", "sentence2": "good", "label": name} for name in ("x", "y", "x")]
TOKENS = [
    {"tokens": ["paris", "is"], "tags": ["B-LOC", "O"]},
    {"text": "paris is", "entities": [{"start": 0, "end": 5, "label": "LOC"}]},
] * 2
ANSWER = {"text": "paris", "answer_start": 0}
QUESTIONS = [{"id": str(i), "question": "what?", "answers": [ANSWER], "is_impossible": False} for i in range(3)]
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "paris is good", "qas": QUESTIONS}] * 1}]}


def lines(items):
    return "".join(json.dumps(item) + "\n" for item in items).encode()


FILES = {
    "pairs.tsv": (b"the film\tgood\tx\nparis\tis bad\ty\n" * 3, read_pairs),
    "pairs.csv": (b'sentence1,sentence2,label\n"a, b","c ""d""\ne",x\nf,g,y\n' * 1, read_pairs),
    "pairs.jsonl": (lines(PAIRS), read_pairs),
    "tokens.conll": (b"paris B-LOC\nis O\n\nthe O\nfilm O\n\n" * 2, read_tokens),
    "tokens.jsonl": (lines(TOKENS), read_tokens),
    "squad.json": (json.dumps(SQUAD).encode(), read_squad),
}
OBJECTS = {"pairs.jsonl": PAIRS, "tokens.jsonl": TOKENS}


def content_of(draw, name):
    if name == "squad.json" and draw.random() < 0.7:
        return json.dumps(damaged_json(draw, SQUAD)).encode()
    if name in OBJECTS and draw.random() < 0.7:
        items = list(OBJECTS[name])
        place = draw.randrange(len(items))
        items[place] = damaged_json(draw, items[place])
        return lines(items)
    return damaged_bytes(draw, FILES[name][0])


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_reported_and_nothing_else(tmp_path, name, labelled):
    read = FILES[name][1]
    for case in range(CASES):
        label = f"seed {seed()} case {case}"
        draw = random.Random(f"{seed()} {name} {case}")
        path = tmp_path / name
        path.write_bytes(content_of(draw, name))
        bad, examples, refused = BadLines(skip=True), [], ""
        try:
            examples = read(path, bad, labelled=labelled)
        except DataError as error:
            refused = str(error)
        assert not refused or name in refused, label
        try:
            strictly = read(path, BadLines(), labelled=labelled)
        except DataError:
            assert bad or refused, f"{label}: refused, and with skip nothing was left out"
        else:
            assert [repr(e) for e in strictly] == [repr(e) for e in examples], label
            assert not bad, f"{label}: left out what was not refused"
        if name in OBJECTS and not refused:
            filled = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
            if b"\r" not in path.read_bytes():
                assert len(examples) + bad.counts.total() == filled, label
