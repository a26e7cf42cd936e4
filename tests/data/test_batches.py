"""Batches: the worked example, collating, static shapes, padded and packed alike, C++ and NumPy alike."""

import numpy as np
import pytest
import torch

from bertfast.data.batches import Sample, collate, pair_input
from bertfast.data.corpus import Corpus
from bertfast.data.masking import Masker, MaskOptions
from bertfast.data.pairs import PairOptions, make_pairs, sample_lengths
from bertfast.data.pretraining import Shape, packed_reference, pretraining_batch


def pairs_of(corpus, max_seq_length=64, nsp=True, seed=0):
    return make_pairs(corpus, np.arange(corpus.documents), PairOptions(max_seq_length, 0.2, nsp), seed, 0)


def test_worked_example():
    # 私 は 学生 です / 東京 に 住んで います
    ids, segments = pair_input([10, 11, 12, 13], [20, 21, 22, 23], cls_id=2, sep_id=3)
    batch = collate([Sample(ids, segments)])
    assert batch.input_ids.tolist() == [2, 10, 11, 12, 13, 3, 20, 21, 22, 23, 3]
    assert batch.position_ids.tolist() == list(range(11))
    assert batch.token_type_ids.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert batch.cu_seqlens.tolist() == [0, 11]


def test_worked_example_from_a_corpus(vocabulary):
    corpus = Corpus.from_documents([[[10, 11, 12, 13], [20, 21, 22, 23]]])
    rows = np.array([[0, 0, 0, 4, 4, 4, 0]])
    batch = pretraining_batch(corpus, rows, Masker(vocabulary, MaskOptions(), 16), 0, 0)
    ids = torch.where(batch.labels["labels"] >= 0, batch.labels["labels"], batch.input_ids)
    assert ids.tolist() == [2, 10, 11, 12, 13, 3, 20, 21, 22, 23, 3]
    assert batch.position_ids.tolist() == list(range(11))
    assert batch.token_type_ids.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert batch.labels["next_sentence_label"].tolist() == [0]
    assert batch.counts == {"mlm": 2, "nsp": 1}  # round(0.15 * 11)


@pytest.mark.usefixtures("needs_extension")
@pytest.mark.parametrize("nsp", [True, False])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_cpp_equals_numpy(make_documents, vocabulary, nsp, dtype):
    for count in (1, 2, 50):
        corpus = Corpus.from_documents(make_documents(count, seed=count), dtype)
        rows = pairs_of(corpus, nsp=nsp)
        for whole_word in (False, True):
            masker = Masker(vocabulary, MaskOptions(whole_word=whole_word), 64)
            tokens = int(sample_lengths(rows).sum())
            for extra in (0, 13):
                sizes = (tokens + extra, len(rows) + extra, masker.most_predictions(tokens, len(rows)) + extra)
                got = corpus.native.batch(rows, masker.native, 7, 2, *sizes)
                expected = packed_reference(corpus, rows, masker, 7, 2, *sizes)
                for a, b in zip(got, expected, strict=True):
                    assert a.dtype == b.dtype
                    assert np.array_equal(a, b)


def test_static_shapes_are_filled_with_what_counts_for_nothing(make_documents, vocabulary):
    corpus = Corpus.from_documents(make_documents(5))
    rows, masker = pairs_of(corpus)[:6], Masker(vocabulary, MaskOptions(), 64)
    exact = pretraining_batch(corpus, rows, masker, 0, 0)
    batch = pretraining_batch(corpus, rows, masker, 0, 0, shape=Shape(500, 9, 90))
    real = exact.real_tokens
    assert batch.real_tokens == real == int(batch.cu_seqlens[-1])
    assert batch.cu_seqlens.tolist() == exact.cu_seqlens.tolist() + [real] * 3
    for name in ("input_ids", "token_type_ids", "position_ids"):
        assert torch.equal(getattr(batch, name)[:real], getattr(exact, name))
        assert getattr(batch, name)[real:].eq(0).all()
        assert len(getattr(batch, name)) == 500
    assert batch.labels["labels"][real:].eq(-100).all()
    assert batch.labels["next_sentence_label"].tolist() == rows[:, 6].tolist() + [-1] * 3
    positions = batch.labels["masked_positions"]
    assert torch.equal(positions[positions >= 0], exact.labels["masked_positions"])
    assert positions[batch.counts["mlm"] :].eq(-1).all()
    assert batch.counts == exact.counts


def test_padded_holds_the_same_samples_and_masks(make_documents, vocabulary):
    corpus = Corpus.from_documents(make_documents(5))
    rows, masker = pairs_of(corpus)[:6], Masker(vocabulary, MaskOptions(), 64)
    packed = pretraining_batch(corpus, rows, masker, 3, 1)
    padded = pretraining_batch(corpus, rows[::-1], masker, 3, 1, layout="padded", pad_to=64)
    assert padded.input_ids.shape == (6, 64)
    bounds = packed.cu_seqlens.tolist()
    for i in range(6):
        begin, length = bounds[i], bounds[i + 1] - bounds[i]
        for name, fill in (("input_ids", 0), ("token_type_ids", 0), ("position_ids", 0)):
            row = getattr(padded, name)[5 - i]
            assert torch.equal(row[:length], getattr(packed, name)[begin : begin + length])
            assert row[length:].eq(fill).all()
        labels = padded.labels["labels"][5 - i]
        assert torch.equal(labels[:length], packed.labels["labels"][begin : begin + length])
        assert labels[length:].eq(-100).all()
        assert padded.attention_mask[5 - i].tolist() == [1] * length + [0] * (64 - length)
    assert set(padded.inputs()) == {
        "input_ids", "token_type_ids", "position_ids", "attention_mask", "labels", "next_sentence_label",
    }  # fmt: skip


def test_without_nsp_there_is_no_label_for_it(make_documents, vocabulary):
    corpus = Corpus.from_documents(make_documents(3))
    batch = pretraining_batch(
        corpus, pairs_of(corpus, nsp=False), Masker(vocabulary, MaskOptions(), 64), 0, 0, nsp=False
    )
    assert set(batch.labels) == {"labels", "masked_positions"}
    assert set(batch.counts) == {"mlm"}
    assert batch.token_type_ids.eq(0).all()


def test_bad_rows_and_ids_are_refused(vocabulary, monkeypatch):
    corpus, masker = Corpus.from_documents([[[5, 6, 7, 499]]]), Masker(vocabulary, MaskOptions(), 8)
    foreign = Corpus.from_documents([[[5, 6, 500]]])
    for _ in range(2):
        for row in ([0, 0, 1, 4, 0, 0, -1], [0, 0, -1, 2, 0, 0, -1], [0, 0, 0, 1, 3, 2, 0]):
            with pytest.raises(IndexError, match="not within one chunk"):
                pretraining_batch(corpus, np.array([row]), masker, 0, 0)
        with pytest.raises(IndexError, match=r"500.*\n?.*tokenizer"):
            pretraining_batch(foreign, np.array([[0, 0, 0, 3, 0, 0, -1]]), masker, 0, 0)
        with pytest.raises(ValueError, match="do not fit"):
            pretraining_batch(corpus, np.array([[0, 0, 0, 4, 0, 0, -1]]), masker, 0, 0, shape=Shape(5, 1, 1))
        with pytest.raises(ValueError, match="the masker was made for 8"):
            pretraining_batch(corpus, np.array([[0, 0, 0, 4, 0, 4, -1]]), masker, 0, 0)
        monkeypatch.setattr(type(corpus), "native", None)


def test_garbage_is_refused_or_read_within_bounds(make_documents, vocabulary):
    corpus, masker = Corpus.from_documents(make_documents(3)), Masker(vocabulary, MaskOptions(), 64)
    random, refused = np.random.default_rng(0), 0
    for limit in (3, 100, corpus.tokens + 3, 2**31 + 1, 2**63 - 1):
        for _ in range(50):
            rows = random.integers(-2, limit, (2, 7))
            try:
                batch = pretraining_batch(corpus, rows, masker, 0, 0, shape=Shape(128, 3, 40))
            except (IndexError, ValueError):
                refused += 1
            else:
                assert batch.input_ids.max() < 500
    assert 50 < refused < 250


def test_collate_packed_and_padded():
    samples = [
        Sample([2, 8, 3], None, {"labels": [-100, 1, -100]}, {"start": 1}),
        Sample([2, 9, 9, 9, 3], [0, 0, 0, 1, 1], {"labels": [-100, 2, -100, 0, -100]}, {"start": 3}),
    ]
    packed = collate(samples, pad_id=7, token_budget=10, max_sequences=3)
    assert packed.input_ids.tolist() == [2, 8, 3, 2, 9, 9, 9, 3, 7, 7]
    assert packed.token_type_ids.tolist() == [0] * 6 + [1, 1, 0, 0]
    assert packed.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 0]
    assert packed.cu_seqlens.tolist() == [0, 3, 8, 8]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.labels["labels"].tolist() == [-100, 1, -100, -100, 2, -100, 0, -100, -100, -100]
    assert packed.labels["start"].tolist() == [1, 3, -100]
    assert (packed.max_seqlen, packed.real_tokens, packed.sequences, packed.counts) == (5, 8, 2, {"loss": 3})
    padded = collate(samples, "padded", pad_id=7)
    assert padded.input_ids.tolist() == [[2, 8, 3, 7, 7], [2, 9, 9, 9, 3]]
    assert padded.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert padded.labels["start"].tolist() == [1, 3]
    assert collate(samples, "padded", pad_to=6).input_ids.shape == (2, 6)
    assert collate([Sample([2, 3], sequence_labels={"labels": 0.5})]).labels["labels"].dtype == torch.float32


def test_labels_of_missing_sequences():
    """Integers that count for no loss; zeros among floats, whose sequences without tokens count for none."""
    for label, fill in ((1, -100), (1.5, 0.0)):
        batch = collate([Sample([2, 8, 3], sequence_labels={"labels": label})], "packed", 0, None, 2)
        assert batch.labels["labels"].tolist() == [label, fill]
        assert batch.counts == {"loss": 1}


def test_collate_refuses_what_does_not_fit():
    sample = Sample([2, 8, 3], sequence_labels={"labels": 1.5})
    for arguments, words in (
        (([],), "at least one"),
        (([sample], "ragged"), "neither"),
        (([sample], "packed", 0, 2), "do not fit"),
        (([sample, sample], "packed", 0, None, 1), "do not fit"),
        (([sample], "padded", 0, None, None, 2), "more than pad_to=2"),
        (([sample, Sample([2])],), "other labels"),
        (([Sample([2, 3], [0])],), "token_type_ids of sample 0"),
        (([Sample([])],), "not empty"),
    ):
        with pytest.raises(ValueError, match=words):
            collate(*arguments)


def test_moving_keeps_everything():
    batch = collate([Sample([2, 3], sequence_labels={"labels": 1})])
    batch.position = {"epoch": 1}
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved.inputs().values() if isinstance(tensor, torch.Tensor)} == {"meta"}
    assert (moved.position, moved.counts, moved.attention_mask) == ({"epoch": 1}, {"loss": 1}, None)
