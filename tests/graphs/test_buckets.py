"""Sizes of captured calls: little waste, few sizes, and room for every row."""

import pytest

from bertfast.graphs import buckets

COUNTS = range(1, 70_000)


def test_waste_is_at_most_an_eighth():
    for count in COUNTS:
        size = buckets.rows(count)
        assert size >= count
        assert size % 8 == 0
        assert count <= 56 or (size - count) * 8 <= size, count
        assert count > 56 or size - count < 8, count


@pytest.mark.parametrize("size_of", [buckets.rows, buckets.sequences, buckets.longest])
def test_sizes_rise_and_stay(size_of):
    sizes = [size_of(count) for count in COUNTS]
    assert sizes == sorted(sizes)
    assert all(size_of(size) == size for size in set(sizes)), "a bucket's own size is in another bucket"


def test_sizes_are_few():
    assert len({buckets.rows(count) for count in range(1, 16_385)}) == 8 + 8 * 8
    assert len({buckets.sequences(count) for count in range(1, 1025)}) == 11
    assert sorted({buckets.longest(length) for length in range(1, 513)}) == [16, 32, 64, 128, 256, 384, 512]


def test_longest_stays_within_the_positions():
    assert buckets.longest(130, positions=200) == 200
    assert buckets.longest(20, positions=24) == 24
    assert buckets.longest(130, positions=512) == 256
    assert buckets.longest(300, positions=200) == 300  # the caller's own positions may say so


@pytest.mark.parametrize("length", [1, 5, 16, 100, 128, 512])
def test_the_rest_holds_every_tail(length):
    """Whatever call falls into a bucket, the rows past its own fit into so many sequences of the longest length."""
    for count in range(1, 3000):
        made = buckets.bucket(count, 3, length, None)
        tail = made.tokens - count
        assert tail <= made.rest * made.longest, count
        assert (made.rest - 1) * made.longest < buckets._step(made.tokens)


def test_one_whole_bucket():
    made = buckets.bucket(1000, 5, 130, 33, positions=512)
    assert made == buckets.Bucket(tokens=1024, sequences=8, longest=256, rest=1, read=40)
    assert buckets.bucket(1000, 5, 130, "first").read == "first"
    assert buckets.bucket(1000, 5, 130, None).read is None
