"""Best-fit packing: C++ and Python alike, budgets kept, and how full batches are; padded batches of like length."""

import numpy as np
import pytest

from bertfast.data.packing import best_fit, best_fit_reference, longest_first, of_like_length


def lengths_of(count, longest=128, seed=0):
    """As pairs have them: most near the longest, a tail of short ones."""
    random = np.random.default_rng(seed)
    short = random.random(count) < 0.3
    return np.where(short, random.integers(5, longest + 1, count), longest - random.integers(0, 6, count))


def orders(lengths):
    return np.arange(len(lengths)), longest_first(lengths)


@pytest.mark.usefixtures("needs_extension")
@pytest.mark.parametrize(("budget", "most"), [(128, 64), (512, 3), (2048, 64), (8192, 1)])
def test_cpp_equals_python(budget, most):
    for count in (0, 1, 7, 1000):
        lengths = lengths_of(count, seed=count)
        for order in orders(lengths):
            got = best_fit(lengths, order, budget, most)
            assert np.array_equal(got, best_fit_reference(lengths, order, budget, most))


def test_best_fit_by_hand():
    lengths = np.array([6, 5, 4, 3, 2])
    # 6 opens a batch, 5 another; 4 fits the first best, 3 and 2 go to the second.
    assert best_fit(lengths, np.arange(5), 10, 9).tolist() == [0, 1, 0, 1, 1]
    assert best_fit(lengths, np.arange(5), 10, 2).tolist() == [0, 1, 0, 1, 2]
    assert best_fit(np.array([5, 5, 5]), np.arange(3), 10, 9).tolist() == [0, 0, 1]
    assert best_fit(np.array([6, 6, 4]), np.arange(3), 10, 9).tolist() == [0, 1, 0], "the earliest of equals"


def test_no_batch_holds_more_than_it_may():
    lengths = lengths_of(3000)
    for order in orders(lengths):
        batch_of = best_fit(lengths, order, 1024, 9)
        assert np.bincount(batch_of, lengths).max() <= 1024
        assert np.bincount(batch_of).min() >= 1
        assert np.bincount(batch_of).max() == 9


@pytest.mark.parametrize(
    ("budget", "longest", "shuffled"),
    [(8192, 128, True), (16384, 512, True), (4096, 512, True), (1024, 128, True), (512, 512, False)],
)
def test_batches_are_more_than_99_percent_full(budget, longest, shuffled):
    lengths = lengths_of(20_000, longest)
    batch_of = best_fit(lengths, orders(lengths)[0 if shuffled else 1], budget, budget)
    filled = np.sort(np.bincount(batch_of, lengths))[1:] / budget  # the one that is left over does not count
    assert filled.mean() > 0.99


def test_shuffled_batches_have_the_same_mixture():
    lengths = lengths_of(20_000)
    counts = np.bincount(best_fit(lengths, np.arange(len(lengths)), 8192, 256))
    assert np.percentile(counts, 99) < 1.4 * np.median(counts)
    counts = np.bincount(best_fit(lengths, longest_first(lengths), 8192, 256))
    assert np.percentile(counts, 99) > 2 * np.median(counts), "why shuffled samples are the rule"


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="1 to 10"):
        best_fit(np.array([3, 11]), np.arange(2), 10, 4)
    with pytest.raises(ValueError, match="0 to 3 tokens"):
        best_fit(np.array([3, 0]), np.arange(2), 10, 4)
    with pytest.raises(ValueError, match="max_sequences=0"):
        best_fit(np.array([3]), np.arange(1), 10, 0)


def test_like_lengths_stand_together_within_the_budget():
    lengths = lengths_of(500, seed=3)
    made = list(of_like_length(lengths, 256))
    assert sorted(np.concatenate(made).tolist()) == list(range(500))
    assert all(len(rows) * lengths[rows].max() <= 256 for rows in made)
    assert (np.diff(lengths[np.concatenate(made)]) <= 0).all()
    fuller = [(len(rows) + 1) * lengths[rows].max() > 256 for rows in made[:-1]]
    assert all(fuller), "no batch but the last has room for one more"


def test_like_lengths_by_hand():
    made = [rows.tolist() for rows in of_like_length(np.array([2, 9, 0, 2, 4, 0, 0]), 4)]
    assert made == [[1], [4], [0, 3], [2, 5, 6]]
    assert list(of_like_length(np.array([], np.int64), 4)) == []
