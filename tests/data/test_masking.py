"""Masked-word targets: C++ and NumPy alike, the shares, whole words, and what is never chosen."""

from itertools import pairwise

import numpy as np
import pytest

from bertfast.data.masking import Masker, MaskOptions, Vocabulary, mask_tokens, mask_tokens_reference


def packed(count=200, longest=128, seed=0, vocab_size=500):
    """ids, cu_seqlens and names of samples `[CLS] A [SEP] B [SEP]`."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, longest + 1, count)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = random.integers(5, vocab_size, bounds[-1])
    ids[bounds[:-1]], ids[bounds[1:] - 1], ids[(bounds[:-1] + bounds[1:]) // 2] = 2, 3, 3
    return ids, bounds, np.stack([random.integers(0, 2**32, count), random.integers(0, 2**24, count)], 1)


def masked(vocabulary, options, inputs, seed=0, epoch=0, function=mask_tokens):
    ids, bounds, names = inputs
    changed = ids.copy()
    labels, positions = function(changed, bounds, names, Masker(vocabulary, options, 128), seed, epoch)
    return changed, labels, positions


OPTIONS = {
    "usual": MaskOptions(),
    "whole words": MaskOptions(whole_word=True),
    "half of all": MaskOptions(mask_prob=0.5, whole_word=True, max_predictions=20),
    "everything": MaskOptions(mask_prob=1.0, mask_share=0.2, random_share=0.8),
    "one": MaskOptions(max_predictions=1),
}


@pytest.mark.usefixtures("needs_extension")
@pytest.mark.parametrize("name", OPTIONS)
def test_cpp_equals_numpy(vocabulary, name):
    for seed, epoch, count, longest in [(0, 0, 100, 128), (2**64 - 1, 2**32 - 1, 50, 17), (3, 1, 1, 5), (4, 1, 0, 5)]:
        inputs = packed(count, longest, seed=epoch % 7)
        got = masked(vocabulary, OPTIONS[name], inputs, seed, epoch)
        expected = masked(vocabulary, OPTIONS[name], inputs, seed, epoch, mask_tokens_reference)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_labels_are_the_pieces_that_were_there(vocabulary, name):
    ids, bounds, _ = inputs = packed()
    changed, labels, positions = masked(vocabulary, OPTIONS[name], inputs)
    assert np.array_equal(np.flatnonzero(labels != -100), positions)
    assert np.array_equal(labels[positions], ids[positions])
    assert np.array_equal(changed[labels == -100], ids[labels == -100])
    assert not np.isin(labels, [0, 2, 3]).any(), "[PAD], [CLS] and [SEP] are never chosen"
    counts = np.diff(np.searchsorted(positions, bounds))
    wanted = [OPTIONS[name].predictions(length) for length in np.diff(bounds)]
    candidates = [(~np.isin(ids[a:b], [0, 2, 3])).sum() for a, b in pairwise(bounds)]
    exact = np.minimum(wanted, candidates)
    if OPTIONS[name].whole_word:
        assert (counts <= exact).all()
        assert counts.sum() > 0.98 * exact.sum()
    else:
        assert np.array_equal(counts, exact)


def test_shares(vocabulary):
    inputs = packed(4000, seed=1)
    ids, bounds, _ = inputs
    changed, _, positions = masked(vocabulary, MaskOptions(), inputs)
    n = len(positions)
    assert abs(n / bounds[-1] - 0.15) < 0.002
    now, before = changed[positions], ids[positions]
    for share, found in (
        (0.8, now == 4),
        (0.1 * 494 / 495, (now != 4) & (now != before)),
        (0.1 + 0.1 / 495, now == before),
    ):
        assert abs(found.mean() - share) < 3.3 * (share * (1 - share) / n) ** 0.5
    random = now[(now != 4) & (now != before)]
    counts = np.bincount(random, minlength=500)
    assert counts[:5].sum() == 0, "special pieces are no replacement"
    expected = counts.sum() / 495
    assert ((counts[5:] - expected) ** 2 / expected).sum() < 595  # 494 degrees of freedom, p = 0.001
    # Every place of a sample is as likely as any other.
    place = positions - bounds[np.searchsorted(bounds, positions, side="right") - 1]
    long = np.diff(bounds) == 128
    of_long = long[np.searchsorted(bounds, positions, side="right") - 1]
    counts = np.bincount(place[of_long], minlength=128)[1:-1]
    counts = counts[np.arange(1, 127) != 64]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 178  # 124 degrees of freedom, p = 0.001


def words_of(vocabulary, ids, bounds):
    """The pieces of each word of each sample, as lists of positions."""
    for begin, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False):
        word = []
        for i in range(begin, end):
            free = ids[i] not in (0, 2, 3)
            if not (free and word and vocabulary.continuation[ids[i]]):
                yield word
                word = []
            if free:
                word.append(i)
        yield word


def test_words_are_chosen_whole(vocabulary):
    ids, bounds, _ = inputs = packed()
    _, labels, _ = masked(vocabulary, MaskOptions(whole_word=True), inputs)
    chosen = labels != -100
    several = [word for word in words_of(vocabulary, ids, bounds) if len(word) > 1]
    assert sum(chosen[word].all() for word in several) > 100
    assert all(chosen[word].all() or not chosen[word].any() for word in several)
    _, labels, _ = masked(vocabulary, MaskOptions(), inputs)
    assert any((labels[word] != -100).any() and (labels[word] == -100).any() for word in several)


def test_a_word_too_long_for_the_number_is_passed_over(vocabulary):
    # Words of 1, 9 and 1 pieces; two predictions can never take the long one.
    ids = np.array([2, 6, 7, *[8] * 8, 9, 3])
    bounds = np.array([0, len(ids)], dtype=np.int32)
    for seed in range(20):
        inputs = ids, bounds, np.array([[seed, 0]])
        _, _, positions = masked(vocabulary, MaskOptions(whole_word=True), inputs)
        assert positions.tolist() == [1, 11]


def test_names_decide_and_company_does_not(vocabulary):
    ids, bounds, names = packed()
    _, together, _ = masked(vocabulary, MaskOptions(), (ids, bounds, names))
    begin, end = bounds[70], bounds[71]
    alone = ids[begin:end], np.array([0, end - begin], dtype=np.int32), names[70:71]
    assert np.array_equal(masked(vocabulary, MaskOptions(), alone)[1], together[begin:end])
    for other in ({"seed": 1}, {"epoch": 1}):
        assert not np.array_equal(masked(vocabulary, MaskOptions(), (ids, bounds, names), **other)[1], together)
    assert not np.array_equal(masked(vocabulary, MaskOptions(), (ids, bounds, names + 1))[1], together)


def test_bound_of_predictions_holds(vocabulary):
    for options in OPTIONS.values():
        masker = Masker(vocabulary, options, 128)
        for lengths in ([5] * 40, [128] * 8, [10] * 30, [5, 128, 3, 17]):
            assert masker.predictions[lengths].sum() <= masker.most_predictions(sum(lengths), len(lengths))


def test_mistakes_are_named(vocabulary):
    masker = Masker(vocabulary, MaskOptions(), 8)
    ids, bounds, names = np.arange(10), np.array([0, 10], dtype=np.int32), np.array([[0, 0]])
    with pytest.raises(ValueError, match="10 tokens, the masker was made for 8"):
        mask_tokens(ids, bounds, names, masker, 0, 0)
    with pytest.raises(IndexError, match="id 500 at position 3"):
        mask_tokens(np.array([2, 5, 5, 500, 3]), np.array([0, 5], dtype=np.int32), names, masker, 0, 0)
    with pytest.raises(IndexError, match="must rise"):
        mask_tokens(ids, np.array([0, 11], dtype=np.int32), names, masker, 0, 0)
    with pytest.raises(ValueError, match="mask_prob=0"):
        MaskOptions(mask_prob=0)
    with pytest.raises(ValueError, match="shares of one whole"):
        MaskOptions(mask_share=0.9, random_share=0.2)
    with pytest.raises(ValueError, match="mask_id is 7"):
        Vocabulary(5, 1, 2, 0, 7, np.zeros(5, bool), np.zeros(5, bool))
