"""Captured steps give the numbers of eager ones, bit for bit: on a tape in a graph's place, with references for kernels."""

import dataclasses
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from small_corpus import write_corpus
from stepping import SteppingTape, stepping

from bertfast.train import journal
from bertfast.train.config import TrainConfig
from bertfast.train.errors import NotFiniteError, StoppedError
from bertfast.train.loop import train
from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import DataOptions, ModelOptions, PretrainConfig

pytestmark = pytest.mark.usefixtures("no_pictures")
LATE = 4  # steps until whether all was finite is read
STEPS = 7


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder / "train", 60), write_corpus(folder / "held", 12, seed=1)


def config_of(corpora, data=None, **options):
    given = {"steps": STEPS, "device": "cpu", "log_every": 2, "learning_rate": 3e-3, "save_every": None}
    return PretrainConfig(
        corpus=str(corpora[0]),
        out="",
        eval=str(corpora[1]),
        model=ModelOptions(hidden=32, layers=2, heads=2, positions=64),
        data=DataOptions(**{"token_budget": 256, "max_seq_length": 64, "workers": 0} | (data or {})),
        train=TrainConfig(**given | options),
    )


def run(folder, config, resume=False, task=PretrainTask):
    return train(task(config), config.train, folder, resume=resume, read_every=LATE)


def log(folder, event):
    left_out = ("seconds", "tokens_per_second", "memory_gib", "mfu", "text")
    lines = [line for line in journal.read(folder / "log.jsonl") if line["event"] == event]
    return [{key: value for key, value in line.items() if key not in left_out} for line in lines]


def notes(folder):
    return [line["text"] for line in journal.read(folder / "log.jsonl") if line["event"] == "note"]


def assert_same(one, other, step=STEPS):
    """Weights, optimizer, random states, logged losses and evaluations."""
    for name in ("model", "optimizer", "rng"):
        a, b = (load_file(folder / f"checkpoints/step-{step:08d}/{name}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key}"
    for event in ("train", "eval"):
        assert log(one, event) == log(other, event) != []


CASES = {
    "plain": {},
    "accumulation": {"batches_per_step": 3},
    "lamb": {"optimizer": "lamb"},
    "bfloat16": {"precision": "bf16"},
    "evaluation between": {"eval_every": 1, "log_every": 1, "save_every": 2},
    "without clipping": {"max_grad_norm": 0.0, "batches_per_step": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_captured_equals_eager(corpora, tmp_path, name):
    config = config_of(corpora, **CASES[name])
    with stepping():
        eager = dataclasses.replace(config, train=dataclasses.replace(config.train, cuda_graphs=False))
        run(tmp_path / "eager", eager)
    with stepping() as tape:
        run(tmp_path / "captured", config)
    graphs = 3 if config.train.batches_per_step > 1 else 2
    assert tape.captures == graphs
    assert tape.replays == (STEPS - 1) * (config.train.batches_per_step + 1)
    assert_same(tmp_path / "eager", tmp_path / "captured")
    said = [note for note in notes(tmp_path / "captured") if "steps" in note]
    assert said == [f"steps are captured in CUDA graphs: {graphs} graphs, 0.0 GiB"]
    assert "steps run eagerly: cuda_graphs is false" in notes(tmp_path / "eager")
