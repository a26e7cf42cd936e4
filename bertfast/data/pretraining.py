"""Pairs of a corpus to one masked batch: gathers two slices a pair, adds special tokens, masks, pads.

The arrays of a packed batch come from one call, into C++ where there is the extension and else in NumPy, with the same bits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bertfast.data.batches import IGNORED, Batch, Layout
from bertfast.data.corpus import Corpus
from bertfast.data.masking import Masker, check_masking, mask_tokens_reference
from bertfast.data.pairs import A_FIRST, A_LENGTH, B_FIRST, B_LENGTH, DOCUMENT, LABEL, ORDINAL, sample_lengths

NO_POSITION = -1  # fills masked_positions up
_ARRAYS = (
    "input_ids", "token_type_ids", "position_ids", "labels", "masked_positions", "cu_seqlens", "next_sentence_label",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The static shape of packed batches.

    Attributes:
        tokens: T.
        sequences: N.
        predictions: M, the length of masked_positions.
    """

    tokens: int
    sequences: int
    predictions: int


def pretraining_batch(
    corpus: Corpus,
    rows: NDArray[np.int64],
    masker: Masker,
    seed: int,
    epoch: int,
    nsp: bool = True,
    shape: Shape | None = None,
    layout: Layout = "packed",
    pad_to: int | None = None,
) -> Batch:
    """The batch of these samples.

    Args:
        rows: [N, 7] int64, as `make_pairs` gives them.
        nsp: whether the batch has next-sentence labels; models without that head take none.
        shape: packed only: what the arrays are filled up to; None for what there is.
        pad_to: padded only: S; None for the longest sample.

    Returns:
        A batch with labels `labels` and `next_sentence_label` (-1 where there is none) and, packed, `masked_positions` (-1
        where there is none); counts "mlm" and "nsp".

    Raises:
        IndexError: where a row points outside the corpus, or an id is not in the vocabulary.
        ValueError: where the samples do not fit the shape or the masker's max_seq_length.
    """
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    segments = rows[:, [A_LENGTH, B_LENGTH]]
    if len(rows) and not 0 <= segments.min() <= segments.max() <= corpus.tokens:
        raise IndexError(f"a row has a segment length that is negative or above the corpus's {corpus.tokens} tokens")
    lengths = sample_lengths(rows)
    fill = shape or Shape(
        int(lengths.sum()), len(rows), int(masker.predictions[np.minimum(lengths, len(masker.predictions) - 1)].sum())
    )
    sizes = (fill.tokens, fill.sequences, fill.predictions)
    if corpus.native is not None and masker.native is not None:
        made = corpus.native.batch(rows, masker.native, seed, epoch, *sizes)
    else:
        made = packed_reference(corpus, rows, masker, seed, epoch, *sizes)
    arrays = dict(zip(_ARRAYS, made, strict=True))
    predicted = int((arrays["masked_positions"] >= 0).sum())
    if shape is None:
        arrays["masked_positions"] = arrays["masked_positions"][:predicted]
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    labels = {name: tensors.pop(name) for name in ("labels", "masked_positions", "next_sentence_label")}
    counts = {"mlm": predicted, "nsp": int((rows[:, LABEL] >= 0).sum())}
    if not nsp:
        del labels["next_sentence_label"], counts["nsp"]
    batch = Batch(
        **tensors,
        labels=labels,
        counts=counts,
        real_tokens=int(lengths.sum()),
        sequences=len(rows),
        max_seqlen=len(masker.predictions) - 1 if shape else int(lengths.max(initial=0)),
    )
    return batch if layout == "packed" else padded(batch, masker.vocabulary.pad_id, pad_to)


def padded(batch: Batch, pad_id: int, pad_to: int | None = None) -> Batch:
    """The padded layout [B, S] of a packed pre-training batch without tail padding; masked_positions are left out."""
    assert batch.cu_seqlens is not None
    lengths = batch.cu_seqlens.diff().long()
    shape = (len(lengths), pad_to or batch.max_seqlen)
    place = torch.arange(len(lengths)).repeat_interleave(lengths) * shape[1] + batch.position_ids

    def spread(values: torch.Tensor, fill: int) -> torch.Tensor:
        return torch.full((shape[0] * shape[1],), fill).index_copy_(0, place, values).view(shape)

    labels = {"labels": spread(batch.labels["labels"], IGNORED)}
    labels |= {name: batch.labels[name] for name in ("next_sentence_label",) if name in batch.labels}
    return Batch(
        input_ids=spread(batch.input_ids, pad_id),
        token_type_ids=spread(batch.token_type_ids, 0),
        position_ids=spread(batch.position_ids, 0),
        attention_mask=spread(torch.ones_like(batch.input_ids), 0),
        labels=labels,
        counts=batch.counts,
        real_tokens=batch.real_tokens,
        sequences=batch.sequences,
        max_seqlen=batch.max_seqlen,
    )


def packed_reference(
    corpus: Corpus,
    rows: NDArray[np.int64],
    masker: Masker,
    seed: int,
    epoch: int,
    tokens: int,
    sequences: int,
    predictions: int,
) -> tuple[NDArray[Any], ...]:
    """The arrays of a packed batch, in NumPy; see `_ARRAYS` for their order."""
    lengths = sample_lengths(rows)
    real = int(lengths.sum())
    if real > tokens or len(rows) > sequences:
        raise ValueError(
            f"{len(rows)} samples of {real} tokens do not fit into a batch of {sequences} samples, {tokens} tokens"
        )
    vocabulary = masker.vocabulary
    ids = np.full(tokens, vocabulary.pad_id, dtype=np.int64)
    segments, positions = np.zeros(tokens, dtype=np.int64), np.zeros(tokens, dtype=np.int64)
    bounds = np.full(sequences + 1, real, dtype=np.int32)
    bounds[: len(rows) + 1] = np.concatenate([[0], np.cumsum(lengths)])
    next_sentence = np.full(sequences, -1, dtype=np.int64)
    next_sentence[: len(rows)] = rows[:, LABEL]
    for row, begin, end in zip(rows.tolist(), bounds.tolist(), bounds[1:].tolist(), strict=False):
        middle = begin + row[A_LENGTH] + 2
        ids[begin], ids[middle - 1] = vocabulary.cls_id, vocabulary.sep_id
        ids[begin + 1 : middle - 1] = corpus.token_chunks.slice(row[A_FIRST], row[A_LENGTH])
        if row[B_LENGTH]:
            ids[middle : end - 1] = corpus.token_chunks.slice(row[B_FIRST], row[B_LENGTH])
            ids[end - 1] = vocabulary.sep_id
            segments[middle:end] = 1
        positions[begin:end] = np.arange(end - begin)
    labels = np.full(tokens, IGNORED, dtype=np.int64)
    check_masking(ids[:real], bounds[: len(rows) + 1], masker)
    names = np.ascontiguousarray(rows[:, [DOCUMENT, ORDINAL]])
    labels[:real], at = mask_tokens_reference(ids[:real], bounds[: len(rows) + 1], names, masker, seed, epoch)
    if len(at) > predictions:
        raise ValueError(f"{len(at)} predictions do not fit into the {predictions} of a batch")
    masked = np.full(predictions, NO_POSITION, dtype=np.int64)
    masked[: len(at)] = at
    return ids, segments, positions, labels, masked, bounds, next_sentence
