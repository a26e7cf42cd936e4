"""Token classification: CoNLL and JSONL files to sentences of tagged words, or to text in which entities are marked."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bertfast.tasks.entities import split_tag
from bertfast.tasks.lines import (
    BadLines,
    DataError,
    Line,
    all_lines,
    cell_problem,
    described,
    file_kind,
    objects,
    text_fault,
    text_lines,
)


@dataclass(frozen=True)
class Span:
    """An entity in a text: characters start..end-1."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class TokenExample:
    """One sentence, as words (with tags where they are known) or as text with entities that `split_words` makes words of.

    spans: characters of each word in `text`; where the file gives words, `text` is these joined by spaces.
    unsaid: those of the marked entities that no tags of these words can say.
    """

    text: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...] | None
    where: str
    marked: tuple[Span, ...] | None = None
    is_text: bool = False
    unsaid: tuple[Span, ...] = ()


def from_words(words: Sequence[str], tags: Sequence[str] | None, where: str) -> TokenExample:
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    return TokenExample(" ".join(words), tuple(words), tuple(spans), None if tags is None else tuple(tags), where)


class _Sentence:
    """Lines of a column file that are one sentence, with the first thing that is wrong with one of them."""

    def __init__(self) -> None:
        self.where = ""
        self.words: list[str] = []
        self.tags: list[str] = []
        self.wrong: tuple[str, str, str] | None = None

    def add(self, line: Line, wrong: tuple[str, str] | None, word: str = "", tag: str = "") -> None:
        self.where = self.where or line.where
        if wrong is not None and self.wrong is None:
            self.wrong = (line.where, *wrong)
        self.words.append(word)
        self.tags.append(tag)


_SPACES = re.compile("[ \t]+")


def _conll(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    """word<TAB>tag, or columns parted by spaces (first: word, last: tag); a blank line ends a sentence, -DOCSTART- is none.

    The first line says what parts columns and how many there are. A sentence without one of its words would be another sentence, so
    a bad line takes the whole of it with it.
    """
    sentence = _Sentence()
    tabs, columns = False, 0
    for line in [*all_lines(path, bad), Line(f"{path}:end", "")]:
        if line.wrong is not None:
            sentence.add(line, line.wrong)
            continue
        if not line.text.strip() or _SPACES.split(line.text.strip(" \t"))[0] == "-DOCSTART-":
            if sentence.wrong is not None:
                bad.report(*sentence.wrong)
            elif sentence.words:
                yield from_words(sentence.words, sentence.tags if labelled else None, sentence.where)
            sentence = _Sentence()
            continue
        tabs = "\t" in line.text if not columns else tabs
        cells = line.text.split("\t") if tabs else _SPACES.split(line.text.strip(" \t"))
        columns = columns or len(cells)
        tag = cells[-1].strip() if columns > 1 else ""
        sentence.add(line, _line_problem(cells, columns, tag, labelled), cells[0].strip(" "), tag)


def _line_problem(cells: Sequence[str], columns: int, tag: str, labelled: bool) -> tuple[str, str] | None:
    if labelled and columns == 1:
        return "no tag", "there is one column; a line is word<TAB>tag, or columns parted by spaces"
    if len(cells) != columns:
        return "another number of columns", f"{len(cells)} instead of the {columns} of the first line"
    word = cells[0].strip(" ")
    if not word.strip():
        return "no word before the tag", ""
    if word.split() != [word]:
        return "white space within a word", f"{word!r}; a line has one word (JSONL's tokens may have white space)"
    return _tag_problem(tag) if labelled else None


def _tag_problem(tag: str) -> tuple[str, str] | None:
    try:
        split_tag(tag)
    except ValueError as error:
        return "a tag of no known scheme", str(error)
    return None


_SHAPE = 'a line is {"tokens": [...], "tags": [...]} or {"text": "...", "entities": [{"start", "end", "label"}]}'


def _jsonl(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    for where, item in objects(path, bad):
        try:
            example = _words(item, where, labelled) if "tokens" in item else _marked_text(item, where, labelled)
        except ValueError as error:
            bad.report(where, "text that is no example", str(error))
            continue
        labels = [*(example.tags or ()), *(span.label for span in example.marked or ())]
        if wrong := text_fault(example.text, *labels):
            bad.report(where, *wrong)
            continue
        yield example


def _value(item: dict[str, Any], name: str, kind: type, owner: str = "") -> Any:
    """The value of a key, of this type. ValueError where it is not: true is no number, and text and lists are not empty."""
    of = f" of {owner}" if owner else ""
    if name not in item:
        raise ValueError(f"{cell_problem(item, name)}{of}; {_SHAPE}")
    value = item[name]
    if type(value) is not kind:
        raise ValueError(f"'{name}'{of} is {described(value)}; {_SHAPE}")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"'{name}'{of} is empty")
    return value


def _words(item: dict[str, Any], where: str, labelled: bool) -> TokenExample:
    """Of {"tokens": [...], "tags": [...]}."""
    words = _value(item, "tokens", list)
    if not words:
        raise ValueError("'tokens' is empty")
    tags = _value(item, "tags", list) if labelled else None
    for name, values in (("token", words), ("tag", tags or ())):
        for number, value in enumerate(values, 1):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} {number} is {described(value)}; each is text that is not empty")
    if tags is not None:
        if len(words) != len(tags):
            raise ValueError(f"{len(words)} tokens and {len(tags)} tags")
        for tag in tags:
            split_tag(tag)
    return from_words(words, tags, where)


def _marked_text(item: dict[str, Any], where: str, labelled: bool) -> TokenExample:
    """Of {"text": ..., "entities": [{"start", "end", "label"}]}."""
    text = _value(item, "text", str)
    marked = None
    if labelled:
        entities = _value(item, "entities", list)
        spans = [_span(entity, f"entity {number}", len(text)) for number, entity in enumerate(entities, 1)]
        marked = tuple(sorted(spans, key=lambda span: span.start))
        if any(a.end > b.start for a, b in pairwise(marked)):
            raise ValueError("entities overlap, which tags cannot say")
    return TokenExample(text, (), (), None, where, marked, is_text=True)


def _span(entity: Any, name: str, length: int) -> Span:
    if not isinstance(entity, dict):
        raise ValueError(f"{name} is {described(entity)}; {_SHAPE}")
    start, end = _value(entity, "start", int, name), _value(entity, "end", int, name)
    label = _value(entity, "label", str, name)
    if not 0 <= start < end <= length:
        raise ValueError(f"{name} ({label!r} at {start}..{end}) is not within the text")
    return Span(start, end, label)


def _plain(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    for where, line in text_lines(path, bad):
        yield TokenExample(line, (), (), None, where, is_text=True)


_READERS: dict[str, Callable[[Path, BadLines, bool], Iterator[TokenExample]]] = {
    ".conll": _conll,
    ".tsv": _conll,
    ".txt": _conll,
    ".bio": _conll,
    ".iob2": _conll,
    ".jsonl": _jsonl,
    ".json": _jsonl,
}


def read_tokens(path: Path, bad: BadLines, labelled: bool = True) -> list[TokenExample]:
    """The sentences of a CoNLL (.conll, .tsv, .txt, .bio, .iob2) or JSONL (.jsonl, .json) file.

    Args:
        bad: where bad lines go; in CoNLL a bad line takes its whole sentence with it.
        labelled: whether tags (or entities) are read and demanded; without, .txt is plain text, one sentence a line.

    Raises:
        DataError: the file is of another kind, cannot be read, has no sentence, or has a bad line that is not to be skipped.
    """
    readers = _READERS if labelled else _READERS | {".txt": _plain}
    kind = file_kind(path)
    if kind not in readers:
        raise DataError(f"{path}: files end in {', '.join(readers)}, each also in .gz")
    examples = list(readers[kind](path, bad, labelled))
    if not examples:
        raise DataError(f"{path}: no usable sentence{'; ' + bad.summary() if bad else ''}")
    return examples


def discover_tags(examples: Iterable[TokenExample]) -> list[str]:
    """All tags, sorted, with an I- for every B- (a short file may lack some) and with O."""
    found = {tag for example in examples for tag in example.tags or ()} | {"O"}
    return sorted(found | {"I" + tag[1:] for tag in found if tag.startswith("B")})
