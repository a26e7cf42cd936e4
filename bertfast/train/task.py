"""What the loop asks of a task: a model, batches, loss terms, an evaluation, and the files that go with the weights.

The loop knows no heads and no labels. It weights each term by its number of targets over the whole optimizer step, so a
task returns means over a batch's own targets and the batch says how many those were.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass
class Term:
    """One loss term of one micro-batch: `mean` over its own targets (a scalar with gradient), and how many were right."""

    mean: Tensor
    correct: Tensor | None = None


class Batch(Protocol):
    """One micro-batch, as the loaders of bertfast.data make it."""

    counts: dict[str, int]  # targets of each loss term
    real_tokens: int  # without padding
    sequences: int
    position: dict[str, Any]  # plain JSON: which samples these are

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch": ...
    def inputs(self) -> dict[str, Any]: ...


class Loader(Protocol):
    """An endless source of this rank's micro-batches.

    With R ranks, rank r is handed the global batches r, r + R, r + 2R, ... counted from where the loader stands. The
    sequence of global batches depends on the seed, the data and the budget alone.
    """

    def __iter__(self) -> Generator[Any, None, None]:
        """Closing it ends what makes batches, such as worker processes."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON, equal on all ranks: the position after the last batch handed out on every rank."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @property
    def epoch(self) -> float:
        """Epochs finished so far, fractional where that is known."""
        ...

    def batches_per_epoch(self) -> int:
        """Global micro-batches of the present epoch."""
        ...


class Task(ABC):
    """A model and what it is trained on. `model` is the bare module: the loop wraps it for several ranks itself."""

    name: str
    model: nn.Module
    tokenizer: Any = None
    step: int = 0  # updates that the model has had; the loop sets it before an evaluation

    @abstractmethod
    def loader(self, rank: int, ranks: int) -> Loader:
        """Batches of this rank; `load_state_dict` is called before the first one is asked for."""

    @abstractmethod
    def terms(self, model: nn.Module, batch: Any) -> dict[str, Term]:
        """The loss terms of a batch through `model`, the wrapped one; keys as in `batch.counts`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what makes the weights loadable by transformers into `folder`: config.json and the tokenizer's files."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on held-out data; empty where there is none.

        Called on every rank with the model in evaluation mode; each rank goes through all of the data, which FSDP needs.
        """
        return {}

    def train_flops(self, tokens: int, squared_lengths: int, targets: dict[str, int]) -> float | None:
        """FLOPs of forward and backward on `tokens` real tokens in sequences of these summed squared lengths; `targets` of
        each term. None where the task cannot say, and no utilisation is shown."""
        return None


def save_description(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write config.json, with what transformers looks up in it, and the tokenizer's files beside weights that are not here.

    model: a `BertPreTrainedModel`, possibly with sharded weights.
    """
    config = model.config.replace()
    config.extra |= {"architectures": [type(model).__name__], "dtype": "float32"}
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save(folder)
