"""Token classification: CoNLL and JSONL files to tagged words, words to windows of pieces, logits back to tags and entities.

The first piece of a word carries its tag, all others -100. A sentence longer than a window is read in overlapping windows, and each
word is learnt and predicted once, in the window where it has most context around it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bertfast.tasks.entities import entities, split_tag
from bertfast.tasks.features import Feature, assemble
from bertfast.tasks.lines import BadLines, DataError, text_lines
from bertfast.tasks.qa import window_bounds

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Encoding, Tokenizer

IGNORED = -100


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
    """

    text: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...] | None
    where: str
    marked: tuple[Span, ...] | None = None
    is_text: bool = False


def from_words(words: Sequence[str], tags: Sequence[str] | None, where: str) -> TokenExample:
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    return TokenExample(" ".join(words), tuple(words), tuple(spans), None if tags is None else tuple(tags), where)


def _conll(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    """word<TAB>tag or columns parted by spaces (first: word, last: tag), a blank line after a sentence; -DOCSTART- is passed over."""
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
    return _tag_problem(tag) if labelled else None


def _tag_problem(tag: str) -> tuple[str, str] | None:
    try:
        split_tag(tag)
    except ValueError as error:
        return "a tag of no known scheme", str(error)
    return None


def _jsonl(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    for where, line in text_lines(path, bad):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            example = _object(item, where, labelled)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            bad.report(where, "text that is no example", f"{type(error).__name__}: {error}")
            continue
        yield example


def _object(item: dict[str, Any], where: str, labelled: bool) -> TokenExample:
    """{"tokens": [...], "tags": [...]} or {"text": ..., "entities": [{"start", "end", "label"}]}; raises ValueError and its like."""
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
        marked = tuple(sorted((Span(e["start"], e["end"], e["label"]) for e in item["entities"]), key=lambda s: s.start))
        for span in marked:
            if not 0 <= span.start < span.end <= len(text) or not span.label:
                raise ValueError(f"the entity {span.label!r} at {span.start}..{span.end} is not within the text")
        if any(a.end > b.start for a, b in zip(marked, marked[1:], strict=False)):
            raise ValueError("entities overlap, which tags cannot say")
    return TokenExample(text, (), (), None, where, marked, is_text=True)


def _plain(path: Path, bad: BadLines, labelled: bool) -> Iterator[TokenExample]:
    for where, line in text_lines(path, bad):
        if line.strip():
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


def split_words(examples: Sequence[TokenExample], tokenizer: "Tokenizer", bad: BadLines) -> list[TokenExample]:
    """Examples that are text become words, as the tokenizer parts it, with IOB2 tags of the entities marked in it.

    An entity that begins or ends within a word is bad; skipped, it grows to the whole words that it touches.
    """
    texts = [example.text for example in examples if example.is_text]
    encoded = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    return [_split(e, encoded[e.text], bad) if e.is_text else e for e in examples]


def _split(example: TokenExample, encoding: "Encoding", bad: BadLines) -> TokenExample:
    spans: list[tuple[int, int]] = []
    for word, (start, end) in zip(_numbered(encoding.words), encoding.offsets, strict=True):
        if word < len(spans):
            spans[word] = (spans[word][0], end)
        else:
            spans.append((start, end))
    tags = ["O"] * len(spans)
    for mark in example.marked or ():
        inside = [i for i, (start, end) in enumerate(spans) if start < mark.end and end > mark.start]
        if not inside or spans[inside[0]][0] != mark.start or spans[inside[-1]][1] != mark.end:
            what = f"{example.text[mark.start : mark.end]!r} at {mark.start}..{mark.end}"
            bad.report(example.where, "an entity that does not end where words do", what)
        for order, index in enumerate(inside):
            tags[index] = f"{'I' if order else 'B'}-{mark.label}"
    words = tuple(example.text[start:end] for start, end in spans)
    known = None if example.marked is None else tuple(tags)
    return replace(example, words=words, spans=tuple(spans), tags=known)


def discover_tags(examples: Iterable[TokenExample]) -> list[str]:
    """All tags, sorted, with an I- for every B- (a short file may lack some) and with O."""
    found = {tag for example in examples for tag in example.tags or ()} | {"O"}
    return sorted(found | {"I" + tag[1:] for tag in found if tag.startswith("B")})


@dataclass(frozen=True)
class TokenWindow:
    """A feature, and the words of its example that are predicted here: (word, position in the feature) pairs."""

    feature: Feature
    example: int
    owned: list[tuple[int, int]]


def token_features(
    examples: Sequence[TokenExample],
    tokenizer: "Tokenizer",
    *,
    max_length: int = 256,
    stride: int = 128,
    tags: Sequence[str] | None = None,
) -> list[TokenWindow]:
    """Sentences of words as [CLS] pieces [SEP], in several windows where they have more than `max_length` pieces.

    Args:
        stride: pieces between the starts of two windows.
        tags: the names of the classes; the features then have `labels`, int64 [L]. None for prediction.

    Raises:
        ValueError: the lengths are too small, or an example has a tag that is none of `tags`.
    """
    if max_length < 3 or stride < 1:
        raise ValueError(f"max_length {max_length} and stride {stride}: at least 3 and 1")
    numbers = {tag: index for index, tag in enumerate(tags or ())}
    windows = []
    for index, example in enumerate(examples):
        ids, words = _pieces(example, tokenizer)
        bounds = window_bounds(len(ids), max_length - 2, stride)
        for (begin, end), owned in zip(bounds, _owned(words, bounds), strict=True):
            feature = assemble(tokenizer, ids[begin:end])
            if tags is not None:
                feature = replace(feature, labels={"labels": _targets(example, owned, len(feature), numbers)})
            windows.append(TokenWindow(feature, index, owned))
    return windows


def _pieces(example: TokenExample, tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """Ids, and the word of each. Text is encoded whole: MeCab may part one of its words otherwise when it stands alone."""
    if not example.is_text:
        encoding = tokenizer.encode_words(list(example.words))
        return encoding.ids, encoding.words
    encoding = tokenizer.encode(example.text)
    return encoding.ids, _numbered(encoding.words)


def _numbered(words: Sequence[int]) -> list[int]:
    """Word numbers that count those words alone that have a piece."""
    order = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return [order[word] for word in words]


def _owned(words: Sequence[int], bounds: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """For each window the (word, position) of the first pieces that it has more context around than any other has."""
    owned: list[list[tuple[int, int]]] = [[] for _ in bounds]
    before = -1
    for place, word in enumerate(words):
        if word != before:
            room = [min(place - begin, end - 1 - place) for begin, end in bounds]
            best = room.index(max(room))
            owned[best].append((word, place - bounds[best][0] + 1))
        before = word
    return owned


def _targets(
    example: TokenExample, owned: Sequence[tuple[int, int]], length: int, numbers: dict[str, int]
) -> NDArray[np.int64]:
    labels = np.full(length, IGNORED, dtype=np.int64)
    for word, place in owned:
        tag = (example.tags or ())[word]
        if tag not in numbers:
            raise DataError(f"{example.where}: the tag {tag} is none of {', '.join(numbers)}")
        labels[place] = numbers[tag]
    return labels


def predict_tags(
    examples: Sequence[TokenExample], windows: Sequence[TokenWindow], classes: Sequence[NDArray[np.integer]], tags: Sequence[str]
) -> list[list[str]]:
    """The tag of every word of every example; O for a word that has no piece.

    Args:
        classes: the best class at each token of each window, int [L].
    """
    found = [["O"] * len(example.words) for example in examples]
    for window, best in zip(windows, classes, strict=True):
        for word, place in window.owned:
            found[window.example][word] = tags[best[place]]
    return found


def marked_entities(example: TokenExample, tags: Sequence[str]) -> list[dict[str, Any]]:
    """Entities as JSON has them, with characters of `example.text`."""
    return [
        {
            "start": example.spans[first][0],
            "end": example.spans[last - 1][1],
            "label": kind,
            "text": example.text[example.spans[first][0] : example.spans[last - 1][1]],
        }
        for kind, first, last in entities(tags)
    ]
