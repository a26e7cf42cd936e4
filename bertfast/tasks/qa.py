"""Extractive question answering: SQuAD 1.1, SQuAD 2.0 and JSQuAD files to examples, examples to overlapping windows.

A window is [CLS] question [SEP] part of the context [SEP]. Everything is located by character offsets into the context as the
file has it, so answers are cut from the original text and nothing is joined together again from pieces. JSQuAD writes
"TITLE [SEP] TEXT" as context: these five characters are text here like any other and are counted by answer_start. (JGLUE's own
scripts let the tokenizer turn them into the special token, so that a window has three segments' ends; here it has two.)
"""

import codecs
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.tasks.features import Feature, assemble, window_bounds
from bertfast.tasks.lines import BadLines, DataError, cell_problem, described, read_bytes, text_fault

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Encoding, Tokenizer

# Of a window at least this many pieces are context, whatever the question.
_LEAST_CONTEXT = 8


@dataclass(frozen=True)
class Answer:
    """A text, and the character of the context at which it begins."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class QAExample:
    """One question about one context.

    answers: the texts that count as right, as in the file; none where the question is impossible.
    placed: those of them that stand in the context where the file says; what training learns is the first.
    impossible: the file says that the context holds no answer. False, without answers, where the file says nothing.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    placed: tuple[Answer, ...] = ()
    impossible: bool = False
    article: str = ""


_SHAPE = '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}'


def read_squad(path: Path, bad: BadLines, labelled: bool = True) -> list[QAExample]:
    """The questions of a file in SQuAD's JSON: {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}.

    `data` may also hold the rows that the library `datasets` makes of it: questions with a context of their own, and answers as
    {"text": [...], "answer_start": [...]}.

    Args:
        bad: where what cannot be used goes, alone: articles and paragraphs without questions, questions that lack id, text or
            context, hold another type there, or repeat an id, and answers that cannot be read or do not stand at their
            answer_start (the question stays, to be scored by its texts).
        labelled: whether answers are read.

    Raises:
        DataError: the file cannot be read, is no such JSON or has no question, or it has a bad one that is not to be skipped.
    """
    examples: list[QAExample] = []
    seen: set[str] = set()
    for question in _questions(path, bad):
        example = _example(question, bad, labelled)
        if example is None:
            continue
        if example.id in seen:
            bad.report(question.where, "an id that another question has")
            continue
        seen.add(example.id)
        examples.append(example)
    if not examples:
        raise DataError(f"{path}: no usable question{'; ' + bad.summary() if bad else ''}")
    return examples


def _articles(path: Path) -> list[Any]:
    content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        text = content.decode()
        whole = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: no UTF-8 (0x{content[error.start]:02x} at byte {error.start}); convert or fix the file"
        ) from None
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        advice = "a file in SQuAD's format is expected"
        if len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines[:2]):
            advice = "it seems to have an object a line: put them into a list, as by jq -s '{data: .}'"
        raise DataError(f"{path}: no JSON ({error}); {advice}") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
        why = cell_problem(whole, "data") if isinstance(whole, dict) else f"it is {described(whole)}"
        why = why.replace("there is no", "no")
        raise DataError(f"{path}: not SQuAD's format ({why}); expected {_SHAPE}")
    return whole["data"]


@dataclass(frozen=True)
class _Question:
    """A question as the file has it. `owner` has its context."""

    where: str
    item: Any
    owner: dict[str, Any]
    title: str


def _questions(path: Path, bad: BadLines) -> Iterator[_Question]:
    """The questions of all articles, and the rows of `datasets`; what has none is reported."""
    for number, article in enumerate(_articles(path), 1):
        where = f"{path}: article {number}"
        if not isinstance(article, dict):
            bad.report(where, "an article that is no object", described(article), part=True)
            continue
        title = article.get("title")
        title = title if isinstance(title, str) else ""
        if "paragraphs" not in article and "question" in article:
            yield _Question(_place(path, article, where), article, article, title)
            continue
        if not isinstance(article.get("paragraphs"), list):
            bad.report(where, "no list 'paragraphs'", cell_problem(article, "paragraphs"), part=True)
            continue
        for place, paragraph in enumerate(article["paragraphs"], 1):
            at = f"{where} paragraph {place}"
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                why = cell_problem(paragraph, "qas") if isinstance(paragraph, dict) else f"it is {described(paragraph)}"
                bad.report(at, "no list of questions", why, part=True)
                continue
            for index, item in enumerate(paragraph["qas"], 1):
                yield _Question(_place(path, item, f"{at} question {index}"), item, paragraph, title)


def _place(path: Path, item: Any, usual: str) -> str:
    """A question by its id, which a search in the file finds; by its place where it has none."""
    name = item.get("id") if isinstance(item, dict) else None
    return f"{path}: question {name}" if isinstance(name, (str, int)) and not text_fault(str(name)) else usual


def _example(question: _Question, bad: BadLines, labelled: bool) -> QAExample | None:
    item, where = question.item, question.where
    if wrong := _question_problem(item, question.owner):
        bad.report(where, *wrong)
        return None
    impossible = labelled and item.get("is_impossible", False)
    if type(impossible) is not bool:
        bad.report(where, "is_impossible is no boolean", f"it is {described(impossible)}; write true or false")
        return None
    given = _answers(item, where, bad) if labelled else []
    if impossible and given:
        bad.report(where, "is_impossible is true, but there are answers", f"{len(given)}")
        return None
    context = question.owner["context"]
    texts, placed = [], []
    for answer in given:
        if (start := _start(answer, where, bad)) is None:
            if isinstance(answer, dict) and isinstance(answer.get("text"), str):
                texts.append(answer["text"])
            continue
        found = Answer(answer["text"], start)
        texts.append(found.text)
        if found.start >= 0 and found.text and context[found.start : found.end] == found.text:
            placed.append(found)
        else:
            there = context[max(found.start, 0) :][: len(found.text)]
            detail = f"{found.text!r}, there is {there!r}"
            bad.report(where, "an answer that is not at its answer_start", detail, part=True)
    return QAExample(
        str(item["id"]), item["question"], context, tuple(texts), tuple(placed), impossible, question.title
    )


def _question_problem(item: Any, owner: dict[str, Any]) -> tuple[str, str] | None:
    """Why this is no question with a context, as `BadLines.report` takes it."""
    if not isinstance(item, dict):
        return "a question that is no object", f"it is {described(item)}"
    name = item.get("id")
    if not isinstance(name, (str, int)) or isinstance(name, bool):
        return "no id", cell_problem(item, "id")
    for what, cells, key in (("no text of the question", item, "question"), ("no context", owner, "context")):
        if not isinstance(cells.get(key), str) or not cells[key].strip():
            return what, cell_problem(cells, key)
    return text_fault(str(name), item["question"], owner["context"])


def _answers(item: dict[str, Any], where: str, bad: BadLines) -> list[Any]:
    """The answers of a question as a list of objects, from any form that people have."""
    given = item.get("answers")
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        if isinstance(texts, str):
            return [given]
        detail = "'text' and 'answer_start' are no lists of one length"
    elif given is None:
        return []
    elif isinstance(given, list):
        return given
    else:
        detail = cell_problem(item, "answers")
    bad.report(where, "answers that cannot be read", detail, part=True)
    return []


def _start(answer: Any, where: str, bad: BadLines) -> int | None:
    """answer_start of an answer that has it, and a text; else None."""
    if not isinstance(answer, dict):
        detail = f"it is {described(answer)}"
    elif not isinstance(answer.get("text"), str):
        detail = cell_problem(answer, "text")
    elif type(answer.get("answer_start")) is not int:
        detail = cell_problem(answer, "answer_start")
    else:
        return answer["answer_start"]
    bad.report(
        where, "an answer that cannot be read", f"{detail}; it has 'text' and 'answer_start', a whole number", part=True
    )
    return None


@dataclass(frozen=True)
class Window:
    """A feature and what it shows of its example.

    example: index of the example.
    prefix: position of the first piece of context in the feature.
    offsets: (start, end) characters of the context for each piece shown.
    """

    feature: Feature
    example: int
    prefix: int
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class QAFeatures:
    """All windows, in the order of examples, and counts of what training cannot use or had to change."""

    windows: list[Window]
    questions_cut: int = 0
    unanswerable: int = 0

    @property
    def features(self) -> list[Feature]:
        return [window.feature for window in self.windows]


def qa_features(
    examples: Sequence[QAExample],
    tokenizer: "Tokenizer",
    *,
    max_length: int = 384,
    stride: int = 128,
    max_question: int = 64,
    training: bool = False,
) -> QAFeatures:
    """Every context as windows of at most `max_length` pieces, one beginning `stride` pieces after the other.

    Args:
        stride: pieces of context between the starts of two windows (Google's doc_stride; what `tokenizers` calls stride is the
            overlap instead). Where a long question leaves less room than this, windows follow each other without overlap.
        max_question: pieces of the question that are kept, from its start.
        training: whether to add `start_positions` and `end_positions`, positions in the sequence. A window that does not hold the
            whole first answer, and any window of an impossible question, has [CLS], position 0. Questions without an answer in
            place that are not impossible are left out and counted in `unanswerable`.

    Raises:
        DataError: the lengths leave no room for context, or are not positive.
    """
    if min(stride, max_question) < 1 or max_length - max_question - 3 < _LEAST_CONTEXT:
        raise DataError(
            f"max_length {max_length}, stride {stride} and max_question {max_question} do not fit: lengths are at least 1, and "
            f"beside the question and 3 special tokens {_LEAST_CONTEXT} pieces of context need room"
        )
    used = [i for i, e in enumerate(examples) if not training or e.placed or e.impossible]
    contexts = list(dict.fromkeys(examples[i].context for i in used))
    encoded = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
    questions = tokenizer.encode_batch([examples[i].question for i in used])
    windows: list[Window] = []
    cut = lost = 0
    for index, question in zip(used, questions, strict=True):
        example = examples[index]
        cut += len(question.ids) > max_question
        context = encoded[example.context]
        span = answer_span(context.offsets, example.placed[0]) if training and example.placed else None
        if training and span is None and not example.impossible:
            lost += 1
            continue
        room = max_length - 3 - min(len(question.ids), max_question)
        for begin, end in window_bounds(len(context.ids), room, stride):
            window = _window(tokenizer, question.ids[:max_question], context, begin, end, index)
            windows.append(_aimed(window, span, begin, end) if training else window)
    return QAFeatures(windows, cut, len(examples) - len(used) + lost)


def answer_span(offsets: Sequence[tuple[int, int]], answer: Answer) -> tuple[int, int] | None:
    """First and last piece that share a character with the answer; None where no piece does (its characters were dropped)."""
    first = bisect_right([end for _, end in offsets], answer.start)
    last = bisect_left([start for start, _ in offsets], answer.end) - 1
    return (first, last) if first <= last else None


def _window(
    tokenizer: "Tokenizer", question: Sequence[int], context: "Encoding", begin: int, end: int, example: int
) -> Window:
    feature = assemble(tokenizer, question, context.ids[begin:end])
    return Window(feature, example, len(question) + 2, list(context.offsets[begin:end]))


def _aimed(window: Window, span: tuple[int, int] | None, begin: int, end: int) -> Window:
    """The window with the positions of the answer's first and last piece, or [CLS] where it is not whole in here."""
    start = stop = 0
    if span is not None and begin <= span[0] and span[1] < end:
        start, stop = (window.prefix + place - begin for place in span)
    labels: dict[str, Any] = {"start_positions": start, "end_positions": stop}
    return replace(window, feature=replace(window.feature, labels=labels))
