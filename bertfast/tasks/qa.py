"""Extractive question answering: SQuAD 1.1, SQuAD 2.0 and JSQuAD files to examples, examples to overlapping windows.

A window is [CLS] question [SEP] part of the context [SEP]. Everything is located by character offsets into the context as the
file has it, so answers are cut from the original text and nothing is joined together again from pieces. JSQuAD writes
"TITLE [SEP] TEXT" as context: these five characters are text here like any other and are counted by answer_start. (JGLUE's own
scripts let the tokenizer turn them into the special token, so that a window has three segments' ends; here it has two.)
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.tasks.features import Feature, assemble, window_bounds
from bertfast.tasks.lines import BadLines, DataError, read_bytes, text_fault

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


def read_squad(path: Path, bad: BadLines) -> list[QAExample]:
    """The questions of a file in SQuAD's JSON: {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}.

    Args:
        bad: where an answer goes that does not stand at its answer_start (the question stays, to be scored by its texts), and a
            question that lacks its id or text, or repeats an id.

    Raises:
        DataError: the file cannot be read, is no such JSON or has no question, or it has a bad one that is not to be skipped.
    """
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: no JSON in UTF-8 ({error}); a file in SQuAD's format is expected") from None
    examples: list[QAExample] = []
    seen: set[str] = set()
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for item in paragraph["qas"]:
                    example = _question(item, paragraph["context"], article.get("title", ""), path, bad)
                    if example is None:
                        continue
                    if example.id in seen:
                        bad.report(f"{path}: question {example.id}", "an id that another question has")
                        continue
                    seen.add(example.id)
                    examples.append(example)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not SQuAD's format ({f'no {error}' if isinstance(error, KeyError) else 'other values'}); expected "
            '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}'
        ) from None
    if not examples:
        raise DataError(f"{path}: no usable question{'; ' + bad.summary() if bad else ''}")
    return examples


def _question(item: dict[str, Any], context: str, title: str, path: Path, bad: BadLines) -> QAExample | None:
    name, question = item.get("id"), item.get("question")
    where = f"{path}: question {name}"
    if name is None or not isinstance(question, str) or not question.strip():
        bad.report(where, "no id or no text of the question")
        return None
    if wrong := text_fault(question, context):
        bad.report(where, *wrong)
        return None
    impossible = bool(item.get("is_impossible", False))
    texts, placed = [], []
    for given in [] if impossible else item.get("answers", []):
        answer = Answer(given["text"], given["answer_start"])
        texts.append(answer.text)
        if answer.start >= 0 and answer.text and context[answer.start : answer.end] == answer.text:
            placed.append(answer)
        else:
            there = context[max(answer.start, 0) :][: len(answer.text)]
            bad.report(where, "an answer that is not at its answer_start", f"{answer.text!r}, there is {there!r}")
    return QAExample(str(name), question, context, tuple(texts), tuple(placed), impossible, title)


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
