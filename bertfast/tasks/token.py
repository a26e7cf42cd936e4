"""Token classification: CoNLL and JSONL files to sentences of tagged words, or to text in which entities are marked."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bertfast.tasks.entities import split_tag
from bertfast.tasks.lines import BadLines, DataError, text_fault, text_lines


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


def _conll(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    """word<TAB>tag, or columns parted by spaces (first: word, last: tag); a blank line ends a sentence, -DOCSTART- is none."""
    words: list[str] = []
    tags: list[str] = []
    start, broken = "", False
    for where, line in [*text_lines(path, bad), (f"{path}:end", "")]:
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            if words and not broken:
                yield from_words(words, tags if labelled else None, start)
            words, tags, broken = [], [], False
            continue
        start = start if words or broken else where
        tag = cells[-1].strip() if len(cells) > 1 else ""
        problem = _word_problem(cells[0], tag, labelled)
        if problem and not broken:
            # A sentence without one of its words would be another sentence: the whole of it is left out.
            bad.report(where, *problem)
            broken = True
        words.append(cells[0])
        tags.append(tag)


def _word_problem(word: str, tag: str, labelled: bool) -> tuple[str, str] | None:
    if not word.strip():
        return "no word before the tag", ""
    return text_fault(word) or (_tag_problem(tag) if labelled else None)


def _tag_problem(tag: str) -> tuple[str, str] | None:
    try:
        split_tag(tag)
    except ValueError as error:
        return "a tag of no known scheme", str(error)
    return None


_SHAPE = 'a line is {"tokens": [...], "tags": [...]} or {"text": "...", "entities": [{"start", "end", "label"}]}'


def _jsonl(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    for where, line in text_lines(path, bad):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            example = _object(item, where, labelled)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            bad.report(where, "text that is no example", _shape_problem(error))
            continue
        if wrong := text_fault(example.text):
            bad.report(where, *wrong)
            continue
        yield example


def _shape_problem(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    return f"it has no {error}; {_SHAPE}" if isinstance(error, KeyError) else _SHAPE


def _object(item: dict[str, Any], where: str, labelled: bool) -> TokenExample:
    """{"tokens": [...], "tags": [...]} or {"text": ..., "entities": [{"start", "end", "label"}]}; else raises ValueError or so."""
    if "tokens" in item:
        words, tags = item["tokens"], item["tags"] if labelled else None
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError("tokens are a list of words, none of them empty")
        if tags is not None:
            if len(words) != len(tags):
                raise ValueError(f"{len(words)} tokens and {len(tags)} tags")
            for tag in tags:
                split_tag(tag)
        return from_words(words, tags, where)
    text = item["text"]
    if not text.strip():
        raise ValueError("the text is empty")
    marked = None
    if labelled:
        marked = tuple(
            sorted((Span(e["start"], e["end"], e["label"]) for e in item["entities"]), key=lambda s: s.start)
        )
        for span in marked:
            if not 0 <= span.start < span.end <= len(text) or not span.label:
                raise ValueError(f"the entity {span.label!r} at {span.start}..{span.end} is not within the text")
        if any(a.end > b.start for a, b in pairwise(marked)):
            raise ValueError("entities overlap, which tags cannot say")
    return TokenExample(text, (), (), None, where, marked, is_text=True)


def _plain(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    for where, line in text_lines(path, bad):
        if wrong := text_fault(line):
            bad.report(where, *wrong)
        elif line.strip():
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
    if path.suffix not in readers:
        raise DataError(f"{path}: files end in {', '.join(readers)}")
    examples = list(readers[path.suffix](path, bad, labelled))
    if not examples:
        raise DataError(f"{path}: no usable sentence{'; ' + bad.summary() if bad else ', the file is empty'}")
    return examples


def discover_tags(examples: Iterable[TokenExample]) -> list[str]:
    """All tags, sorted, with an I- for every B- (a short file may lack some) and with O."""
    found = {tag for example in examples for tag in example.tags or ()} | {"O"}
    return sorted(found | {"I" + tag[1:] for tag in found if tag.startswith("B")})
