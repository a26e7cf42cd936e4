"""Odd files of questions in SQuAD's format."""

import gzip
import json
from dataclasses import replace
from typing import Any

from odd_files import Odd, wholes

CONTEXT = "paris is the capital of france"


def question(name: str = "odd", **cells: Any) -> dict[str, Any]:
    answers = [{"text": "france", "answer_start": CONTEXT.index("france")}]
    return {"id": name, "question": "what?", "answers": answers, **cells}


def squad(*questions: Any, **paragraph: Any) -> bytes:
    """Six good questions and these."""
    good = {"context": CONTEXT, "qas": [question(f"q{i}") for i in range(6)]}
    odd = {"context": CONTEXT, "qas": list(questions), **paragraph}
    content = {"data": [{"title": "t", "paragraphs": [good, *([odd] if questions or paragraph else [])]}]}
    return json.dumps(content).encode() + b"\n"


def _question(name: str, why: str, **cells: Any) -> Odd:
    return Odd(f"squad: {name}", "in.json", squad(question(**cells)), f"question odd: {why}", 6, 1, why)


def _answer(name: str, why: str, answers: Any) -> Odd:
    content = squad(question(answers=answers))
    return Odd(f"squad: {name}", "in.json", content, f"question odd: {why}", 7, 0, why, labels=True)


_AT = CONTEXT.index("france")
_LOST = "an answer that cannot be read"

QA = [
    *(
        replace(odd, read=6, refused="", noted="") if odd.name.endswith("old mac line ends") else odd
        for odd in wholes("squad", "in.json", squad(), 6)
    ),
    Odd("squad: gzip by its name", "in.json.gz", gzip.compress(squad()), read=6),
    Odd("squad: broken", "in.json", squad()[:-5], "in.json: no JSON"),
    Odd("squad: latin-1", "in.json", squad().replace(b"paris", b"p\xe9ris"), "no UTF-8"),
    Odd("squad: nested beyond reason", "in.json", b"[" * 100_000, "no JSON"),
    Odd("squad: a list", "in.json", b"[]", "not SQuAD's format"),
    Odd("squad: a number", "in.json", b"3", "not SQuAD's format"),
    Odd("squad: null", "in.json", b"null", "not SQuAD's format"),
    Odd("squad: no data", "in.json", b'{"Data": []}', "not SQuAD's format (no 'data'"),
    Odd("squad: data is null", "in.json", b'{"data": null}', "not SQuAD's format ('data' is null"),
    Odd("squad: data is empty", "in.json", b'{"data": []}', "no usable question"),
    Odd("squad: lines of JSON", "in.json", b'{"id": "a"}\n{"id": "b"}\n', "an object a line"),
    Odd(
        "squad: an article that is a number",
        "in.json",
        squad().replace(b'{"data": [', b'{"data": [3, '),
        "article 1",
        6,
        0,
        "article 1",
    ),
    Odd(
        "squad: no paragraphs",
        "in.json",
        squad().replace(b'{"data": [', b'{"data": [{}, '),
        "article 1",
        6,
        0,
        "no list 'paragraphs'",
    ),
    Odd(
        "squad: no qas",
        "in.json",
        squad(qas=None),
        "article 1 paragraph 2: no list of questions: 'qas' is null",
        6,
        0,
        "'qas' is null",
    ),
    Odd(
        "squad: no context",
        "in.json",
        squad(question(), context=None),
        "question odd: no context: 'context' is null",
        6,
        1,
        "no context",
    ),
    Odd(
        "squad: empty context",
        "in.json",
        squad(question(), context=" "),
        "question odd: no context: 'context' is empty",
        6,
        1,
        "no context",
    ),
    Odd(
        "squad: a list as context",
        "in.json",
        squad(question(), context=["a"]),
        "'context' is a list",
        6,
        1,
        "'context' is a list",
    ),
    Odd(
        "squad: a question that is text",
        "in.json",
        squad("what?"),
        "article 1 paragraph 2 question 1: ",
        6,
        1,
        "a question that is no object",
    ),
    Odd("squad: no id", "in.json", squad(question(id=None)), "no id: 'id' is null", 6, 1, "no id"),
    Odd("squad: a list as id", "in.json", squad(question(id=["a"])), "no id: 'id' is a list", 6, 1, "no id"),
    Odd("squad: a surrogate as id", "in.json", squad(question(id="\ud800")), "invalid UTF-8", 6, 1, "invalid UTF-8"),
    Odd("squad: a number as id", "in.json", squad(question(id=5)), read=7),
    Odd(
        "squad: an id twice",
        "in.json",
        squad(question(id="q1")),
        "an id that another question has",
        6,
        1,
        "an id that another",
    ),
    _question("no question", "no text of the question: 'question' is null", question=None),
    _question("a number as question", "no text of the question: 'question' is a number (3)", question=3),
    _question("an empty question", "no text of the question: 'question' is empty", question=" "),
    _question("a zero byte", "NUL character", question="a\0b"),
    _question("half of a surrogate pair", "invalid UTF-8", question="a\ud800"),
    *(
        replace(
            _question(f"is_impossible {json.dumps(v)}", f"is_impossible is no boolean: it is {what}", is_impossible=v),
            labels=True,
        )
        for v, what in (("false", "text"), (0, "a number (0)"), (None, "null"))
    ),
    replace(
        _question("impossible with an answer", "is_impossible is true, but there are answers", is_impossible=True),
        labels=True,
    ),
    _answer("answer_start null", _LOST + ": 'answer_start' is null", [{"text": "france", "answer_start": None}]),
    _answer("answer_start absent", _LOST + ": there is no 'answer_start'", [{"text": "france"}]),
    _answer(
        "answer_start a fraction",
        _LOST + ": 'answer_start' is a number (24.0)",
        [{"text": "france", "answer_start": 24.0}],
    ),
    _answer("answer_start text", _LOST + ": 'answer_start' is text", [{"text": "france", "answer_start": str(_AT)}]),
    _answer("answer_start true", _LOST + ": 'answer_start' is a boolean", [{"text": "france", "answer_start": True}]),
    _answer("text null", _LOST + ": 'text' is null", [{"text": None, "answer_start": 3}]),
    _answer("text a number", _LOST + ": 'text' is a number (3)", [{"text": 3, "answer_start": 3}]),
    _answer("answers nested", _LOST + ": it is a list", [[{"text": "france", "answer_start": _AT}]]),
    _answer("an answer that is text", _LOST + ": it is text", ["france"]),
    _answer("answers that are text", "answers that cannot be read: 'answers' is text", "france"),
    _answer("answers of two lengths", "answers that cannot be read", {"text": ["a", "b"], "answer_start": [1]}),
    _answer("out of place", "an answer that is not at its answer_start", [{"text": "france", "answer_start": 3}]),
    _answer("before the text", "an answer that is not at its answer_start", [{"text": "france", "answer_start": -6}]),
    Odd(
        "squad: answers as datasets has them",
        "in.json",
        squad(question(answers={"text": ["france"], "answer_start": [_AT]})),
        read=7,
    ),
    Odd(
        "squad: one answer and no list",
        "in.json",
        squad(question(answers={"text": "france", "answer_start": _AT})),
        read=7,
    ),
    Odd(
        "squad: answers null",
        "in.json",
        squad(question(answers=None)),
        read=7,
        noted="have no answer that training could learn",
        labels=True,
    ),
    Odd(
        "squad: rows of datasets",
        "in.json",
        json.dumps(
            {
                "data": [
                    question(f"r{i}", context=CONTEXT, answers={"text": ["france"], "answer_start": [_AT]})
                    for i in range(3)
                ]
            }
        ).encode(),
        read=3,
    ),
    Odd("squad: a very long context", "in.json", squad(question(), context=CONTEXT + " film" * 3000), read=7),
]
