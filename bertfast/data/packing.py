"""Which samples stand in one batch: packed ones of a fixed number of tokens, padded ones of like length.

Packed batches are best-fit: each sample goes into the fullest batch that still has room for it, the earliest of equals, and into a
new one where there is none (Johnson, "Near-optimal bin packing algorithms", 1973). The order in which samples are placed is the
caller's: shuffled samples give every batch the same mixture of lengths and fill batches of many samples; the longest first
(best-fit decreasing) fills batches of few.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bertfast import _ext


def longest_first(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of best-fit decreasing: rising indices among equal lengths."""
    return np.argsort(-lengths, kind="stable").astype(np.int64)


def of_like_length(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """The indices [B] int64 of each padded batch: all samples, longest first (a batch too large for the memory is then the first),
    in batches of at most `budget` tokens, padding included; a sample longer than that is a batch of its own.

    lengths: [samples] int64, tokens of each sample; one of none takes a token of padding.
    """
    order = longest_first(lengths)
    at = 0
    while at < len(order):
        count = max(1, budget // max(1, int(lengths[order[at]])))
        yield order[at : at + count]
        at += count


def best_fit(
    lengths: NDArray[np.int64], order: NDArray[np.int64], budget: int, max_sequences: int
) -> NDArray[np.int64]:
    """The batch [samples] int64 that each sample goes into; batches are numbered as they are opened.

    Args:
        lengths: [samples] int64, tokens of each sample.
        order: [samples] int64, a permutation: the order of placing.
        budget: the tokens that a batch holds.
        max_sequences: the samples that a batch holds.

    Raises:
        ValueError: where a sample is empty or longer than the budget.
    """
    lengths = np.ascontiguousarray(lengths, dtype=np.int64)
    order = np.ascontiguousarray(order, dtype=np.int64)
    if max_sequences < 1:
        raise ValueError(f"a batch must hold at least 1 sample, got max_sequences={max_sequences}")
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= budget:
        raise ValueError(
            f"samples have {int(lengths.min())} to {int(lengths.max())} tokens, a batch of {budget} takes 1 to {budget}"
        )
    extension = _ext.load()
    function = best_fit_reference if extension is None else extension.data_best_fit
    return function(lengths, order, budget, max_sequences)


def best_fit_reference(
    lengths: NDArray[np.int64], order: NDArray[np.int64], budget: int, max_sequences: int
) -> NDArray[np.int64]:
    """`best_fit` in Python, without its checks."""
    batch_of = np.empty(len(lengths), dtype=np.int64)
    open_batches: list[tuple[int, int]] = []  # (room left, batch), rising
    counts: list[int] = []
    for sample, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        at = bisect_left(open_batches, (length, -1))
        if at < len(open_batches):
            room, batch = open_batches.pop(at)
        else:
            room, batch = budget, len(counts)
            counts.append(0)
        batch_of[sample] = batch
        counts[batch] += 1
        if room > length and counts[batch] < max_sequences:
            insort(open_batches, (room - length, batch))
    return batch_of
