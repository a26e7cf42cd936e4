"""A task small enough to train in milliseconds: dropout, two loss terms, an exact loader, saved like a real one.

And what tests of the loop compare of two runs.
"""

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from bertfast.train import journal
from bertfast.train.config import TrainConfig
from bertfast.train.task import Task, Term

WORDS, WIDTH = 23, 8
PER_EPOCH = 10


@dataclass
class ToyBatch:
    input_ids: Tensor
    labels: dict[str, Tensor]
    counts: dict[str, int]
    real_tokens: int
    sequences: int
    position: dict[str, Any]
    attention_mask: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "ToyBatch":
        moved = {name: value.to(device) for name, value in self.labels.items()}
        return replace(self, input_ids=self.input_ids.to(device), labels=moved)

    def inputs(self) -> dict[str, Any]:
        return {"input_ids": self.input_ids, **self.labels}


def batch_of(seed: int, index: int) -> ToyBatch:
    """Global batch number `index`: its size, and so its number of targets, varies."""
    g = torch.Generator().manual_seed(1000 * seed + index)
    rows = 2 + index % 4
    ids = torch.randint(0, WORDS, (rows, 6), generator=g)
    word = torch.where(torch.rand(ids.shape, generator=g) < 0.3, ids, -100)
    pair = ids.sum(-1) % 2
    counts = {"word": int((word >= 0).sum()), "pair": rows}
    labels = {"word": word, "pair": pair}
    return ToyBatch(ids, labels, counts, ids.numel(), rows, {"batch": index}, torch.ones_like(ids))


class ToyLoader:
    def __init__(self, seed: int, rank: int, ranks: int) -> None:
        self.seed, self.rank, self.ranks, self.at = seed, rank, ranks, 0
        self.closed = False

    def __iter__(self) -> Generator[ToyBatch, None, None]:
        try:
            while True:
                self.at += self.ranks
                yield batch_of(self.seed, self.at - self.ranks + self.rank)
        finally:
            self.closed = True

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]

    @property
    def epoch(self) -> float:
        return self.at / PER_EPOCH

    def batches_per_epoch(self) -> int:
        return PER_EPOCH


class ToyModel(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.pair = nn.Linear(WIDTH, 2)
        self.word = nn.Linear(WIDTH, WORDS, bias=False)
        self.word.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.dropout(torch.tanh(self.dense(self.words(input_ids)))))
        return self.word(hidden), self.pair(hidden.mean(1))


class ToyTask(Task):
    name = "toy"

    def __init__(self, seed: int = 0, dropout: float = 0.1, poison: int | None = None, gradient: bool = False) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = ToyModel(dropout)
        self.seed, self.poison, self.gradient = seed, poison, gradient

    def loader(self, rank: int, ranks: int) -> ToyLoader:
        self.made = ToyLoader(self.seed, rank, ranks)
        return self.made

    def terms(self, model: nn.Module, batch: ToyBatch) -> dict[str, Term]:
        words, pair = model(batch.input_ids)
        labels = batch.labels["word"]
        total = F.cross_entropy(words.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        mean = total / max(1, batch.counts["word"])
        if batch.position["batch"] == self.poison:
            # Either the loss itself, or its gradient alone: 0 with an infinite slope.
            mean = mean + (mean - mean.detach()).sqrt() if self.gradient else mean * torch.nan
        right = batch.labels["pair"]
        return {
            "word": Term(mean, (words.argmax(-1) == labels).sum()),
            "pair": Term(F.cross_entropy(pair, right), (pair.argmax(-1) == right).sum()),
        }

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            torch.rand(3)  # a careless evaluation must not change what training draws
            batch = batch_of(99, 0)
            return {"word_loss": float(self.terms(model, batch)["word"].mean)}

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"width": WIDTH}))


OPTIONS = {"steps": 12, "batches_per_step": 2, "log_every": 5, "save_every": 4, "learning_rate": 1e-2, "device": "cpu"}


def config(**options):
    return TrainConfig(**OPTIONS | options)


def losses(run):
    keys = ("step", "loss", "word_loss", "pair_loss", "word_accuracy", "pair_accuracy", "grad_norm", "learning_rate")
    return [tuple(line[k] for k in keys) for line in journal.read(run / "log.jsonl") if line["event"] == "train"]


def assert_same(one, other, step=12):
    """Weights, optimizer state, random states and logged losses, bit for bit."""
    for name in ("model", "optimizer", "rng"):
        a, b = (load_file(run / f"checkpoints/step-{step:08d}/{name}.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key}"
    assert losses(one) == losses(other)
    assert len(losses(one)) == 3
