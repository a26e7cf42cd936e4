"""Batches of features: an endless, resumable sequence for training, and one pass in order of length for prediction.

The order of an epoch is a permutation drawn from (seed, epoch) alone, so that every rank, and a run that is resumed, sees the same
batches. A batch is `batch_size` sequences, packed without padding, which is what fine-tuning recipes mean by batch size; with
a token budget it ends earlier where the next sequence would exceed that.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertfast.data.batches import Batch, Layout, Sample, collate
from bertfast.data.random import Purpose, permutation
from bertfast.graphs import buckets
from bertfast.tasks.features import Feature, Group
from bertfast.tasks.lines import DataError


@dataclass(frozen=True)
class Batching:
    """How features become batches.

    batch_size: most sequences (or groups of them) of a batch. token_budget: most tokens of a packed one. layout: "packed" or
        "padded".
    """

    batch_size: int = 32
    token_budget: int | None = None
    layout: Layout = "packed"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.token_budget is not None and self.token_budget < 1):
            raise DataError(f"batch_size {self.batch_size} and token_budget {self.token_budget} must be at least 1")

    def cut(self, order: Sequence[int], lengths: NDArray[np.int64]) -> list[list[int]]:
        """The batches of one pass over `order`; the last one may be smaller."""
        batches: list[list[int]] = []
        tokens = 0
        for index in order:
            tokens += int(lengths[index])
            full = batches and len(batches[-1]) == self.batch_size
            if not batches or full or (self.token_budget is not None and tokens > self.token_budget):
                batches.append([])
                tokens = int(lengths[index])
            batches[-1].append(index)
        return batches


def make_batch(features: Sequence[Feature | Group], layout: Layout, pad_id: int) -> Batch:
    """One batch of features in their order; `counts["loss"]` is the number of labels, or of groups."""
    return _counted(collate(_samples(features), layout, pad_id), features)


def make_filled_batch(features: Sequence[Feature | Group], pad_id: int, positions: int) -> Batch:
    """One packed batch of features, filled up to sizes that come again: tokens in tail padding, sequences without tokens.

    Its `max_seqlen` is a bound. positions: of the model, beyond which no such bound is rounded.
    """
    lengths = [len(member) for feature in features for member in _members(feature)]
    tokens, sequences = buckets.rows(sum(lengths)), buckets.sequences(len(lengths))
    batch = _counted(collate(_samples(features), "packed", pad_id, tokens, sequences), features)
    return replace(batch, max_seqlen=buckets.longest(max(lengths), positions))


def _members(feature: Feature | Group) -> tuple[Feature, ...]:
    return feature.members if isinstance(feature, Group) else (feature,)


def _samples(features: Sequence[Feature | Group]) -> list[Sample]:
    samples = []
    for number, feature in enumerate(features):
        group = {"groups": number} if isinstance(feature, Group) else {}
        for member in _members(feature):
            tokens = {name: label for name, label in member.labels.items() if isinstance(label, np.ndarray)}
            numbers = {name: label for name, label in member.labels.items() if not isinstance(label, np.ndarray)}
            samples.append(Sample(member.ids, member.type_ids, tokens, numbers | group))
    return samples


def _counted(batch: Batch, features: Sequence[Feature | Group]) -> Batch:
    """The batch with one target for each group, where there are groups."""
    return replace(batch, counts={"loss": len(features)}) if isinstance(features[0], Group) else batch


def by_length(
    features: Sequence[Feature | Group], batching: Batching, pad_id: int, pin_memory: bool = False
) -> Iterator[tuple[list[int], Batch]]:
    """Every feature once, longest first (a batch too large for the memory is then the first): (its indices, batch).

    pin_memory: whether batches lie in pinned memory, for copies to a GPU beside other work.
    """
    lengths = np.asarray([len(feature) for feature in features], dtype=np.int64)
    for indices in batching.cut(np.argsort(-lengths, kind="stable").tolist(), lengths):
        batch = make_batch([features[i] for i in indices], batching.layout, pad_id)
        yield indices, batch.pin_memory() if pin_memory else batch


class FeatureLoader:
    """This rank's share of an endless sequence of shuffled batches, as the training loop wants it.

    Rank r of R takes the global batches r, r + R, ... from where the loader stands; ranks run in lockstep, and the state is the
    global batch after the last round. Batches have `counts["loss"]`, the number of targets: labelled sequences, groups of them, or
    for labels of tokens those that are not -100.
    With `pin_memory` they lie in pinned memory, for copies to a GPU beside other work. Where the
    model's `positions` are given, packed ones are filled up to sizes that come again (`make_filled_batch`), as captured steps need.

    Raises:
        DataError: there are no features, or one is longer than the token budget.
    """

    def __init__(
        self,
        features: Sequence[Feature | Group],
        batching: Batching,
        *,
        pad_id: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        pin_memory: bool = False,
        positions: int | None = None,
    ) -> None:
        if not features:
            raise DataError("there is nothing to train on: no example made a feature")
        self._features, self._batching, self._pad_id = features, batching, pad_id
        self._seed, self._rank, self._ranks, self._pin_memory = seed, rank, ranks, pin_memory
        self._positions = positions if batching.layout == "packed" else None
        self._lengths = np.asarray([len(feature) for feature in features], dtype=np.int64)
        if batching.token_budget is not None and self._lengths.max() > batching.token_budget:
            raise DataError(
                f"a sequence has {self._lengths.max()} tokens, more than token_budget {batching.token_budget}; raise the budget "
                "or lower max_length"
            )
        self._epoch, self._index = 0, 0
        self._planned: tuple[int, list[list[int]]] | None = None

    def _plan(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch."""
        if self._planned is None or self._planned[0] != epoch:
            order = permutation(len(self._features), self._seed, epoch, Purpose.SAMPLES)
            self._planned = epoch, self._batching.cut(order.tolist(), self._lengths)
        return self._planned[1]

    def __iter__(self) -> Generator[Batch, None, None]:
        while True:
            share: tuple[list[int], dict[str, Any]] | None = None
            epoch, index = self._epoch, self._index
            for turn in range(self._ranks):
                if turn == self._rank:
                    share = self._plan(epoch)[index], {"epoch": epoch, "batch": index, "data": self._fingerprint}
                index += 1
                if index == len(self._plan(epoch)):
                    epoch, index = epoch + 1, 0
            assert share is not None
            chosen = [self._features[i] for i in share[0]]
            if self._positions is None:
                batch = make_batch(chosen, self._batching.layout, self._pad_id)
            else:
                batch = make_filled_batch(chosen, self._pad_id, self._positions)
            # Moved on before the batch is handed out: a state asked for while it is computed on counts it as consumed.
            self._epoch, self._index = epoch, index
            batch = replace(batch, position={**share[1], "samples": share[0]})
            yield batch.pin_memory() if self._pin_memory else batch

    @cached_property
    def _fingerprint(self) -> str:
        """What must be the same for a position to mean the same batches."""
        batching = f"{self._batching.batch_size} {self._batching.token_budget}"
        digest = hashlib.sha256(f"{self._seed} {batching} ".encode())
        for feature in self._features:
            for member in _members(feature):
                digest.update(member.ids.tobytes())
                digest.update(b"".join(np.asarray(label).tobytes() for label in member.labels.values()))
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON, equal on all ranks: the next global batch, and a hash of data, seed and batch sizes."""
        return {"epoch": self._epoch, "batch": self._index, "data": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: it was taken on other data, with another seed or batch size.
        """
        if state["data"] != self._fingerprint:
            raise DataError(
                "the checkpoint was made with other training data, seed, lengths, batch size or vocabulary: a run can only be "
                "resumed on its own; start a new run for new data"
            )
        self._epoch, self._index = int(state["epoch"]), int(state["batch"])

    @property
    def epoch(self) -> float:
        """Epochs handed out so far."""
        return self._epoch + self._index / len(self._plan(self._epoch))

    def batches_per_epoch(self) -> int:
        """Global batches of the present epoch; the same in every epoch unless there is a token budget."""
        return len(self._plan(self._epoch))
