"""A model's outputs for features, in the features' own order: batches by length, packed, without gradients."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bertfast.data.batches import Batch
from bertfast.tasks.features import Feature
from bertfast.tasks.lines import DataError
from bertfast.tasks.loader import Batching, by_length

# Enough rows to keep a matrix product busy, few enough that activations stay in a few hundred megabytes.
EVALUATION = Batching(batch_size=64, token_budget=8192)


def outputs(
    model: nn.Module, features: Sequence[Feature], pad_id: int, batching: Batching = EVALUATION
) -> Iterator[tuple[list[int], Batch, Any]]:
    """(indices of the features, batch, the model's output) of every batch. Labels are not given to the model.

    The model's mode is the caller's matter: it is in evaluation mode when loaded and when the training loop evaluates.
    """
    device = next(model.parameters()).device
    longest = max((len(feature) for feature in features), default=0)
    if batching.token_budget is not None and longest > batching.token_budget:
        batching = Batching(batching.batch_size, longest, batching.layout)
    for indices, batch in by_length(features, batching, pad_id):
        moved = batch.to(device)
        moved.labels.clear()
        with torch.no_grad():
            found = model(**moved.inputs())
        yield indices, batch, found


def sequence_logits(
    model: nn.Module, features: Sequence[Feature], pad_id: int, batching: Batching = EVALUATION
) -> NDArray[np.float32]:
    """Logits [N, C] of features' whole sequences."""
    rows: list[NDArray[np.float32] | None] = [None] * len(features)
    for indices, _, found in outputs(model, features, pad_id, batching):
        for index, row in zip(indices, _numbers(found.logits), strict=True):
            rows[index] = row
    return np.stack([row for row in rows if row is not None])


def token_arrays(
    model: nn.Module,
    features: Sequence[Feature],
    pad_id: int,
    read: Callable[[Any], Tensor],
    batching: Batching = EVALUATION,
) -> list[NDArray[np.float32]]:
    """Of each feature the rows [L, ...] of what `read` takes from the output, [T, ...] or [B, S, ...]."""
    rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(features)
    for indices, batch, found in outputs(model, features, pad_id, batching):
        values = _numbers(read(found))
        if batch.cu_seqlens is not None:
            parts = np.split(values, batch.cu_seqlens[1:-1].numpy())
        else:
            parts = [row[: len(features[index])] for index, row in zip(indices, values, strict=True)]
        for index, part in zip(indices, parts, strict=True):
            rows[index] = part
    return rows


def qa_logits(
    model: nn.Module, features: Sequence[Feature], pad_id: int, batching: Batching = EVALUATION
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Start and end logits, [L] each, of each feature."""

    def read(found: Any) -> Tensor:
        return torch.stack((found.start_logits, found.end_logits), -1)

    both = token_arrays(model, features, pad_id, read, batching)
    return [rows[:, 0] for rows in both], [rows[:, 1] for rows in both]


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    """DataError where an output is not finite: a class of the largest NaN would look like any other."""
    values = tensor.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise DataError(
            "the model's output is not finite (NaN or infinite): its weights are broken, take an earlier checkpoint"
        )
    return values
