"""A graph reads weights where they are: changes in place it sees, for any other a new one is captured."""

import copy
import gc

import pytest
import torch
from graph_cases import FIRST, Toy, assert_right, run, standing_in, tokens_of
from torch import nn

from bertfast import graphs

TOKENS = tokens_of(9, 3)


@pytest.fixture
def toy():
    with standing_in():
        toy = Toy()
        for how in (FIRST, "captured", "replayed"):
            assert run(toy, TOKENS).how == how
        yield toy


IN_PLACE = {
    "add": lambda toy: toy.dense.weight.add_(1),
    "data": lambda toy: toy.dense.weight.data.mul_(3),
    "one number": lambda toy: toy.word.weight.__setitem__((int(TOKENS.input_ids[0]), 3), 9.0),
    "load_state_dict": lambda toy: toy.load_state_dict(Toy().state_dict()),
    "requires_grad": lambda toy: toy.requires_grad_(),
    "eval": lambda toy: toy.eval(),
}
ELSEWHERE = {
    "data replaced": lambda toy: setattr(toy.dense.weight, "data", torch.randn(8, 8, dtype=torch.float64)),
    "parameter replaced": lambda toy: setattr(
        toy.dense, "weight", nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    ),
    "module replaced": lambda toy: setattr(toy, "dense", copy.deepcopy(toy.dense)),
    "assigned": lambda toy: toy.load_state_dict(Toy().state_dict(), assign=True),
    "dtype": lambda toy: toy.float(),
    "dtype and back": lambda toy: toy.float().double(),
    "strides": lambda toy: setattr(toy.dense.weight, "data", toy.dense.weight.data.t()),
    "swapped": lambda toy: torch.utils.swap_tensors(
        toy.dense.weight, nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    ),
    "bias removed": lambda toy: setattr(toy.dense, "bias", None),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_changes_in_place_are_seen_at_once(toy, name):
    before = run(toy, TOKENS).result
    IN_PLACE[name](toy)
    outcome = run(toy, TOKENS)
    assert outcome.how == "replayed"
    assert_right(toy, TOKENS, None, outcome.result)
    assert torch.equal(before, outcome.result) == (name in ("requires_grad", "eval"))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_changes_are_captured_again(toy, name):
    held = graphs.memory(toy).graphs
    assert held == 1
    ELSEWHERE[name](toy)
    for how in (FIRST, "captured", "replayed"):
        outcome = run(toy, TOKENS)
        assert outcome.how == how
        assert outcome.result.dtype == toy.dense.weight.dtype
        assert_right(toy, TOKENS, None, outcome.result)
    assert graphs.memory(toy).graphs == 1


def test_weights_that_change_on_every_call_are_never_captured():
    with standing_in() as device:
        toy = Toy()
        for _ in range(6):
            assert run(toy, TOKENS).how == FIRST
            toy.dense.weight.data = torch.randn(8, 8, dtype=torch.float64)
        assert device.captures == 0


def test_a_change_during_a_capture():
    """Another thread may move the model while this one captures: such a graph is not kept."""
    with standing_in() as device:
        toy = Toy()
        run(toy, TOKENS)

        def broken(function):
            toy.dense.weight.data = toy.dense.weight.data.clone()
            graphs.clear(toy)

        device.broken = broken
        assert run(toy, TOKENS).how == "eager: a weight changed during the capture"
        assert graphs.memory(toy) == (0, 0)


def test_replaced_weights_are_not_kept_alive(toy):
    from torch.multiprocessing.reductions import StorageWeakRef

    storage = StorageWeakRef(toy.dense.weight.untyped_storage())
    toy.dense.weight = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    gc.collect()
    assert storage.expired()


def test_a_weight_that_is_no_plain_tensor():
    from torch.testing._internal.two_tensor import TwoTensor

    with standing_in():
        toy = Toy()
        odd = TwoTensor(torch.ones(2), torch.ones(2))
        for _ in range(3):
            outcome = run(toy, TOKENS, weights=lambda: [toy.dense.weight, odd])
            assert outcome.how == "eager: a weight is no plain tensor"
        assert [run(toy, TOKENS).how for _ in range(2)] == [FIRST, "captured"]
