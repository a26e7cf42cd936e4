"""The loader: the same batches for any workers and ranks, resumed anywhere, every sample once an epoch."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from bertfast.data.corpus import Corpus
from bertfast.data.loader import PretrainLoader
from bertfast.data.masking import MaskOptions
from bertfast.data.pairs import PairOptions, make_pairs, sample_lengths
from bertfast.data.plan import Position, PretrainDataOptions

OPTIONS = PretrainDataOptions(seed=5, token_budget=512, pairs=PairOptions(64), block_tokens=4000)


@pytest.fixture(scope="module")
def corpus(make_documents):
    return Corpus.from_documents(make_documents(60))


@pytest.fixture
def loader(corpus, vocabulary):
    def make(options=OPTIONS, **arguments):
        return PretrainLoader(corpus, vocabulary, options, **arguments)

    return make


def take(loader, count):
    return list(islice(loader, count))


def same(batch, other):
    given, wanted = batch.inputs(), other.inputs()
    return given.keys() == wanted.keys() and all(
        torch.equal(value, wanted[name]) if isinstance(value, torch.Tensor) else value == wanted[name]
        for name, value in given.items()
    )


def all_same(batches, others):
    return len(batches) == len(others) and all(map(same, batches, others))


def rows_in(loader, epoch):
    planner = loader._planner
    return np.concatenate([planner.block(epoch, block).rows for block in range(len(planner.documents(epoch)))])


def epoch_of(loader, epoch=0):
    return [batch for batch in take(loader, 400) if batch.position["epoch"] == epoch]


def test_an_epoch_has_every_sample_once(loader, corpus):
    batches = epoch_of(loader())
    rows = make_pairs(corpus, np.arange(corpus.documents), OPTIONS.pairs, seed=5, epoch=0)
    assert sum(batch.sequences for batch in batches) == len(rows)
    assert sum(batch.real_tokens for batch in batches) == sample_lengths(rows).sum()
    assert {batch.position["block"] for batch in batches} == {0, 1, 2}
    drawn = sorted(map(tuple, rows_in(loader(), 0).tolist()))
    assert drawn == sorted(map(tuple, rows.tolist()))


def test_static_shapes_are_static_and_full(loader):
    batches = epoch_of(loader())
    shapes = {
        tuple(tuple(value.shape) for value in batch.inputs().values() if isinstance(value, torch.Tensor))
        for batch in batches
    }
    assert len(shapes) == 1
    assert {batch.max_seqlen for batch in batches} == {64}
    assert all(batch.cu_seqlens.diff().max() <= 64 for batch in batches)
    for batch in batches:
        assert batch.counts["mlm"] == int((batch.labels["labels"] != -100).sum())
        assert batch.counts["nsp"] == int((batch.labels["next_sentence_label"] >= 0).sum())


def test_long_blocks_are_full(make_documents, vocabulary):
    corpus = Corpus.from_documents(make_documents(600))
    options = replace(OPTIONS, token_budget=1024, block_tokens=1 << 22)
    batches = epoch_of(PretrainLoader(corpus, vocabulary, options))
    assert len(batches) > 150
    assert sum(batch.real_tokens for batch in batches) / (1024 * len(batches)) > 0.985
    lengths = [batch.real_tokens / batch.sequences for batch in batches]
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.25, "length must not go with time"


def test_workers_make_no_difference(loader):
    expected = take(loader(), 60)
    for workers in (1, 2):
        batches = loader(workers=workers)
        iterator = iter(batches)
        assert all_same(list(islice(iterator, 60)), expected)
        assert batches.state_dict()["block"] == 2
        iterator.close()


def test_ranks_share_the_same_sequence(loader):
    expected = take(loader(), 60)
    for ranks in (2, 3):
        parts = [loader(rank=rank, ranks=ranks) for rank in range(ranks)]
        taken = [take(part, 60 // ranks) for part in parts]
        assert all_same([taken[i % ranks][i // ranks] for i in range(60)], expected)
        assert len({json.dumps(part.state_dict()) for part in parts}) == 1
        single = loader()
        take(single, 60)
        assert parts[0].state_dict() == single.state_dict()
        assert [batch.position for batch in taken[1]] == [batch.position for batch in expected[1::ranks]]


@pytest.mark.parametrize("at", [1, 17, 31, 130, 200])
def test_resume_goes_on_where_it_stopped(loader, at):
    whole = take(loader(), at + 8)
    stopped = loader()
    take(stopped, at)
    state = json.loads(json.dumps(stopped.state_dict()))
    for arguments in ({}, {"workers": 2}):
        resumed = loader(**arguments)
        resumed.load_state_dict(state)
        assert resumed.epoch == stopped.epoch
        assert all_same(take(resumed, 8), whole[at:])
    assert all_same(take(stopped, 8), whole[at:]), "iterating again continues"
    both = [loader(rank=rank, ranks=2) for rank in range(2)]
    for part in both:
        part.load_state_dict(state)
    assert same(take(both[1], 1)[0], whole[at + 1])


def test_a_batch_names_its_place(loader):
    batch = take(loader(), 40)[-1]
    again = loader()
    again.load_state_dict(batch.position)
    assert same(take(again, 1)[0], batch)


def test_epochs_differ_and_progress_is_counted(loader):
    batches = loader()
    count = len(epoch_of(loader()))
    assert abs(batches.batches_per_epoch() / count - 1) < 0.2, "an estimate from the first of several blocks"
    first = take(batches, count)
    assert batches.epoch == 1.0
    assert batches.state_dict() | {"of": None} == {"epoch": 1, "block": 0, "batch": 0, "of": None}
    assert 0 < take(batches, 1)[0].position["epoch"] == 1 < batches.epoch < 1.1
    assert not same(first[0], take(batches, 1)[0])
    one_block = loader(replace(OPTIONS, block_tokens=1 << 22))
    assert one_block.batches_per_epoch() == len(epoch_of(one_block))


def test_epochs_mask_a_sample_differently(loader):
    options = replace(OPTIONS, pairs=PairOptions(64, 0.0, nsp=False))  # the same segments in every epoch

    def masks(epoch):
        chosen = loader(options)
        chosen.load_state_dict({"epoch": epoch, "block": 0, "batch": 0})
        found = {}
        for batch in epoch_of(chosen, epoch):
            original = torch.where(batch.labels["labels"] >= 0, batch.labels["labels"], batch.input_ids)
            for a, b in zip(batch.cu_seqlens.tolist(), batch.cu_seqlens.tolist()[1:], strict=False):
                found[tuple(original[a:b].tolist())] = tuple(batch.labels["labels"][a:b].tolist())
        return found

    one, other = masks(0), masks(1)
    assert one.keys() == other.keys()
    assert sum(one[key] == other[key] for key in one) < 0.1 * len(one)


def test_padded_layout(loader):
    for static, longest in ((True, {64}), (False, set(range(5, 65)))):
        batches = epoch_of(loader(replace(OPTIONS, layout="padded", static_shapes=static)))
        assert {batch.input_ids.shape[1] for batch in batches} <= longest
        assert {batch.input_ids.shape[0] for batch in batches} <= set(range(1, 9))
        assert batches[0].cu_seqlens is None
    packed = {tuple(sorted(b.labels["labels"][b.labels["labels"] >= 0].tolist())) for b in batches}
    assert len(packed) == len(batches)
    total = sum(batch.counts["mlm"] for batch in epoch_of(loader()))
    assert sum(batch.counts["mlm"] for batch in batches) == total, "the same samples get the same masks"


def test_without_the_extension_the_bits_are_the_same(loader, corpus, monkeypatch):
    expected = take(loader(), 30)
    monkeypatch.setenv("BERTFAST_DISABLE_EXT", "1")
    monkeypatch.setattr("bertfast._ext._module", None)
    plain = PretrainLoader(Corpus(*corpus.__reduce__()[1]), loader()._planner.masker.vocabulary, OPTIONS)
    assert plain._planner.corpus.native is None
    assert all_same(take(plain, 30), expected)


def test_tokenizer_of_another_size_is_refused(tmp_path, write_corpus, make_documents, vocabulary):
    corpus = Corpus.open(write_corpus(tmp_path / "c", make_documents(3), tokenizer={"vocab_size": 77}))
    with pytest.raises(ValueError, match="built with 77 pieces, this tokenizer has 500"):
        PretrainLoader(corpus, vocabulary, OPTIONS)


def test_mistakes_are_named(loader):
    with pytest.raises(ValueError, match=r"token_budget=100 .*max_seq_length=128"):
        PretrainDataOptions(token_budget=100, pairs=PairOptions(128))
    with pytest.raises(ValueError, match="seed=-1"):
        PretrainDataOptions(seed=-1)
    with pytest.raises(ValueError, match="layout='ragged'"):
        PretrainDataOptions(layout="ragged")
    with pytest.raises(ValueError, match="rank=2"):
        loader(rank=2, ranks=2)
    with pytest.raises(ValueError, match="is no position"):
        loader().load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match="outside the epoch's 3 blocks"):
        loader().load_state_dict({"epoch": 0, "block": 60, "batch": 0})
    with pytest.raises(ValueError, match="this loader has"):
        loader(replace(OPTIONS, seed=6)).load_state_dict(loader().state_dict())


def test_whole_words_through_the_loader(loader, vocabulary):
    batch = take(loader(replace(OPTIONS, masks=MaskOptions(whole_word=True))), 1)[0]
    labels = batch.labels["labels"]
    ids = torch.where(labels >= 0, labels, batch.input_ids)
    continued = torch.from_numpy(vocabulary.continuation)[ids]
    free = ~torch.isin(ids, torch.tensor([0, 2, 3]))
    inside = continued[1:] & free[1:] & free[:-1]
    assert torch.equal((labels[1:] >= 0)[inside], (labels[:-1] >= 0)[inside])


def test_workers_leave_the_global_generator_alone(loader):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    iterator = iter(loader(workers=1))
    next(iterator)
    assert torch.equal(torch.rand(3), expected)
    iterator.close()


_threads_at_fork = False


def _start_a_thread():
    if _threads_at_fork:
        threading.Thread(target=threading.Event().wait, daemon=True).start()


os.register_at_fork(after_in_child=_start_a_thread)


@pytest.mark.parametrize("threads", [False, True], ids=["alone", "with a thread from its birth"])
def test_only_the_trainers_own_signal_ends_a_worker(loader, threads, monkeypatch):
    """torchrun and batch systems signal every process; a worker that obeyed would cost the checkpoint that is to be saved."""
    monkeypatch.setattr(sys.modules[__name__], "_threads_at_fork", threads)  # as Arrow's pool does
    batches = iter(loader(workers=1))
    next(batches)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    (worker,) = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    for _ in range(8):  # more than are made ahead
        next(batches)
    batches.close()
    worker.join(600)
    assert worker.exitcode == 0


def test_a_process_that_ends_with_a_batch_in_hand_does_not_hang(tmp_path, write_corpus, make_documents):
    folder = write_corpus(tmp_path / "corpus", make_documents(20))
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from conftest import VOCABULARY; from benchmarks.loader import Vocabulary; import numpy as np\n"
        "from bertfast.data.corpus import Corpus; from bertfast.data.loader import PretrainLoader\n"
        "from bertfast.data.plan import PretrainDataOptions; from bertfast.data.pairs import PairOptions\n"
        "ids = np.arange(VOCABULARY); vocabulary = Vocabulary(VOCABULARY, 2, 3, 0, 4, ids < 0, ids < 5)\n"
        "options = PretrainDataOptions(token_budget=64, pairs=PairOptions(32))\n"
        "batches = iter(PretrainLoader(Corpus.open(sys.argv[1]), vocabulary, options, workers=1))\n"
        "next(batches)\nraise SystemExit(4)"
    )
    command = [sys.executable, "-c", code, str(folder), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 4, done.stderr


def test_a_planner_travels_to_a_process_that_shares_no_memory(loader):
    planner = loader()._planner
    position = planner.normal(Position(0, 1, 2))
    assert same(pickle.loads(pickle.dumps(planner)).batch(position), planner.batch(position))


def test_a_single_document_is_said(vocabulary):
    corpus = Corpus.from_documents([[[5, 6], [7]] * 20])
    with pytest.warns(UserWarning, match="single document"):
        loader = PretrainLoader(corpus, vocabulary, OPTIONS)
    assert set(next(iter(loader)).labels["next_sentence_label"].tolist()) <= {0, -1}
