"""Sentence pairs: C++ and NumPy alike, Google's rules, and no token that is lost in silence."""

import numpy as np
import pytest

from bertfast.data.corpus import Corpus
from bertfast.data.pairs import (
    A_FIRST,
    A_LENGTH,
    B_FIRST,
    B_LENGTH,
    DOCUMENT,
    IS_NEXT,
    LABEL,
    NO_LABEL,
    NOT_NEXT,
    ORDINAL,
    PairOptions,
    make_pairs,
    make_pairs_reference,
    sample_lengths,
)  # fmt: skip


def everything(corpus):
    return np.arange(corpus.documents)


def touched(corpus, rows):
    """Which tokens are in a segment of their own document's pairs."""
    seen = np.zeros(corpus.tokens, dtype=int)
    for row in rows.tolist():
        seen[row[A_FIRST] : row[A_FIRST] + row[A_LENGTH]] += 1
        if row[LABEL] != NOT_NEXT:
            seen[row[B_FIRST] : row[B_FIRST] + row[B_LENGTH]] += 1
    return seen


@pytest.mark.usefixtures("needs_extension")
@pytest.mark.parametrize("nsp", [True, False])
@pytest.mark.parametrize("max_seq_length", [5, 16, 64, 128])
def test_cpp_equals_numpy(make_documents, max_seq_length, nsp):
    for seed, count in ((0, 1), (1, 2), (2**63 + 5, 40)):
        corpus = Corpus.from_documents(make_documents(count, seed=count))
        documents = np.random.default_rng(0).permutation(count)
        options = PairOptions(max_seq_length, 0.5, nsp)
        got = make_pairs(corpus, documents, options, seed, epoch=3)
        assert got.shape[1] == 7
        assert np.array_equal(got, make_pairs_reference(corpus, documents, options, seed, 3))


@pytest.mark.usefixtures("needs_extension")
def test_cpp_reads_chunks_of_both_dtypes(tmp_path, write_corpus, make_documents):
    rows = [
        make(
            Corpus.open(write_corpus(tmp_path / dtype, make_documents(40), dtype)), np.arange(40), PairOptions(64), 1, 0
        )
        for dtype in ("uint16", "int32")
        for make in (make_pairs, make_pairs_reference)
    ]
    assert all(np.array_equal(rows[0], other) for other in rows)


def test_rows_fit_and_name_their_samples(make_documents):
    corpus = Corpus.from_documents(make_documents())
    rows = make_pairs(corpus, everything(corpus), PairOptions(32, 0.1), seed=4, epoch=0)
    lengths = sample_lengths(rows)
    assert lengths.max() == 32
    assert rows[:, [A_LENGTH, B_LENGTH]].min() > 0
    names = rows[:, [DOCUMENT, ORDINAL]].tolist()
    assert len({tuple(name) for name in names}) == len(rows)
    assert [ordinal for document, ordinal in names if document == 7] == list(range(sum(n[0] == 7 for n in names)))


def test_a_is_of_its_document_and_b_follows_or_is_of_another(make_documents):
    corpus = Corpus.from_documents(make_documents(most_tokens=10))  # nothing is truncated in the middle of IsNext pairs
    rows = make_pairs(corpus, everything(corpus), PairOptions(512, 0.0), seed=4, epoch=0)
    owner = np.searchsorted(corpus.document_tokens, rows[:, [A_FIRST, B_FIRST]], side="right") - 1
    assert (owner[:, 0] == rows[:, DOCUMENT]).all()
    next_ = rows[:, LABEL] == IS_NEXT
    assert (owner[next_, 1] == rows[next_, DOCUMENT]).all()
    assert (owner[~next_, 1] != rows[~next_, DOCUMENT]).all()
    assert (rows[next_, A_FIRST] + rows[next_, A_LENGTH] == rows[next_, B_FIRST]).all()


def test_half_of_the_pairs_are_next(make_documents):
    corpus = Corpus.from_documents([[[5] * 10] * 40] * 200)  # chunks of many sentences, so that the coin alone decides
    rows = make_pairs(corpus, everything(corpus), PairOptions(64, 0.0), seed=0, epoch=0)
    assert len(rows) > 1500
    share = (rows[:, LABEL] == IS_NEXT).mean()
    assert abs(share - 0.5) < 3.3 * 0.5 / len(rows) ** 0.5


def test_half_are_next_where_a_sentence_fills_a_sample():
    """A chunk of one sentence could only be NotNext: 2 of 20 pairs may be, that of a document's last sentence."""
    corpus = Corpus.from_documents([[[5] * 70] * 40] * 100)
    rows = make_pairs(corpus, everything(corpus), PairOptions(64, 0.0), seed=0, epoch=0)
    assert 0.45 < (rows[:, LABEL] == IS_NEXT).mean() < 0.52


def test_random_segments_come_evenly_from_the_others():
    corpus = Corpus.from_documents([[[5] * 10] * 12] * 8)
    drawn = np.concatenate(
        [make_pairs(corpus, everything(corpus), PairOptions(32, 0.0), seed, epoch=0) for seed in range(30)]
    )
    random = drawn[drawn[:, LABEL] == NOT_NEXT]
    owner = np.searchsorted(corpus.document_tokens, random[:, B_FIRST], side="right") - 1
    table = np.zeros((8, 8))
    np.add.at(table, (random[:, DOCUMENT], owner), 1)
    assert np.diag(table).sum() == 0
    expected = table.sum() / 56
    chi_square = ((table - expected)[~np.eye(8, dtype=bool)] ** 2 / expected).sum()
    assert chi_square < 93.2  # 55 degrees of freedom, p = 0.001


def test_nothing_is_lost_but_by_truncation(make_documents):
    corpus = Corpus.from_documents(make_documents(most_tokens=10))
    rows = make_pairs(corpus, everything(corpus), PairOptions(512, 0.3), seed=1, epoch=2)
    assert (rows[:, LABEL] == NOT_NEXT).any(), "without random pairs no segment comes back"
    assert (touched(corpus, rows) == 1).all(), (
        "every token is in exactly one segment of its document where nothing is cut"
    )
    # Where samples are short, whole sentences may only go missing inside a chunk that was cut.
    rows = make_pairs(corpus, everything(corpus), PairOptions(24, 0.0), seed=1, epoch=2)
    full = sample_lengths(rows) == 24
    lost = int((touched(corpus, rows) == 0).sum())
    assert 0 < lost < full.sum() * 20


def test_short_targets(make_documents):
    corpus = Corpus.from_documents([[[5] * 4] * 64] * 300)

    def longest(share):
        rows = make_pairs(corpus, everything(corpus), PairOptions(128, share), seed=0, epoch=0)
        return np.array([sample_lengths(rows[rows[:, DOCUMENT] == document])[:-1].max() for document in range(300)])

    assert longest(0.0).min() >= 128 - 4
    assert abs((longest(0.1) < 120).mean() - 0.1) < 0.06
    assert len(np.unique(longest(1.0))) > 20


def test_one_document_has_only_next_pairs(make_documents):
    corpus = Corpus.from_documents([[[5] * 10] * 41])
    rows = make_pairs(corpus, np.array([0]), PairOptions(32, 0.0), seed=0, epoch=0)
    assert set(rows[:, LABEL].tolist()) <= {IS_NEXT, NO_LABEL}
    alone = Corpus.from_documents([[[5, 6, 7]]])
    for make in (make_pairs, make_pairs_reference):
        assert make(alone, np.array([0]), PairOptions(32, 0.0), 0, 0).tolist() == [[0, 0, 0, 3, 3, 0, NO_LABEL]]


def test_one_sentence_documents_and_long_sentences():
    corpus = Corpus.from_documents([[[5] * 1000], [[6]], [[7, 8]]])
    rows = make_pairs(corpus, everything(corpus), PairOptions(32, 0.0), seed=0, epoch=0)
    assert rows[:, LABEL].tolist() == [NOT_NEXT] * 3
    assert sample_lengths(rows).max() <= 32
    assert rows[:, [A_LENGTH, B_LENGTH]].min() >= 1


def test_without_nsp_every_token_is_in_one_segment(make_documents):
    for make in (make_pairs, make_pairs_reference):
        corpus = Corpus.from_documents(make_documents())
        rows = make(corpus, everything(corpus), PairOptions(24, 0.2, nsp=False), 1, 0)
        assert (touched(corpus, rows) == 1).all()
        assert sample_lengths(rows).max() == 24
        assert set(rows[:, LABEL].tolist()) == {NO_LABEL}
        assert rows[:, B_LENGTH].max() == 0


def test_mistakes_are_named():
    corpus = Corpus.from_documents([[[5, 6], [7]], [[8]]])
    for make in (make_pairs, make_pairs_reference):
        with pytest.raises(IndexError, match="document 2 is not among the corpus's 2"):
            make(corpus, np.array([2]), PairOptions(32), 0, 0)
    with pytest.raises(ValueError, match="at least 5 tokens"):
        PairOptions(4)
    corpus.document_tokens[1] = 2  # damage that the check at open did not see
    for make in (make_pairs, make_pairs_reference):
        with pytest.raises(ValueError, match="sentence lengths of document 0"):
            make(corpus, np.array([0]), PairOptions(32), 0, 0)
