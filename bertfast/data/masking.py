"""Masked-word targets: which tokens of a sample are predicted, and what stands in their place.

Of n tokens, special ones counted as Google's create_pretraining_data.py counts them, min(max_predictions, max(1, round(mask_prob *
n))) are chosen, never [CLS], [SEP] or [PAD]; of the chosen 80 % become [MASK], 10 % a random piece that is not special, 10 % stay.
With `whole_word` the pieces of one word (a piece and the continuations that follow it at once) are chosen together, or passed over
where they would exceed the number.

A sample draws from the streams (seed, epoch, MASKS, document, ordinal), a word for each step of a Fisher-Yates shuffle of its
words' order, and REPLACEMENTS, two words for each chosen token in rising order: what becomes of it, and the random piece.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertfast import _ext
from bertfast.data.random import Purpose, below, philox, threshold

IGNORED = -100  # the label of a token that is not predicted
_SHORTEST = 3  # tokens of a sample at least: [CLS], a piece, [SEP]


@dataclass(frozen=True)
class Vocabulary:
    """What batches need to know of a tokenizer.

    Attributes:
        vocab_size: ids are below this.
        cls_id, sep_id, pad_id, mask_id: ids of special pieces.
        continuation: [vocab_size] bool, pieces that continue a word ("##").
        special: [vocab_size] bool, pieces that are never a random replacement.
        user_special: those of them that a user added, which are never predicted either; None for none.
    """

    vocab_size: int
    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    continuation: NDArray[np.bool_]
    special: NDArray[np.bool_]
    user_special: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """From anything with these attributes, such as a Tokenizer."""
        fields = {name: getattr(tokenizer, name) for name in cls.__dataclass_fields__ if name != "user_special"}
        return cls(**fields, user_special=getattr(tokenizer, "user_special", None))

    def __post_init__(self) -> None:
        for name in ("cls_id", "sep_id", "pad_id", "mask_id"):
            value = getattr(self, name)
            if value is None or not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"vocabulary: {name} is {value}, not among the {self.vocab_size} ids; pre-training needs all of them"
                )
        for name in ("continuation", "special", "user_special"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != (self.vocab_size,):
                raise ValueError(f"vocabulary: {name} is {np.shape(value)}, not [{self.vocab_size}]")
        if np.all(self.special):
            raise ValueError("vocabulary: every piece is special, so that there is none to replace one by")


@dataclass(frozen=True)
class MaskOptions:
    """How many tokens are predicted, and what becomes of them; the rest of the chosen stays as it is.

    Attributes:
        mask_prob: the share of tokens that are predicted.
        max_predictions: of one sample at most; None for no bound.
        mask_share, random_share: of the chosen, those that become [MASK] and those that become a random piece.
        whole_word: whether the pieces of a word are chosen together.
    """

    mask_prob: float = 0.15
    max_predictions: int | None = None
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_word: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_prob <= 1.0:
            raise ValueError(f"mask_prob={self.mask_prob}: it must be above 0 and at most 1; 0.15 is usual")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"max_predictions={self.max_predictions}: it must be at least 1, or None for no bound")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"mask_share={self.mask_share} and random_share={self.random_share}: both are shares of one whole"
            )

    def predictions(self, length: int) -> int:
        """How many of a sample's tokens are to be predicted."""
        wanted = max(1, round(self.mask_prob * length))
        return wanted if self.max_predictions is None else min(self.max_predictions, wanted)


class Masker:
    """The masking rule as tables, the same for NumPy and C++.

    Attributes:
        predictions: [max_seq_length + 1] int64, tokens to predict by a sample's length.
        fixed: [vocab_size] uint8, 1 for ids that are never chosen.
        joined: [vocab_size] uint8, 1 for ids that belong to the word of the token before; all 0 without whole_word.
        replacements: [pieces] int64, ids that a random piece is drawn from.
        mask_below, random_below: a word below the first makes [MASK], below the second a random piece.
    """

    def __init__(self, vocabulary: Vocabulary, options: MaskOptions, max_seq_length: int):
        self.vocabulary, self.options = vocabulary, options
        self.predictions = np.array([options.predictions(n) for n in range(max_seq_length + 1)], dtype=np.int64)
        self.fixed = np.zeros(vocabulary.vocab_size, dtype=np.uint8)
        self.fixed[[vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id]] = 1
        if vocabulary.user_special is not None:
            self.fixed[vocabulary.user_special] = 1
        self.joined = np.asarray(vocabulary.continuation, dtype=np.uint8) * np.uint8(options.whole_word)
        self.replacements = np.flatnonzero(~np.asarray(vocabulary.special, dtype=bool)).astype(np.int64)
        self.mask_below = threshold(options.mask_share)
        self.random_below = threshold(min(1.0, options.mask_share + options.random_share))

    def most_predictions(self, tokens: int, sequences: int) -> int:
        """A bound on the predictions of any batch of so many tokens in so many samples of three tokens or more."""
        lengths = np.arange(len(self.predictions))
        excess = float((self.predictions - self.options.mask_prob * lengths)[_SHORTEST:].max())
        return int(np.ceil(self.options.mask_prob * tokens + sequences * max(0.0, excess)))

    @cached_property
    def native(self) -> Any:
        """The same rule in C++, or None without the extension."""
        extension = _ext.load()
        if extension is None:
            return None
        vocabulary = self.vocabulary
        special = (vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id, vocabulary.mask_id)
        tables = (self.predictions, self.fixed, self.joined, self.replacements)
        return extension.DataMasker(*tables, special, self.mask_below, self.random_below)


def mask_tokens(
    ids: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    samples: NDArray[np.int64],
    masker: Masker,
    seed: int,
    epoch: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Masks packed samples in place.

    Args:
        ids: [T] int64, written to.
        cu_seqlens: [N + 1] int32, where each sample begins.
        samples: [N, 2] int64, what names each sample: (document, ordinal).

    Returns:
        labels [T] int64, the piece that was there or -100; positions [M] int64 of the labels, rising.

    Raises:
        IndexError: for an id outside the vocabulary, or a sample outside `ids`.
        ValueError: for a sample that is longer than the masker's max_seq_length.
    """
    check_masking(ids, cu_seqlens, masker)
    if masker.native is not None:
        return masker.native.mask(ids, cu_seqlens, samples, seed, epoch)
    return mask_tokens_reference(ids, cu_seqlens, samples, masker, seed, epoch)


def mask_tokens_reference(
    ids: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    samples: NDArray[np.int64],
    masker: Masker,
    seed: int,
    epoch: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`mask_tokens` in NumPy, without its checks."""
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    chosen = _choose(ids, cu_seqlens.tolist(), samples, masker, seed, epoch)
    count = max((len(positions) for positions in chosen), default=0)
    drawn = _sample_words(Purpose.REPLACEMENTS, samples, 2 * count, seed, epoch)
    for positions, words in zip(chosen, drawn, strict=True):
        at = np.array(sorted(positions), dtype=np.int64)
        kind, piece = words[0 : 2 * len(at) : 2], words[1 : 2 * len(at) : 2]
        labels[at] = ids[at]
        random = masker.replacements[below(piece, len(masker.replacements))]
        other = np.where(kind < masker.random_below, random, ids[at])
        ids[at] = np.where(kind < masker.mask_below, masker.vocabulary.mask_id, other)
    return labels, np.flatnonzero(labels != IGNORED).astype(np.int64)


def check_masking(ids: NDArray[np.int64], cu_seqlens: NDArray[np.int32], masker: Masker) -> None:
    """IndexError or ValueError as `mask_tokens` says."""
    lengths = np.diff(cu_seqlens)
    if len(cu_seqlens) < 1 or cu_seqlens[0] != 0 or (lengths < 0).any() or cu_seqlens[-1] > len(ids):
        raise IndexError(f"masking: cu_seqlens must rise from 0 to at most the {len(ids)} tokens")
    if len(lengths) and lengths.max() >= len(masker.predictions):
        raise ValueError(
            f"masking: a sample has {lengths.max()} tokens, the masker was made for {len(masker.predictions) - 1}"
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(masker.fixed):
        wrong = int(((ids < 0) | (ids >= len(masker.fixed))).argmax())
        raise IndexError(
            f"masking: id {ids[wrong]} at position {wrong} is not in the vocabulary of {len(masker.fixed)} pieces; use the "
            "tokenizer that the corpus was built with"
        )


def _sample_words(
    purpose: Purpose, samples: NDArray[np.int64], count: int, seed: int, epoch: int
) -> NDArray[np.uint32]:
    """The first words [samples, count, rounded up to 4] of each sample's stream."""
    blocks = np.arange((count + 3) // 4)[None, :]
    kinds = samples[:, 1, None] << 8 | int(purpose)
    return philox(seed, blocks, kinds, samples[:, 0, None], np.array(epoch)).reshape(len(samples), 4 * blocks.size)


def _choose(
    ids: NDArray[np.int64], bounds: list[int], samples: NDArray[np.int64], masker: Masker, seed: int, epoch: int
) -> list[list[int]]:
    """Positions of each sample's chosen tokens, in the order of choosing."""
    free, joined = masker.fixed[ids] == 0, masker.joined[ids] == 1
    begins = free.copy()  # the token begins a word: it continues none, or what it would continue is special
    begins[1:] &= ~(joined[1:] & free[:-1])
    first = [a for a, b in pairwise(bounds) if a < b]
    begins[first] = free[first]
    words = [np.flatnonzero(begins[a:b]) + a for a, b in pairwise(bounds)]
    drawn = _sample_words(Purpose.MASKS, samples, max(map(len, words), default=0), seed, epoch)
    chosen: list[list[int]] = []
    for starts, steps, end in zip(words, drawn, bounds[1:], strict=True):
        length = end - bounds[len(chosen)]
        swap = (below(steps[: len(starts)], len(starts) - np.arange(len(starts))) + np.arange(len(starts))).tolist()
        order, wanted = starts.tolist(), int(masker.predictions[length])
        taken: list[int] = []
        for step, other in enumerate(swap):
            order[step], order[other] = order[other], order[step]
            word_end = order[step] + 1
            while word_end < end and free[word_end] and not begins[word_end]:
                word_end += 1
            if len(taken) + word_end - order[step] <= wanted:
                taken.extend(range(order[step], word_end))
            if len(taken) == wanted:
                break
        chosen.append(taken)
    return chosen
