"""What a model reads of one example: [CLS] A [SEP] or [CLS] A [SEP] B [SEP], with segments and with the labels of its task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Feature:
    """One sequence.

    ids, type_ids: int64 [L], special tokens included; segment 0 up to and with the first [SEP], 1 after it.
    labels: keyword arguments of the model's forward; a number is one label of the sequence, an array [L] one of each token.
    """

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    labels: dict[str, int | float | NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Group:
    """Sequences that are judged together, such as the choices of one question: they are in one batch, and count as one there.

    The model is given `groups`, the number of the group that each sequence of the batch is of.
    """

    members: tuple[Feature, ...]

    def __len__(self) -> int:
        return sum(map(len, self.members))


def assemble(tokenizer: "Tokenizer", first: Sequence[int], second: Sequence[int] | None = None) -> Feature:
    """A Feature without labels of pieces that have no special tokens yet."""
    head = [tokenizer.cls_id, *first, tokenizer.sep_id]
    tail = [] if second is None else [*second, tokenizer.sep_id]
    return Feature(
        np.asarray(head + tail, dtype=np.int64),
        np.repeat(np.asarray([0, 1], dtype=np.int64), [len(head), len(tail)]),
    )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many pieces of two segments to keep so that both fit `room`, cutting the longer one first.

    Where both must be cut an odd piece goes to the longer (the second, if equal): what `tokenizers` does.
    """
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if first > second else (short, long)


def window_bounds(pieces: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first, after the last) piece of each window over a text; one window, empty, for an empty text."""
    bounds = [(0, min(room, pieces))]
    while bounds[-1][1] < pieces:
        begin = bounds[-1][0] + min(stride, room)
        bounds.append((begin, min(begin + room, pieces)))
    return bounds
