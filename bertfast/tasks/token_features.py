"""Sentences of words to windows of pieces, and the classes of pieces back to tags and entities.

The first piece of a word carries its tag, all others -100. A sentence longer than a window is read in overlapping windows, and each
word is learnt and predicted once, in the window where it has most context around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bertfast.data.batches import IGNORED
from bertfast.tasks.entities import entities
from bertfast.tasks.features import Feature, assemble, window_bounds
from bertfast.tasks.lines import SHOWN, DataError
from bertfast.tasks.token import TokenExample

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Encoding, Tokenizer


def split_words(examples: Sequence[TokenExample], tokenizer: "Tokenizer") -> list[TokenExample]:
    """Examples that are text become words, as the tokenizer parts it, with IOB2 tags of the entities marked in it.

    An entity that begins or ends within a word has no tags, and is in the example's `unsaid`.
    """
    texts = [example.text for example in examples if example.is_text]
    encoded = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    return [_split(e, encoded[e.text]) if e.is_text else e for e in examples]


def _split(example: TokenExample, encoding: "Encoding") -> TokenExample:
    spans: list[tuple[int, int]] = []
    for word, (start, end) in zip(_numbered(encoding.words), encoding.offsets, strict=True):
        if word < len(spans):
            spans[word] = (spans[word][0], end)
        else:
            spans.append((start, end))
    tags = ["O"] * len(spans)
    unsaid = []
    for mark in example.marked or ():
        inside = [i for i, (start, end) in enumerate(spans) if start < mark.end and end > mark.start]
        if not inside or spans[inside[0]][0] != mark.start or spans[inside[-1]][1] != mark.end:
            unsaid.append(mark)
            continue
        for order, index in enumerate(inside):
            tags[index] = f"{'I' if order else 'B'}-{mark.label}"
    words = tuple(example.text[start:end] for start, end in spans)
    known = None if example.marked is None else tuple(tags)
    return replace(example, words=words, spans=tuple(spans), tags=known, unsaid=tuple(unsaid))


def unsaid_note(examples: Sequence[TokenExample]) -> str:
    """How many of the marked entities no tags can say, and the first few of them; empty where there are none."""
    marked = sum(len(example.marked or ()) for example in examples)
    lost = [(example, mark) for example in examples for mark in example.unsaid]
    if not lost:
        return ""
    named = [f"{e.where}: {e.text[m.start : m.end]!r} at {m.start}..{m.end}" for e, m in lost[:SHOWN]]
    more = f"; and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    return (
        f"{len(lost)} of {marked} entities begin or end within a word of the tokenizer, which tags of words cannot say: they are "
        f"not learnt, and where they are scored they count as missed; {'; '.join(named)}{more}"
    )


@dataclass(frozen=True)
class TokenWindow:
    """A feature, and the words of its example that are predicted here: (word, position in the feature) pairs."""

    feature: Feature
    example: int
    owned: list[tuple[int, int]]


def unread_words(examples: Sequence[TokenExample], windows: Sequence[TokenWindow]) -> list[tuple[str, str]]:
    """Words that no window has: (place, word) of those that leave no piece of the vocabulary."""
    read: list[set[int]] = [set() for _ in examples]
    for window in windows:
        read[window.example].update(word for word, _ in window.owned)
    return [
        (example.where, word)
        for example, known in zip(examples, read, strict=True)
        for i, word in enumerate(example.words)
        if i not in known
    ]


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
        DataError: the lengths are too small, or an example has a tag that is none of `tags`.
    """
    if max_length < 3 or stride < 1:
        raise DataError(f"max_length {max_length} and stride {stride}: at least 3 and 1")
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
    examples: Sequence[TokenExample],
    windows: Sequence[TokenWindow],
    classes: Sequence[NDArray[np.integer]],
    tags: Sequence[str],
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
