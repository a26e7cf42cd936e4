"""Fine-tuning from captured steps: batches filled up to sizes that come again, the numbers those of eager steps, bit for bit."""

import dataclasses
import random

import pytest
import torch
from safetensors.torch import load_file
from stepping import stepping
from task_cases import ENGLISH
from test_finetune import choice_file, conll_file, pair_file, save_model, squad_file

from bertfast import models
from bertfast.data.batches import IGNORED, Sample, collate
from bertfast.tasks.features import Feature
from bertfast.tasks.loader import Batching, FeatureLoader, make_batch, make_filled_batch
from bertfast.train import journal
from bertfast.train.errors import NotFiniteError
from bertfast.train.finetune import FinetuneTask
from bertfast.train.finetune_config import FinetuneTraining, config_class
from bertfast.train.loop import train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("tokenizers")
    folder = save_model(tmp_path_factory.mktemp("model"), models.BertForPreTraining, len(ENGLISH), "en")
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('dropout_prob": 0.0', 'dropout_prob": 0.1')
    )
    return folder


def number_file(path, n, seed):
    draw = random.Random(seed)
    lines = [f"{'the film is very ' * draw.randint(1, 4)}\t{draw.random() * 5:.3f}" for _ in range(n)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


KINDS = {
    "pair": ("pair", pair_file, "tsv", {}),
    "regression": ("pair", number_file, "tsv", {"regression": True}),
    "qa": ("qa", squad_file, "json", {"max_question": 8}),
    "token": ("token", conll_file, "conll", {}),
    "choice": ("choice", choice_file, "jsonl", {}),
}


def config_of(kind, checkpoint, folder, **options):
    task, write, ending, more = KINDS[kind]
    files = [write(folder / f"{name}.{ending}", n, n) for name, n in (("train", 90), ("dev", 12))]
    training = FinetuneTraining(epochs=4, device="cpu", learning_rate=1e-3, log_every=3, **options)
    return config_class(task)(
        model=str(checkpoint),
        train_file=str(files[0]),
        dev_file=str(files[1]),
        max_length=48,
        batch_size=16,
        train=training,
        **more,
    )


def run(config, folder, task=FinetuneTask, resume=False):
    return train(task(config, folder), config.train, folder, record=config, resume=resume, read_every=4)


def with_train(config, **options):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


def lines(folder):
    left_out = ("seconds", "tokens_per_second", "memory_gib", "mfu")
    log = [line for line in journal.read(folder / "log.jsonl") if line["event"] != "note"]
    return [{key: value for key, value in line.items() if key not in left_out} for line in log]


def assert_same(one, other):
    for name in ("model", "optimizer", "rng"):
        a, b = (load_file(max(folder.glob("checkpoints/*")) / f"{name}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert lines(one) == lines(other) != []


@pytest.mark.parametrize("options", [{}, {"batches_per_step": 2, "precision": "bf16"}], ids=["plain", "two, bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_captured_equals_eager(tmp_path, checkpoint, kind, options):
    config = config_of(kind, checkpoint, tmp_path, eval_every=4, **options)
    with stepping():
        run(with_train(config, cuda_graphs=False), tmp_path / "eager")
    with stepping() as tape:
        steps = run(config, tmp_path / "captured").step
    assert_same(tmp_path / "eager", tmp_path / "captured")
    assert tape.captures >= 2
    assert tape.replays > steps / 2
    texts = [line["text"] for line in journal.read(tmp_path / "captured/log.jsonl") if line["event"] == "note"]
    assert any(text.startswith("steps are captured in CUDA graphs: ") for text in texts)


def test_resuming(tmp_path, checkpoint):
    config = config_of("pair", checkpoint, tmp_path)
    with stepping():
        run(config, tmp_path / "straight")
    for number, stop in enumerate((2, 9, None)):
        with stepping():
            run(with_train(config, stop_at=stop), tmp_path / "run", resume=number > 0)
    assert_same(tmp_path / "straight", tmp_path / "run")


def test_a_label_that_is_not_finite(tmp_path, checkpoint):
    """Found late, by the step that it is of, at a replay."""

    class Spoiled(FinetuneTask):
        def loader(self, rank, ranks):
            loader = super().loader(rank, ranks)
            batches = FeatureLoader.__iter__(loader)

            class Hooked(type(loader)):
                def __iter__(inner):
                    for number, batch in enumerate(batches):
                        if number == 8:
                            batch.labels["labels"][1] = float("inf")
                        yield batch

            loader.__class__ = Hooked
            return loader

    with stepping() as tape, pytest.raises(NotFiniteError, match="step 9: loss is inf"):
        run(config_of("regression", checkpoint, tmp_path), tmp_path / "run", Spoiled)
    assert tape.replays
    assert (tmp_path / "run/bad-batch-step-9.safetensors").exists()


def feature(length, label):
    return Feature(
        torch.arange(5, 5 + length).numpy(), torch.zeros(length, dtype=torch.int64).numpy(), {"labels": label}
    )


@pytest.mark.parametrize("label", [1, 0.5], ids=["class", "number"])
def test_a_filled_batch_has_the_numbers_of_its_own(label):
    """Tokens in no sequence and sequences without tokens: the same loss, logits and gradients."""
    features = [feature(n, label) for n in (7, 3, 12, 5, 9)]
    plain, filled = make_batch(features, "packed", 0), make_filled_batch(features, 0, positions=64)
    assert filled.input_ids.shape == (40,)
    assert plain.input_ids.shape == (36,)
    assert filled.cu_seqlens.tolist() == [0, 7, 10, 22, 27, 36, 36, 36, 36]
    assert (plain.max_seqlen, filled.max_seqlen) == (12, 16)
    assert filled.counts == plain.counts == {"loss": 5}
    assert (filled.real_tokens, filled.sequences) == (36, 5)
    torch.manual_seed(0)
    config = models.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=2 if label == 1 else 1,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = models.BertForSequenceClassification(config)
    gradients = []
    for batch in (plain, filled):
        out = model(**batch.inputs())
        model.zero_grad()
        out.loss.backward()
        gradients.append([out.loss.detach(), out.logits.detach()[:5], *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_missing_sequences_have_no_label():
    samples = [Sample([2, 3], sequence_labels={"labels": 0.5, "other": 3})]
    labels = collate(samples, max_sequences=3).labels
    assert labels["labels"].tolist() == [0.5, 0.0, 0.0]
    assert labels["other"].tolist() == [3, IGNORED, IGNORED]


def test_a_loader_fills_packed_batches_alone():
    features = [feature(n, 1) for n in (7, 3, 12, 5, 9, 4)]

    def first(layout, **options):
        return next(iter(FeatureLoader(features, Batching(5, layout=layout), pad_id=0, **options)))

    assert first("packed").input_ids.numel() == first("packed").real_tokens
    assert first("packed", positions=64).input_ids.numel() % 8 == 0
    assert len(first("packed", positions=64).cu_seqlens) == 9
    assert first("packed", positions=13).max_seqlen <= 13
    assert first("padded", positions=64).input_ids.shape == first("padded").input_ids.shape
