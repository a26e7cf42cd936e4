"""Optimised models in other processes: workers of a DataLoader, forked or spawned, that call the model themselves."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader
from transformers_cases import outcomes, trio

from bertfast.testing import assert_within_budget

IDS = torch.arange(4 * 9).view(4, 9) % 30 + 5
MASK = torch.arange(9) < torch.tensor([[9], [4], [7], [1]])


class Encode:
    """A collate function that runs a model; only its worker knows how that went."""

    def __init__(self, model):
        self.model = model

    def __call__(self, rows):
        with torch.no_grad():
            states = self.model(input_ids=IDS[rows], attention_mask=MASK[rows]).last_hidden_state
        return states, outcomes(self.model, "Model")


def encoded(model, start):
    """The states [4, 9, E] that a worker makes, and how its calls went. A worker has one thread, which DataLoader sees to."""
    return next(iter(DataLoader(range(4), 4, collate_fn=Encode(model), num_workers=1, multiprocessing_context=start)))


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(
            "fork", marks=pytest.mark.tool("PyTorch", "a DataLoader's worker, forked after the model ran", "fast")
        ),
        pytest.param("spawn", marks=pytest.mark.tool("PyTorch", "a DataLoader's worker, spawned", "fast")),
    ],
)
def test_a_worker_runs_the_model(start, threads):
    """The model ran before, on threads that a fork does not copy."""
    threads(2)
    fast, stock, exact = trio("bert")
    here, _ = Encode(fast)([0, 1, 2, 3])
    there, calls = encoded(fast, start)
    assert torch.equal(there[MASK], here[MASK])
    assert set(calls) == {"fast, from ids to hidden states"}
    assert_within_budget(there[MASK], *(Encode(model)([0, 1, 2, 3])[0][MASK] for model in (stock, exact)))


@pytest.mark.tool("PyTorch", "inference_mode, also while the model is made", "fast")
def test_inference_mode():
    fast, stock, exact = trio("bert")
    with torch.inference_mode():
        for model in (fast, copy.deepcopy(fast)):  # whose parameters have no version counters
            states = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
            assert states.is_inference()
            assert set(outcomes(model, "Model")) == {"fast, from ids to hidden states"}
            theirs, true = (m(input_ids=IDS, attention_mask=MASK).last_hidden_state[MASK] for m in (stock, exact))
            assert_within_budget(states[MASK], theirs, true)
        model.get_submodule("encoder.layer.0.output.dense").weight.mul_(2)
        changed = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
        assert not torch.equal(changed[MASK], states[MASK])
