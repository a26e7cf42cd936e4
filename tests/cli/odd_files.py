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


# --- sentences and pairs ------------------------------------------------------------------------------------------------------

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
    Odd("tsv: line separators of Unicode", "in.tsv", lines_with(GOOD_TSV, 3, "a\u2028b\x85c\x0bd\x0c\tgood".encode()), read=7),
    Odd("tsv: a very long sentence", "in.tsv", lines_with(GOOD_TSV, 3, LONG_CELL + b"\tgood"), read=7, noted="were cut"),
    Odd("tsv: header alone", "in.tsv", b"sentence\tlabel\n", "names the columns, and there is nothing after it"),
    Odd("tsv: label first", "in.tsv", b"label\tsentence\ngood\tparis\n", "a header with the label first"),
    Odd("tsv: four columns", "in.tsv", b"a\tb\tc\td\n", "4 columns"),
    Odd(
        "tsv: a header that is not seen as one", "in.tsv", lines_with(GOOD_TSV, 1, b"review\tgold"), read=7,
        noted="in.tsv:1 may be a header", labels=True,
    ),  # fmt: skip
    Odd("tsv: quoted", "in.tsv", b'"the ""film"""\tgood\n"a\tbad\n', read=2, noted="a TSV file has no quoting"),
    Odd("tsv: one label", "in.tsv", b"a\tgood\nb\tgood\n", "all labels are 'good'", None, labels=True),
    Odd(
        "tsv: one number in two spellings", "in.tsv", b"a\t1\nb\t0\na\t1.0\n", "in.tsv:3: the label '1.0' is the number '1'",
        None, labels=True,
    ),  # fmt: skip
    Odd(
        "tsv: labels that differ by case", "in.tsv", b"a\tgood\nb\tbad\na\tGood\n", read=3, noted="differ by case alone",
        labels=True,
    ),  # fmt: skip
    Odd("tsv: scores", "in.tsv", b"a\t0.5\nb\t3.25\na\t4\n", read=3, noted="give --regression", labels=True),
    Odd(
        "tsv: markers", "in.tsv", b"[E1] paris [/E1] is\tgood\n[E1] film [/E1]\tbad\n", read=2, noted="--special-tokens",
    ),  # fmt: skip
    # JSONL
    _jsonl("broken", b'{"sentence1": "a"', "text that is no JSON"),
    _jsonl("two objects", _item() + b" " + _item(), "text that is no JSON"),
    _jsonl("nested beyond reason", b"[" * 100_000, "text that is no JSON"),
    *(_jsonl(f"a line {word.decode()}", word, "JSON that is no object") for word in (b"[1]", b"3", b"null", b'"a"')),
    _jsonl("a key twice", b'{"sentence1": "a", "label": "good", "label": "bad"}', "text that is no JSON: the key 'label'"),
    _jsonl("no sentence", _without("sentence1"), "no text in sentence1: there is no 'sentence1'"),
    *(
        _jsonl(f"sentence {json.dumps(value)}", _item(sentence1=value), f"no text in sentence1: {what}")
        for value, what in (
            (None, "'sentence1' is null"), (3, "'sentence1' is a number (3)"), (True, "'sentence1' is a boolean (true)"),
            (["a"], "'sentence1' is a list"), ({"a": 1}, "'sentence1' is an object"), (" ", "'sentence1' is empty"),
        )
    ),  # fmt: skip
    _jsonl("no label", _without("label"), "no label: there is no 'label'", labels=True),
    *(
        _jsonl(f"label {json.dumps(value)}", _item(label=value), f"no label: {what}", labels=True)
        for value, what in (
            (None, "'label' is null"), (True, "'label' is a boolean (true)"), ([1], "'label' is a list"),
            ({"a": 1}, "'label' is an object"), ("", "'label' is empty"), (float("nan"), "'label' is a number (NaN)"),
        )
    ),  # fmt: skip
    _jsonl("half of a surrogate pair", _item(sentence1="a\ud800"), "invalid UTF-8"),
    _jsonl("half of a surrogate pair as label", _item(label="a\ud800"), "invalid UTF-8", labels=True),
    _jsonl("latin-1", b'{"sentence1": "caf\xe9", "label": "good"}', "bytes that are no UTF-8"),
    Odd("json: one list", "in.json", json.dumps([json.loads(_item())], indent=1).encode(), "one JSON list"),
    Odd(
        "jsonl: other keys", "in.jsonl", b'{"sentence_1": "a", "label": "x"}\n', "no 'sentence1'; it has sentence_1, label",
    ),  # fmt: skip
    Odd(
        "jsonl: singles and pairs", "in.jsonl", lines_with(GOOD_JSONL, 3, _item(sentence2="b")),
        "single sentences and pairs in one file",
    ),  # fmt: skip
    # CSV
    _csv("a quote that stays open", b'"paris,good', "a quote that is never closed"),
    _csv("text after a quote", b'"paris" is,good', "text after a closing quote"),
    _csv("too many columns", b"paris,france,good", "another number of columns"),
    _csv("too few columns", b"paris", "another number of columns"),
    _csv("no label", b"paris,", "no label: 'label' is empty", labels=True),
    _csv("latin-1", "café,good".encode("latin-1"), "bytes that are no UTF-8: 0xe9"),
    _csv("a zero byte", b"par\0is,good", "NUL character"),
    Odd(
        "csv: a quote that stays open before 3,200 rows", "in.csv", b"\n".join([GOOD_CSV[0], b'"paris,bad', *MANY, b"a,bad"]),
        "in.csv:2: a quote that is never closed: it opens here, and the 3,201 lines after it", 3201, 1,
        noted="in.csv:2: a quote that is never closed",
    ),  # fmt: skip
    Odd("csv: a cell over the usual limit", "in.csv", lines_with(GOOD_CSV, 4, LONG_CELL + b",good"), read=7, noted="were cut"),
    Odd("csv: line ends in a cell", "in.csv", lines_with(GOOD_CSV, 4, b'"a\nb\nc",good'), read=7, noted="line ends within a cell"),
    Odd("csv: header alone", "in.csv", b"sentence1,label\n", "names the columns, and there is nothing after it"),
    Odd("csv: no header", "in.csv", b"paris,good\nfilm,bad\n", "in.csv:1: no column 'sentence1'; it has paris, good"),
    Odd("csv: semicolons", "in.csv", b"sentence1;label\na;good\n", "parted by ';'"),
    Odd("csv: a column twice", "in.csv", b"sentence1,label,label\na,b,c\n", "the column 'label' stands twice"),
    Odd(
        "csv: a named column is missing", "in.csv", b"premise,hypotheses,label\na,b,good\n",
        "in.csv:1: no column 'hypothesis'; it has premise, hypotheses, label; did you mean 'hypotheses'?",
        options=("--fields", "premise,hypothesis,label"),
    ),  # fmt: skip
    Odd(
        "jsonl: a named key is missing", "in.jsonl", b'{"premise": "a", "hypotheses": "b", "label": "x"}\n',
        "no 'hypothesis'; it has premise, hypotheses, label; did you mean 'hypotheses'?",
        options=("--fields", "premise,hypothesis,label"),
    ),  # fmt: skip
    Odd(
        "tsv: a named column is missing", "in.tsv", b"premise\thypotheses\tlabel\na\tb\tgood\n",
        "in.tsv:1: no column 'hypothesis'; it has premise, hypotheses, label; did you mean 'hypotheses'?",
        options=("--fields", "premise,hypothesis,label"),
    ),  # fmt: skip
    Odd(
        "tsv: columns by name", "in.tsv", b"label\tid\tpremise\thypothesis\ngood\t1\ta\tb\nbad\t2\tc\td\n", read=2,
        options=("--fields", "premise,hypothesis,label"),
    ),  # fmt: skip
    Odd(
        "tsv: names and no header", "in.tsv", b"a\tb\tgood\nc\td\tbad\n", read=2, noted="has no header",
        options=("--fields", "premise,hypothesis,label"),
    ),  # fmt: skip
]


# --- questions ----------------------------------------------------------------------------------------------------------------

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
    Odd("squad: an article that is a number", "in.json", squad().replace(b'{"data": [', b'{"data": [3, '), "article 1", 6, 0, "article 1"),
    Odd("squad: no paragraphs", "in.json", squad().replace(b'{"data": [', b'{"data": [{}, '), "article 1", 6, 0, "no list 'paragraphs'"),
    Odd("squad: no qas", "in.json", squad(qas=None), "article 1 paragraph 2: no list of questions: 'qas' is null", 6, 0, "'qas' is null"),
    Odd("squad: no context", "in.json", squad(question(), context=None), "question odd: no context: 'context' is null", 6, 1, "no context"),
    Odd("squad: empty context", "in.json", squad(question(), context=" "), "question odd: no context: 'context' is empty", 6, 1, "no context"),
    Odd("squad: a list as context", "in.json", squad(question(), context=["a"]), "'context' is a list", 6, 1, "'context' is a list"),
    Odd("squad: a question that is text", "in.json", squad("what?"), "article 1 paragraph 2 question 1: ", 6, 1, "a question that is no object"),
    Odd("squad: no id", "in.json", squad(question(id=None)), "no id: 'id' is null", 6, 1, "no id"),
    Odd("squad: a list as id", "in.json", squad(question(id=["a"])), "no id: 'id' is a list", 6, 1, "no id"),
    Odd("squad: a surrogate as id", "in.json", squad(question(id="\ud800")), "invalid UTF-8", 6, 1, "invalid UTF-8"),
    Odd("squad: a number as id", "in.json", squad(question(id=5)), read=7),
    Odd("squad: an id twice", "in.json", squad(question(id="q1")), "an id that another question has", 6, 1, "an id that another"),
    _question("no question", "no text of the question: 'question' is null", question=None),
    _question("a number as question", "no text of the question: 'question' is a number (3)", question=3),
    _question("an empty question", "no text of the question: 'question' is empty", question=" "),
    _question("a zero byte", "NUL character", question="a\0b"),
    _question("half of a surrogate pair", "invalid UTF-8", question="a\ud800"),
    *(
        replace(_question(f"is_impossible {json.dumps(v)}", f"is_impossible is no boolean: it is {what}", is_impossible=v), labels=True)
        for v, what in (("false", "text"), (0, "a number (0)"), (None, "null"))
    ),
    replace(_question("impossible with an answer", "is_impossible is true, but there are answers", is_impossible=True), labels=True),
    _answer("answer_start null", _LOST + ": 'answer_start' is null", [{"text": "france", "answer_start": None}]),
    _answer("answer_start absent", _LOST + ": there is no 'answer_start'", [{"text": "france"}]),
    _answer("answer_start a fraction", _LOST + ": 'answer_start' is a number (24.0)", [{"text": "france", "answer_start": 24.0}]),
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
    Odd("squad: answers as datasets has them", "in.json", squad(question(answers={"text": ["france"], "answer_start": [_AT]})), read=7),
    Odd("squad: one answer and no list", "in.json", squad(question(answers={"text": "france", "answer_start": _AT})), read=7),
    Odd(
        "squad: answers null", "in.json", squad(question(answers=None)), read=7, noted="have no answer that training could learn",
        labels=True,
    ),
    Odd(
        "squad: rows of datasets", "in.json",
        json.dumps({"data": [question(f"r{i}", context=CONTEXT, answers={"text": ["france"], "answer_start": [_AT]}) for i in range(3)]}).encode(),
        read=3,
    ),
    Odd("squad: a very long context", "in.json", squad(question(), context=CONTEXT + " film" * 3000), read=7),
]  # fmt: skip


# --- tokens -------------------------------------------------------------------------------------------------------------------

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
    Odd("conll: a no-break space", "in.conll", b"\n".join([*GOOD_CONLL, "10\u00a0000 O".encode(), b""]), "in.conll:9: white space within a word", 3, 1, "white space within a word"),
    Odd("conll: white space within a word", "in.tsv", b"paris\tB-LOC\n\nnew york\tB-LOC\n", "in.tsv:3: white space within a word", 1, 1, "white space within a word"),
    Odd("conll: no word", "in.tsv", b"paris\tB-LOC\n\n\tO\nis\tO\n", "in.tsv:3: no word before the tag", 1, 1, "no word before the tag"),
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
    _spans("a number as token", {"tokens": ["a", 3], "tags": ["O", "O"]}, "text that is no example: token 2 is a number (3)"),
    _spans("null as token", {"tokens": [None], "tags": ["O"]}, "text that is no example: token 1 is null"),
    _spans("an empty token", {"tokens": [" "], "tags": ["O"]}, "text that is no example: token 1 is empty"),
    _spans("no tags", {"tokens": ["a"], "ner_tags": ["O"]}, "text that is no example: there is no 'tags'", labels=True),
    _spans("numbers as tags", {"tokens": ["a"], "tags": [0]}, "text that is no example: tag 1 is a number (0)", labels=True),
    _spans("fewer tags", {"tokens": ["a", "b"], "tags": ["O"]}, "text that is no example: 2 tokens and 1 tags", labels=True),
    _spans("a tag of no scheme", {"tokens": ["a"], "tags": ["LOC"]}, "text that is no example: the tag 'LOC'", labels=True),
    _spans("a surrogate", {"tokens": ["\ud800"], "tags": ["O"]}, "invalid UTF-8"),
    _spans("a surrogate as tag", {"tokens": ["a"], "tags": ["B-\ud800"]}, "invalid UTF-8", labels=True),
    _spans("text null", {"text": None, "entities": []}, "text that is no example: 'text' is null"),
    _spans("text empty", {"text": " ", "entities": []}, "text that is no example: 'text' is empty"),
    _spans("no entities", {"text": "paris"}, "text that is no example: there is no 'entities'", labels=True),
    _spans("entities null", {"text": "paris", "entities": None}, "text that is no example: 'entities' is null", labels=True),
    _spans("entities as lists", {"text": "paris", "entities": [[0, 5, "LOC"]]}, "text that is no example: entity 1 is a list", labels=True),
    _entity("a fraction", "'start' of entity 1 is a number (0.0)", start=0.0),
    _entity("an offset as text", "'end' of entity 1 is text", end="5"),
    _entity("an offset that is true", "'end' of entity 1 is a boolean (true)", end=True),
    _entity("an offset that is null", "'end' of entity 1 is null", end=None),
    _entity("a number as label", "'label' of entity 1 is a number (3)", label=3),
    _entity("an empty label", "'label' of entity 1 is empty", label=" "),
    _entity("outside the text", "entity 1 ('LOC' at 0..99) is not within the text", end=99),
    _spans(
        "overlap", {"text": "paris is", "entities": [{"start": 0, "end": 5, "label": "A"}, {"start": 3, "end": 8, "label": "B"}]},
        "text that is no example: entities overlap", labels=True,
    ),
    Odd("spans: a key is missing", "in.jsonl", GOOD_SPANS[0] + b'\n{"text": "paris", "entities": [{"start": 0, "label": "LOC"}]}\n', "there is no 'end'", 1, 1, "there is no 'end'", labels=True),
    Odd("spans: one list", "in.json", json.dumps([{"tokens": ["a"], "tags": ["O"]}], indent=1).encode(), "one JSON list"),
]  # fmt: skip

KINDS = {"pair": PAIR, "qa": QA, "token": TOKEN}
