"""Text that a tokenizer makes nothing of: pieces that are [UNK], and words or whole texts that leave no piece at all."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertfast.data.remarks import share
from bertfast.tasks.features import Feature

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

_UNKNOWN = 0.05  # of the pieces
_SHOWN = 3


def unknown_note(features: Sequence[Feature], tokenizer: "Tokenizer") -> str:
    """The share of [UNK] among the pieces, special tokens left out; empty where it is small."""
    ids = np.concatenate([feature.ids for feature in features]) if features else np.zeros(0, dtype=np.int64)
    pieces = ids[~np.isin(ids, [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id])]
    unknown = int((pieces == tokenizer.unk_id).sum())
    if unknown <= _UNKNOWN * len(pieces):
        return ""
    return f"{share(unknown, len(pieces))} of the pieces are [UNK], which say nothing: the model's vocabulary is of other text"


def _has_empty_segment(feature: Feature) -> bool:
    """Whether [CLS] and [SEP], or the [SEP] of a second text, have nothing before them."""
    second = int(feature.type_ids.sum())
    return len(feature) - second == 2 or second == 1


def empty_texts_note(features: Sequence[Feature], places: Iterable[str]) -> str:
    """Which texts leave no piece; `places` name the example of each feature."""
    return _named(
        [place for feature, place in zip(features, places, strict=True) if _has_empty_segment(feature)], "texts"
    )


def empty_words_note(words: Iterable[tuple[str, str]]) -> str:
    """Words, as (place, word), that leave no piece and so are neither learnt nor predicted."""
    return _named([f"{place}: {word!r}" for place, word in words], "words")


def _named(places: list[str], what: str) -> str:
    if not places:
        return ""
    more = f"; and {len(places) - _SHOWN:,} more" if len(places) > _SHOWN else ""
    return (
        f"{len(places):,} {what} leave no piece of the vocabulary, and say nothing: {'; '.join(places[:_SHOWN])}{more}"
    )
