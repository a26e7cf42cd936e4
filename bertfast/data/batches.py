"""Batches: what a model's forward takes, packed or padded, and how samples become one.

Packed: the sequences lie one after another, [T], with `cu_seqlens` saying where each begins. With a fixed budget T and a
fixed number of sequences every batch has the same shapes: what is left over is tail padding that belongs to no sequence, and
`cu_seqlens` repeats its last value. Padded: [B, S], as transformers takes it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

IGNORED = -100  # the label that counts for no loss
Layout = Literal["packed", "padded"]


@dataclass
class Batch:
    """One micro-batch.

    Attributes:
        input_ids, token_type_ids, position_ids: int64, [T] packed or [B, S] padded.
        labels: keyword arguments of the model's forward, such as `labels`, `masked_positions`, `next_sentence_label`.
        counts: how many targets each loss term has, {"mlm": 310, "nsp": 17}; {"loss": n} for tasks of one term.
        real_tokens, sequences: without padding.
        cu_seqlens: [N + 1] int32, packed only.
        max_seqlen: tokens of the longest sequence, or a bound on them.
        attention_mask: [B, S] int64, padded only.
        position: plain JSON, where the loader was before this batch; its `load_state_dict` takes it.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    labels: dict[str, Tensor]
    counts: dict[str, int]
    real_tokens: int
    sequences: int
    max_seqlen: int
    cu_seqlens: Tensor | None = None
    attention_mask: Tensor | None = None
    position: dict[str, Any] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch with `function` of each tensor, always in the same order."""
        changed: dict[str, Any] = {"labels": {name: function(tensor) for name, tensor in self.labels.items()}}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """A batch whose tensors are on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """A batch whose tensors lie in pinned memory, from where copies to a GPU run beside other work."""
        return self.map(lambda tensor: tensor.pin_memory())

    def inputs(self) -> dict[str, Any]:
        """All keyword arguments of the model's forward."""
        given: dict[str, Any] = {
            "input_ids": self.input_ids,
            "token_type_ids": self.token_type_ids,
            "position_ids": self.position_ids,
        }
        if self.cu_seqlens is not None:
            given |= {"cu_seqlens": self.cu_seqlens, "max_seqlen": self.max_seqlen}
        if self.attention_mask is not None:
            given["attention_mask"] = self.attention_mask
        return given | self.labels


@dataclass
class Sample:
    """One sequence with its special tokens.

    Attributes:
        input_ids: [n] integers.
        token_type_ids: [n], 0 in the first segment and 1 in the second; None for all 0.
        token_labels: name to [n] integers, a label for each token; -100 counts for no loss.
        sequence_labels: name to one number; integers become int64, floats float32.
    """

    input_ids: ArrayLike
    token_type_ids: ArrayLike | None = None
    token_labels: Mapping[str, ArrayLike] = field(default_factory=dict)
    sequence_labels: Mapping[str, float] = field(default_factory=dict)


def pair_input(
    a: Sequence[int] | NDArray, b: Sequence[int] | NDArray, cls_id: int, sep_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and segments of `[CLS] A [SEP] B [SEP]`, or of `[CLS] A [SEP]` where B is empty.

    Segment 0 goes up to and including the first [SEP]; segment 1 is the rest.
    """
    tail = [*b, sep_id] if len(b) else []
    ids = np.array([cls_id, *a, sep_id, *tail], dtype=np.int64)
    return ids, np.repeat(np.arange(2), [len(ids) - len(tail), len(tail)])


def collate(
    samples: Sequence[Sample],
    layout: Layout = "packed",
    pad_id: int = 0,
    token_budget: int | None = None,
    max_sequences: int | None = None,
    pad_to: int | None = None,
) -> Batch:
    """One batch of these samples, in their order; positions count from 0 in each.

    Args:
        samples: at least one, all with the same names of labels.
        layout: "packed" or "padded".
        pad_id: the id at padding.
        token_budget: packed only: T, filled with tail padding; None for as many tokens as there are.
        max_sequences: packed only: the number of sequences that `cu_seqlens` and the sequence labels are filled up to.
        pad_to: padded only: S; None for the longest sample.

    Returns:
        A batch whose labels at padding and at missing sequences are -100. Floats, which cannot mark a missing sequence, are 0.0
        there: a loss must tell it by its having no tokens, as those of bertfast.models do. `counts` is {"loss": n}: the tokens
        whose `labels` are not -100 where samples have such token labels, the sequences otherwise.

    Raises:
        ValueError: without samples, for samples that do not fit, or labels that differ in names or length.
    """
    if not samples:
        raise ValueError("collate: a batch needs at least one sample")
    arrays = [_sample_arrays(number, sample, samples[0]) for number, sample in enumerate(samples)]
    lengths = np.array([len(each["input_ids"]) for each in arrays])
    tokens, longest = int(lengths.sum()), int(lengths.max())
    size = _batch_size(lengths, layout, token_budget, max_sequences, pad_to)
    # Where each token goes in the flattened batch, and how many places that has.
    position = np.concatenate([np.arange(n) for n in lengths])
    begin = np.arange(len(lengths)) * size[1] if layout == "padded" else np.cumsum(lengths) - lengths
    place = np.repeat(begin, lengths) + position
    shape = size if layout == "padded" else size[1:]

    def spread(values: NDArray, fill: int) -> Tensor:
        whole = np.full(int(np.prod(shape)), fill, dtype=np.int64)
        whole[place] = values
        return torch.from_numpy(whole.reshape(shape))

    def joined(name: str) -> NDArray:
        return np.concatenate([each[name] for each in arrays])

    rows = len(samples) if layout == "padded" else size[0]
    labels = {name: spread(joined(name), IGNORED) for name in samples[0].token_labels}
    labels |= {name: _sequence_labels(name, samples, rows) for name in samples[0].sequence_labels}
    counted = "labels" in samples[0].token_labels
    bounds = np.concatenate([[0], np.cumsum(lengths), np.full(rows - len(lengths), tokens)]).astype(np.int32)
    return Batch(
        input_ids=spread(joined("input_ids"), pad_id),
        token_type_ids=spread(joined("token_type_ids"), 0),
        position_ids=spread(position, 0),
        labels=labels,
        counts={"loss": int((labels["labels"] != IGNORED).sum()) if counted else len(samples)},
        real_tokens=tokens,
        sequences=len(samples),
        max_seqlen=longest,
        cu_seqlens=torch.from_numpy(bounds) if layout == "packed" else None,
        attention_mask=spread(np.ones(tokens, np.int64), 0) if layout == "padded" else None,
    )


def _sample_arrays(number: int, sample: Sample, first: Sample) -> dict[str, NDArray[np.int64]]:
    ids = np.asarray(sample.input_ids, dtype=np.int64)
    types = np.zeros_like(ids) if sample.token_type_ids is None else np.asarray(sample.token_type_ids, dtype=np.int64)
    arrays = {name: np.asarray(values, dtype=np.int64) for name, values in sample.token_labels.items()}
    if arrays.keys() != first.token_labels.keys() or sample.sequence_labels.keys() != first.sequence_labels.keys():
        raise ValueError(f"collate: sample {number} has other labels than the first; give all the same names")
    arrays |= {"input_ids": ids, "token_type_ids": types}
    for name, values in arrays.items():
        if values.shape != (len(ids),) or not len(ids):
            raise ValueError(
                f"collate: {name} of sample {number} is {values.shape}, it must be [{len(ids)}] and not empty"
            )
    return arrays


def _batch_size(
    lengths: NDArray, layout: str, token_budget: int | None, max_sequences: int | None, pad_to: int | None
) -> tuple[int, int]:
    """(sequences, tokens T) packed, (B, S) padded, after checking that the samples fit."""
    tokens, longest = int(lengths.sum()), int(lengths.max())
    if layout == "padded":
        if pad_to is not None and longest > pad_to:
            raise ValueError(f"collate: a sample has {longest} tokens, more than pad_to={pad_to}; shorten the samples")
        return len(lengths), pad_to or longest
    if layout != "packed":
        raise ValueError(f"collate: layout {layout!r} is neither 'packed' nor 'padded'")
    size = (len(lengths) if max_sequences is None else max_sequences, tokens if token_budget is None else token_budget)
    if size[0] < len(lengths) or size[1] < tokens:
        raise ValueError(
            f"collate: {len(lengths)} samples of {tokens} tokens do not fit into max_sequences={max_sequences}, "
            f"token_budget={token_budget}; give fewer samples or more room"
        )
    return size


def _sequence_labels(name: str, samples: Sequence[Sample], rows: int) -> Tensor:
    values = torch.tensor([sample.sequence_labels[name] for sample in samples])
    if rows == len(samples):
        return values
    fill = 0.0 if values.is_floating_point() else IGNORED
    return torch.cat((values, values.new_full((rows - len(samples),), fill)))
