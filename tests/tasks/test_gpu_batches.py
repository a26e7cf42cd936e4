"""Batches of prediction, evaluation and fine-tuning on a pretended GPU: nothing waits but the reading of results, once a batch."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from fake_cuda import Wait, fake_cuda
from task_cases import ENGLISH
from test_finetune import pair_file, save_model

from bertfast import models
from bertfast.tasks import fill_mask, inference
from bertfast.tasks.features import Feature
from bertfast.tasks.inference import Arriving, qa_logits, sequence_logits, token_arrays
from bertfast.tasks.lines import DataError
from bertfast.tasks.loader import Batching, by_length
from bertfast.train.finetune import FinetuneTask
from bertfast.train.finetune_config import config_class

pytest.importorskip("triton", reason="Triton is not installed")
pretends = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
LENGTHS = [3, 9, 5, 12, 4, 4, 7, 11, 3, 6]
THREE_BATCHES = ["launched", "launched", "read", "launched", "read", "read"]


def features():
    draw = np.random.default_rng(2)
    return [Feature(draw.integers(5, 60, n), np.zeros(n, np.int64), {"labels": n % 2}) for n in LENGTHS]


def small(head, **options):
    torch.manual_seed(0)
    config = models.BertConfig(
        vocab_size=len(ENGLISH), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, **options,
    )  # fmt: skip
    return getattr(models, head)(config).eval()


@contextmanager
def pretended(model):
    """A GPU with the model on it; yields what becomes of results: "launched" once they are computed, "read" when waited for."""
    log = []

    class Pretended:
        def __init__(self, tensor):
            assert tensor.device.type == "cuda"
            self.shape = tuple(tensor.shape)
            log.append("launched")

        def numbers(self):
            log.append("read")
            return np.ones(self.shape, np.float32)

    with pytest.MonkeyPatch.context() as patch, fake_cuda() as gpu:
        for module in (inference, fill_mask):
            patch.setattr(module, "Arriving", Pretended)
        with gpu.preparing():
            model.cuda()
        yield log


@pretends
def test_sequences():
    with pretended(model := small("BertForSequenceClassification", num_labels=3)) as log:
        logits = sequence_logits(model, features(), 0, Batching(4))
    assert logits.shape == (len(LENGTHS), 3)
    assert log == THREE_BATCHES


@pretends
def test_tokens():
    with pretended(model := small("BertForTokenClassification", num_labels=5)) as log:
        rows = token_arrays(model, features(), 0, lambda found: found.logits, Batching(4))
    assert [row.shape for row in rows] == [(n, 5) for n in LENGTHS]
    assert log == THREE_BATCHES


@pretends
def test_answers():
    with pretended(model := small("BertForQuestionAnswering")) as log:
        starts, ends = qa_logits(model, features(), 0, Batching(4))
    assert [len(row) for row in starts] == [len(row) for row in ends] == LENGTHS
    assert log == THREE_BATCHES


@pretends
def test_masks(english):
    with pretended(model := small("BertForMaskedLM")) as log:
        guesses = fill_mask.fill_masks(model, english, "the [MASK] is [MASK]", top=4)
    assert [len(each) for each in guesses] == [4, 4]
    assert log == ["launched", "read"]


@pretends
def test_results_come_into_pinned_memory_behind_what_computes_them(monkeypatch):
    events = []

    class Event:
        def record(self, stream):
            events.append(("recorded on", stream))

    with fake_cuda() as gpu:
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
        with gpu.preparing():  # where copies to the host are let through
            arriving = Arriving(torch.zeros(2, 3, dtype=torch.bfloat16, device="cuda"))
        assert gpu._is_pinned(arriving._host)
    assert arriving._host.dtype == torch.float32
    assert events == [("recorded on", "the stream of cuda:0")]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(english, number):
    with pytest.raises(DataError, match="not finite"):
        Arriving(torch.tensor([[0.0, number]])).numbers()
    model = small("BertForMaskedLM")
    with torch.no_grad():
        model.cls.predictions.bias[7] = number
    with pytest.raises(DataError, match="not finite"):
        fill_mask.fill_masks(model, english, "the [MASK]")


@pretends
def test_batches_by_length_are_pinned_where_asked():
    with fake_cuda():
        (_, batch), *_ = by_length(features(), Batching(4), 0, pin_memory=True)
        batch.to("cuda", non_blocking=True)
        (_, batch), *_ = by_length(features(), Batching(4), 0)
        with pytest.raises(Wait, match="not pinned"):
            batch.to("cuda", non_blocking=True)


@pretends
@pytest.mark.parametrize("on_gpu", [True, False])
def test_batches_of_fine_tuning_are_pinned_for_a_gpu(tmp_path, on_gpu):
    pytest.importorskip("tokenizers")
    checkpoint = save_model(tmp_path / "model", models.BertForPreTraining, len(ENGLISH), "en")
    train = pair_file(tmp_path / "train.tsv", 20, 1)
    config = config_class("pair")(model=str(checkpoint), train_file=str(train), max_length=48, batch_size=4)
    task = FinetuneTask(config, tmp_path)
    with fake_cuda() as gpu:
        if on_gpu:
            with gpu.preparing():
                task.model.cuda()
        first, second = itertools.islice(task.loader(0, 1), 2)
        for batch in (first, second):
            if on_gpu:
                assert batch.to("cuda", non_blocking=True).labels["labels"].device.type == "cuda"
            else:
                assert not any(gpu._is_pinned(t) for t in (batch.input_ids, batch.labels["labels"]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_predicts_what_the_cpu_predicts():
    model = small("BertForTokenClassification", num_labels=5)
    expected = token_arrays(model, features(), 0, lambda found: found.logits, Batching(4))
    for _ in range(3):  # eager, captured, replayed
        rows = token_arrays(model.cuda(), features(), 0, lambda found: found.logits, Batching(4))
        for row, other in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row, other, rtol=1e-4, atol=1e-5)
