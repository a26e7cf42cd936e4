"""Prediction, filled masks and evaluation go through captured calls, for which a CPU has a stand-in, and keep their numbers."""

import copy

import numpy as np
import pytest
import torch
from captured import captured_on_cpu
from task_cases import ENGLISH

from bertfast import models
from bertfast.graphs import encode
from bertfast.tasks import inference
from bertfast.tasks.choice import ChoiceExample
from bertfast.tasks.choice_problem import choose
from bertfast.tasks.features import Feature
from bertfast.tasks.fill_mask import fill_masks
from bertfast.tasks.inference import ON_CPU, ON_GPU, outputs, qa_logits, sequence_logits, token_arrays
from bertfast.tasks.loader import Batching
from bertfast.testing import assert_within_budget

LENGTHS = [3, 9, 5, 12, 4, 4, 7, 11, 3, 6]


def features():
    draw = np.random.default_rng(2)
    return [Feature(draw.integers(5, 60, n), np.arange(n) % 2) for n in LENGTHS]


def small(head, **options):
    torch.manual_seed(0)
    config = models.BertConfig(
        vocab_size=len(ENGLISH), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, **options,
    )  # fmt: skip
    return getattr(models, head)(config).eval()


@pytest.fixture
def ways(monkeypatch):
    """How each call came about that was made for capturing."""
    seen = []
    run = encode.run

    def watched(*args, **options):
        outcome = run(*args, **options)
        seen.append(outcome.how.split(":")[0])
        return outcome

    monkeypatch.setattr(encode, "run", watched)
    return seen


def _pair(model):
    return sequence_logits(model, features(), 0, Batching(4))


def _qa(model):
    starts, ends = qa_logits(model, features(), 0, Batching(4))
    return np.concatenate([*starts, *ends])


def _token(model):
    return np.concatenate(token_arrays(model, features(), 0, lambda found: found.logits, Batching(4)))


def _choice(model):
    members = list(zip(features()[::2], features()[1::2], strict=True))
    examples = [ChoiceExample("", "a", ("b", "c"), None, "") for _ in members]
    shares = choose(model, 0, examples, [each for pair in members for each in pair], Batching(4))
    return np.concatenate(shares).astype(np.float32)


PREDICTIONS = {
    "choice": ("BertForMultipleChoice", _choice),
    "pair": ("BertForSequenceClassification", _pair),
    "qa": ("BertForQuestionAnswering", _qa),
    "token": ("BertForTokenClassification", _token),
}


def assert_right(model, predict, eager):
    """What is replayed now, beside what references computed, which is eager PyTorch."""
    oracle = torch.from_numpy(predict(copy.deepcopy(model).double())).double()
    assert_within_budget(torch.from_numpy(predict(model)), torch.from_numpy(eager), oracle)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_are_replayed(ways, kind):
    head, predict = PREDICTIONS[kind]
    model = small(head)
    predict(model)
    assert not ways
    with captured_on_cpu():
        eager = predict(model)
        predict(model)
        predict(model)
        assert ways == ["eager"] * 3 + ["captured"] * 3 + ["replayed"] * 3
        assert_right(model, predict, eager)
        with torch.no_grad():  # as after further training: what is written in place is seen
            model.bert.encoder.layer[0].intermediate.dense.weight.mul_(20)
        ways.clear()
        changed = predict(model)
        assert ways == ["replayed"] * 3
        assert np.abs(changed - eager).max() > 1e-3
        assert_right(model, predict, predict(copy.deepcopy(model)))


def test_masks_are_filled_by_replays(english, ways):
    model = small("BertForMaskedLM")
    expected = fill_masks(model, english, "the [MASK] is [MASK] good", top=3)
    with captured_on_cpu():
        for _ in range(3):
            got = fill_masks(model, english, "the [MASK] is [MASK] good", top=3)
            assert [[g.piece for g in guesses] for guesses in got] == [
                [g.piece for g in guesses] for guesses in expected
            ]
    assert ways == ["eager", "captured", "replayed"]


@pytest.mark.parametrize("head", ["BertForPreTraining", "BertForMaskedLM"])
def test_evaluation_with_labels_is_replayed(ways, head):
    model = small(head)
    ids = torch.arange(5, 29)
    labels = torch.full_like(ids, -100)
    labels[[2, 9, 20]] = torch.tensor([7, 8, 9])
    places = torch.tensor([2, 9, 20, -1])
    call = {
        "cu_seqlens": torch.tensor([0, 10, 24], dtype=torch.int32),
        "max_seqlen": 14,
        "labels": labels,
        "masked_positions": places,
    }
    with torch.no_grad():
        expected = model(ids, **call).loss
        with captured_on_cpu():
            losses = [model(ids, **call).loss for _ in range(3)]
            assert ways == ["eager", "captured", "replayed"]
            with torch.enable_grad():
                model(ids, **call).loss.backward()
    assert len(ways) == 3
    torch.testing.assert_close(losses, [expected] * 3, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "batching"), [("cpu", ON_CPU), ("cuda", ON_GPU)])
def test_batches_suit_the_device(monkeypatch, kind, batching):
    cuts = []
    monkeypatch.setattr(
        inference, "by_length", lambda features, batching, pad_id, pin_memory: cuts.append((batching, pin_memory)) or []
    )

    class Model:
        def parameters(self):
            yield type("Parameter", (), {"device": torch.device(kind)})()

    assert list(outputs(Model(), features(), 0, lambda found: found.logits)) == []
    assert cuts == [(batching, kind == "cuda")]
