"""Randomness of the data pipeline: Philox 4x32-10 as a pure function of where a draw is used, never of the order of work.

A stream is named by (seed, epoch, purpose, sample, ordinal). Its word number i is word i % 4 of

    philox(key = (seed low, seed high), counter = (i // 4, purpose | ordinal << 8, sample, epoch))

(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). So every worker and rank, and a run that resumes, gets
the same bits from NumPy and from C++ (csrc/data/random.h). An integer below n is `word * n >> 32`, whose bias is at most
n / 2**32 relative: 0.2 % for the documents of Wikipedia, none to speak of elsewhere. "With probability p" is
`word < threshold(p)`.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from bertfast import _ext

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BUFFER = 64  # words that a Stream makes at a time: NumPy's cost is per call

HALF = 1 << 31  # threshold(0.5)


class Purpose(IntEnum):
    """What a stream is for; the numbers are part of the scheme and must stay."""

    DOCUMENTS = 0  # order of documents in an epoch
    PAIRS = 1  # lengths, ends and partners of one document's pairs
    SAMPLES = 2  # order of samples in a block
    MASKS = 3  # which tokens of a sample are predicted
    REPLACEMENTS = 4  # what stands in their place
    BATCHES = 5  # order of batches in a block


def threshold(p: float) -> int:
    """The number that a word is below with probability p.

    Raises:
        ValueError: unless 0 <= p <= 1.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a probability must be in [0, 1], got {p}")
    return round(p * 2**32)


def philox(seed: int, c0: NDArray, c1: NDArray, c2: NDArray, c3: NDArray) -> NDArray[np.uint32]:
    """The four words [..., 4] of each counter (c0, c1, c2, c3): integers below 2**32 that broadcast together."""
    x0, x1, x2, x3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in (c0, c1, c2, c3)))
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            (product1 >> _SHIFT) ^ x1 ^ np.uint64(key0),
            product1 & _MASK,
            (product0 >> _SHIFT) ^ x3 ^ np.uint64(key1),
            product0 & _MASK,
        )
        key0, key1 = (key0 + _WEYL[0]) & 0xFFFFFFFF, (key1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((x0, x1, x2, x3), -1).astype(np.uint32)


def words_reference(
    seed: int, epoch: int, purpose: int, sample: int, ordinal: int, count: int, first: int = 0
) -> NDArray[np.uint32]:
    """Words `first` (a multiple of 4) to `first + count` of one stream, in NumPy."""
    blocks = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    return philox(
        seed, blocks, np.array(purpose | ordinal << 8), np.array(sample), np.array(epoch)
    ).reshape(-1)[:count]  # fmt: skip


def words(seed: int, epoch: int, purpose: int, sample: int, count: int) -> NDArray[np.uint32]:
    """The first `count` words of the stream (seed, epoch, purpose, sample, ordinal 0)."""
    extension = _ext.load()
    if extension is None:
        return words_reference(seed, epoch, purpose, sample, 0, count)
    return extension.data_words(seed, epoch, purpose, sample, count)


def below(drawn: NDArray[np.uint32], n: NDArray | int) -> NDArray[np.int64]:
    """Integers in [0, n) from words, by multiply and shift; n < 2**32 and broadcasts."""
    return (drawn.astype(np.uint64) * np.asarray(n, dtype=np.uint64) >> _SHIFT).astype(np.int64)


def permutation(n: int, seed: int, epoch: int, purpose: int, sample: int = 0) -> NDArray[np.int64]:
    """A permutation of 0..n-1: the order of n 64-bit numbers, each of two words of the stream."""
    pairs = words(seed, epoch, purpose, sample, 2 * n).astype(np.uint64)
    return np.argsort(pairs[0::2] << _SHIFT | pairs[1::2], kind="stable").astype(np.int64)


class Stream:
    """One stream read word after word, for what draws an unknown number of times."""

    def __init__(self, seed: int, epoch: int, purpose: int, sample: int, ordinal: int = 0):
        self._name = (seed, epoch, purpose, sample, ordinal)
        self._made = 0
        self._left: list[int] = []

    def word(self) -> int:
        if not self._left:
            self._left = words_reference(*self._name, count=_BUFFER, first=self._made).tolist()[::-1]
            self._made += _BUFFER
        return self._left.pop()

    def below(self, n: int) -> int:
        """An integer in [0, n), n < 2**32."""
        return self.word() * n >> 32
