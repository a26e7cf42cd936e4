"""The counter scheme: published vectors of Philox, NumPy and C++ alike, even draws, streams that do not meet."""

import numpy as np
import pytest

from bertfast.data.random import Purpose, Stream, below, permutation, philox, threshold, words, words_reference

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "seed", "expected"),
    [
        # Random123's kat_vectors, philox4x32 with 10 rounds.
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, seed, expected):
    assert tuple(philox(seed, *map(np.array, counter)).tolist()) == expected


@pytest.mark.usefixtures("needs_extension")
def test_cpp_equals_numpy():
    for seed, epoch, purpose, sample, count in [
        (0, 0, 0, 0, 1), (2**64 - 1, ONES, 5, ONES, 1001), (12345678901234567890, 3, 2, 77, 64), (1, 1, 1, 1, 0),
    ]:  # fmt: skip
        got = words(seed, epoch, purpose, sample, count)
        assert got.dtype == np.uint32
        assert np.array_equal(got, words_reference(seed, epoch, purpose, sample, 0, count))


def test_stream_reads_the_same_words():
    stream = Stream(9, 8, Purpose.PAIRS, 7, ordinal=6)
    assert [stream.word() for _ in range(150)] == words_reference(9, 8, Purpose.PAIRS, 7, 6, 150).tolist()
    stream = Stream(9, 8, Purpose.PAIRS, 7)
    assert [stream.below(10) for _ in range(5)] == below(words(9, 8, Purpose.PAIRS, 7, 5), 10).tolist()


def test_every_part_of_the_name_matters():
    name = (1, 2, 3, 4, 5)
    names = [name] + [tuple(part + (at == i) for i, part in enumerate(name)) for at in range(5)]
    drawn = {tuple(words_reference(*each, count=4).tolist()) for each in [*names, (1 + 2**32, 2, 3, 4, 5)]}
    assert len(drawn) == 7


def test_bounded_integers_are_even():
    counts = np.bincount(below(words(3, 0, 0, 0, 100_000), 7), minlength=7)
    expected = 100_000 / 7
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # chi-square, 6 degrees of freedom, p = 0.001
    assert below(np.array([0, ONES], np.uint32), ONES).tolist() == [0, ONES - 1]


def test_permutation_is_one_and_moves_everything():
    for n in (0, 1, 2, 1000):
        assert sorted(permutation(n, 5, 0, Purpose.SAMPLES)) == list(range(n))
    one, other = permutation(1000, 5, 0, Purpose.SAMPLES), permutation(1000, 5, 1, Purpose.SAMPLES)
    assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
    firsts = np.bincount([permutation(4, seed, 0, 0)[0] for seed in range(400)], minlength=4)
    assert ((firsts - 100) ** 2 / 100).sum() < 16.3  # 3 degrees of freedom, p = 0.001


def test_threshold():
    assert (threshold(0.0), threshold(0.5), threshold(1.0)) == (0, 2**31, 2**32)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        threshold(1.5)
