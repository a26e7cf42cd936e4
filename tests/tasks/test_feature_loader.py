"""Shuffled batches: the same whatever the ranks and wherever they were resumed; batches by length lose nothing."""

import itertools
import json

import numpy as np
import pytest

from bertfast.tasks.features import Feature
from bertfast.tasks.loader import Batching, FeatureLoader, by_length


def features(n=23, label="labels"):
    random = np.random.default_rng(1)
    made = []
    for i in range(n):
        length = int(random.integers(3, 12))
        ids = np.full(length, 100 + i)
        made.append(Feature(ids, np.arange(length) // 3 > 0, {label: i % 3}))
    return made


def samples(loader, count):
    return [batch.position["samples"] for batch in itertools.islice(loader, count)]


def make(batching=None, n=23, **options):
    return FeatureLoader(features(n), batching or Batching(4), pad_id=0, **options)


def test_every_epoch_has_each_feature_once_in_an_order_of_its_own():
    loader = make()
    assert loader.batches_per_epoch() == 6
    epochs = [list(itertools.chain(*samples(loader, 6))) for _ in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert loader.epoch == 3.0
    assert samples(make(), 6) != samples(make(seed=1), 6)
    assert samples(make(), 6) == samples(make(), 6)


def test_batch_holds_its_features_without_padding():
    batch = next(iter(make()))
    chosen = [features()[i] for i in batch.position["samples"]]
    assert batch.input_ids.tolist() == np.concatenate([f.ids for f in chosen]).tolist()
    assert batch.cu_seqlens.diff().tolist() == [len(f) for f in chosen]
    assert batch.labels["labels"].tolist() == [f.labels["labels"] for f in chosen]
    assert batch.counts == {"loss": 4}


def test_padded_layout():
    batch = next(iter(make(Batching(4, layout="padded"))))
    assert batch.attention_mask.sum(1).tolist() == [len(features()[i]) for i in batch.position["samples"]]


def test_labels_of_tokens_are_counted():
    made = [Feature(np.arange(1, 5), np.zeros(4), {"labels": np.array([-100, 2, 1, -100])})] * 3
    assert next(iter(FeatureLoader(made, Batching(2), pad_id=0))).counts == {"loss": 4}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_same_sequence(ranks):
    whole = samples(make(), 16)
    shares = [make(rank=rank, ranks=ranks) for rank in range(ranks)]
    found = [samples(share, 16 // ranks) for share in shares]
    assert [batch for turn in zip(*found, strict=True) for batch in turn] == whole
    assert len({json.dumps(share.state_dict()) for share in shares}) == 1


@pytest.mark.parametrize("done", [0, 3, 6, 8])
@pytest.mark.parametrize("batching", [Batching(4), Batching(8, token_budget=20)], ids=["size", "budget"])
def test_resumed_anywhere_it_is_the_same(done, batching):
    whole = samples(make(batching), 20)
    first = make(batching)
    samples(first, done)
    second = make(batching)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert samples(second, 20 - done) == whole[done:]


def test_position_of_a_batch_leads_back_to_it():
    batches = list(itertools.islice(make(), 9))
    again = make()
    again.load_state_dict(batches[7].position)
    assert samples(again, 2) == [b.position["samples"] for b in batches[7:]]


@pytest.mark.parametrize("other", [{"n": 22}, {"seed": 1}, {"batching": Batching(5)}])
def test_a_state_of_other_data_is_refused(other):
    with pytest.raises(ValueError, match="other training data, seed"):
        make(**other).load_state_dict(make().state_dict())


def test_token_budget_bounds_every_batch():
    loader = make(Batching(8, token_budget=20))
    batches = list(itertools.islice(loader, loader.batches_per_epoch()))
    assert all(batch.real_tokens <= 20 for batch in batches)
    assert sum(batch.sequences for batch in batches) == 23
    with pytest.raises(ValueError, match="more than token_budget 5"):
        make(Batching(8, token_budget=5))


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="nothing to train on"):
        make(n=0)
    with pytest.raises(ValueError, match="at least 1"):
        Batching(0)


def test_by_length_gives_each_once_longest_first():
    made = features()
    found = list(by_length(made, Batching(4, token_budget=30), pad_id=0))
    order = [i for indices, _ in found for i in indices]
    assert sorted(order) == list(range(23))
    assert [len(made[i]) for i in order] == sorted((len(f) for f in made), reverse=True)
    for indices, batch in found:
        assert batch.input_ids[batch.cu_seqlens[:-1].long()].tolist() == [100 + i for i in indices]
