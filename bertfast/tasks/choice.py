"""Multiple choice: files of questions with their choices to examples, examples to sequences, one for each choice.

A table has columns `context`, `ending0`, `ending1`, ... and `label`, or those of SWAG (`sent1`, `sent2`, `ending0`, ...): what an
ending goes on from is `sent2`. JSON lines may also have "question", "choices" and "answer". Questions of a file may have different
numbers of choices: the last cells of a row are then empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.tasks.columns import read_items
from bertfast.tasks.features import Feature
from bertfast.tasks.lines import BadLines, DataError, cell_problem, described, no_column, text_fault
from bertfast.tasks.pair import PairExample, pair_features

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

_CONTEXT, _QUESTION, _ANSWER = ("context", "sent1"), ("question", "sent2"), ("label", "answer")
_LISTS = ("choices", "endings")
_SHAPE = '{"question": "...", "choices": ["...", "..."], "answer": 0}, or context, ending0, ending1, ..., label'


@dataclass(frozen=True)
class ChoiceExample:
    """One question.

    context: what all choices are read after; empty where the file has none. question: what each choice goes on from, or answers.
    answer: the number of the right choice, from 0; None where labels are not read.
    """

    context: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    where: str

    def pairs(self) -> list[PairExample]:
        """What is read for each choice: the context, then the question with the choice; without one of the two the other first."""
        first = self.context or self.question
        second = f"{self.question} " if self.context and self.question else ""
        return [PairExample(first, second + choice, None, self.where) for choice in self.choices]


def read_choices(path: Path, bad: BadLines, labelled: bool = True) -> list[ChoiceExample]:
    """The questions of a file: TSV or CSV whose first line names the columns, or JSON lines, each also in gzip.

    Args:
        bad: where bad lines go: no context and no question, fewer than two choices, an empty one between others, no answer or one
            that is none of the choices.
        labelled: whether answers are read, and a line without one is bad.

    Raises:
        DataError: the file is of another kind, cannot be read, lacks a column, or has a bad line that is not to be skipped.
    """

    def check(where: str, names: list[str]) -> None:
        for alternatives in ((*_CONTEXT, *_QUESTION), ("ending0",), ("ending1",), _ANSWER if labelled else ()):
            if alternatives and not set(alternatives) & set(names):
                raise no_column(
                    where, "column ", alternatives[0], names, f"A table of choices has {_SHAPE.split(', or ')[1]}"
                )

    examples = []
    for where, item in read_items(path, bad, check):
        example = _example(where, item, labelled)
        if isinstance(example, ChoiceExample):
            examples.append(example)
        else:
            bad.report(where, *example)
    if not examples:
        raise DataError(f"{path}: no usable line{f'; {bad.summary()}' if bad else ''}; a line has {_SHAPE}")
    return examples


def _example(where: str, item: dict[str, Any], labelled: bool) -> ChoiceExample | tuple[str, str]:
    """A row as an example, or why it is none, as `BadLines.report` takes it."""
    context, question = (_first(item, names) for names in (_CONTEXT, _QUESTION))
    for name, text in (context, question):
        if not isinstance(text, (str, type(None))):
            return f"no text in {name}", cell_problem(item, name)
    if not any(isinstance(text, str) and text.strip() for _, text in (context, question)):
        return "no context and no question", cell_problem(item, context[0])
    choices = _choices(item)
    if not isinstance(choices, list):
        return choices
    texts = [text if isinstance(text, str) and text.strip() else "" for _, text in (context, question)]
    if wrong := text_fault(*texts, *choices):
        return wrong
    answer: int | None = None
    if labelled:
        name, value = _first(item, _ANSWER)
        answer = _place(value, choices)
        if answer is None:
            return f"an answer that is none of {len(choices)} choices", f"{name!r} is {_shown(value)}"
    return ChoiceExample(texts[0], texts[1], tuple(choices), answer, where)


def _first(item: dict[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """The first of the names that the row has, and its cell."""
    name = next((name for name in names if name in item), names[0])
    return name, item.get(name)


def _choices(item: dict[str, Any]) -> list[str] | tuple[str, str]:
    name, given = _first(item, _LISTS)
    if given is None:
        name = "ending0"
        given = [item[f"ending{n}"] for n in range(next(n for n in count() if f"ending{n}" not in item))]
        kept = list(
            dropwhile(lambda cell: cell is None or (isinstance(cell, str) and not cell.strip()), reversed(given))
        )
        given = kept[::-1]
    if not isinstance(given, list):
        return "no list of choices", cell_problem(item, name)
    for number, choice in enumerate(given):
        if not isinstance(choice, str) or not choice.strip():
            return "a choice without text", f"number {number} is {described(choice)}"
    if len(given) < 2:
        return "fewer than two choices", f"there are {len(given)}"
    return given


def _place(value: Any, choices: Sequence[str]) -> int | None:
    """The number of the right choice: given as such, as its text, or as a letter from A. None: it is none, or could be two."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < len(choices) else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    named = [place for place, choice in enumerate(choices) if choice.strip() == text]
    if text.isdecimal():
        place = int(text) if int(text) < len(choices) else None
        return place if named in ([], [place]) else None
    if len(named) == 1:
        return named[0]
    letter = ord(text) - ord("A") if len(text) == 1 else -1
    return letter if not named and 0 <= letter < len(choices) else None


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) and value.strip() else described(value)


def choice_features(
    examples: Sequence[ChoiceExample], tokenizer: "Tokenizer", max_length: int
) -> tuple[list[Feature], int]:
    """A feature for each choice of each example, in their order, and how many sequences were cut to `max_length` pieces."""
    sequences = pair_features([pair for example in examples for pair in example.pairs()], tokenizer, max_length)
    return sequences.features, sequences.cut
