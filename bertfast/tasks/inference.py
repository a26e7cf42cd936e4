"""A model's outputs for features, in the features' own order: batches by length, packed, without gradients.

On a GPU a batch goes there through pinned memory and its numbers come back into such, and the batch after it is launched before
they are waited for: the host waits once a batch, while the GPU computes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bertfast.tasks.features import Feature
from bertfast.tasks.lines import DataError
from bertfast.tasks.loader import Batching, by_length

# Enough rows to keep a matrix product busy, few enough that activations stay in a few hundred megabytes.
EVALUATION = Batching(batch_size=64, token_budget=8192)


class Arriving:
    """A tensor of any device on its way to the host, behind what computes it; nothing waits until `numbers` does."""

    def __init__(self, tensor: Tensor) -> None:
        tensor = tensor.float()
        self._event: Any = None
        if not tensor.is_cuda:
            self._host = tensor.cpu()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensor.device))

    def numbers(self) -> NDArray[np.float32]:
        """The tensor as float32. DataError where it is not finite: a class of the largest NaN would look like any other."""
        values = self._host.numpy()
        if self._event is not None:
            self._event.synchronize()
            values = values.copy()  # results are kept, pinned memory is given back
        if not np.isfinite(values).all():
            raise DataError(
                "the model's output is not finite (NaN or infinite): its weights are broken, take an earlier checkpoint"
            )
        return values


def outputs(
    model: nn.Module,
    features: Sequence[Feature],
    pad_id: int,
    read: Callable[[Any], Tensor],
    batching: Batching = EVALUATION,
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """(indices of the features, the numbers that `read` takes from the model's output) of every batch.

    Labels are not given to the model. Its mode is the caller's matter: it is in evaluation mode when loaded and when the training
    loop evaluates.
    """
    device = next(model.parameters()).device
    longest = max((len(feature) for feature in features), default=0)
    if batching.token_budget is not None and longest > batching.token_budget:
        batching = Batching(batching.batch_size, longest, batching.layout)
    before: tuple[list[int], Arriving] | None = None
    for indices, batch in by_length(features, batching, pad_id, pin_memory=device.type == "cuda"):
        moved = replace(batch, labels={}).to(device, non_blocking=True)
        with torch.no_grad():
            arriving = Arriving(read(model(**moved.inputs())))
        if before is not None:
            yield before[0], before[1].numbers()
        before = indices, arriving
    if before is not None:
        yield before[0], before[1].numbers()


def sequence_logits(
    model: nn.Module, features: Sequence[Feature], pad_id: int, batching: Batching = EVALUATION
) -> NDArray[np.float32]:
    """Logits [N, C] of features' whole sequences."""
    rows: list[NDArray[np.float32] | None] = [None] * len(features)
    for indices, values in outputs(model, features, pad_id, lambda found: found.logits, batching):
        for index, row in zip(indices, values, strict=True):
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
    for indices, values in outputs(model, features, pad_id, read, batching):
        lengths = [len(features[index]) for index in indices]
        if batching.layout == "packed":
            parts = np.split(values, np.cumsum(lengths)[:-1])
        else:
            parts = [row[:length] for row, length in zip(values, lengths, strict=True)]
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
