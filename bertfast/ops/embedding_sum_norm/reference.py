"""Eager meaning of embedding_sum_norm.

    y = dropout(norm(word[input_ids] + segment[segment_ids] + position[position_ids]))

Arithmetic in float32 (float64 for float64). Backward gathers the sum again, so nothing of size [T, E] is saved.
"""

import torch
from torch import Tensor

from bertfast.ops.dropout_add_norm.reference import compute_dtype, dropout_scale, normalise, normalise_backward


def check_ids(ids: Tensor, rows: int, name: str) -> None:
    """IndexError naming the first id outside [0, rows), its position in the flattened ids and the size of the table."""
    bad = (ids < 0) | (ids >= rows)
    if bool(bad.any()):
        at = int(bad.flatten().nonzero()[0])
        raise IndexError(
            f"embedding_sum_norm: {name} holds {int(ids.flatten()[at])} at flattened position {at}, but the table has {rows} "
            f"rows (0 to {rows - 1}); was the text tokenised for another model, or is it longer than the model's positions?"
        )


def _gather(input_ids, position_ids, segment_ids, word, position, segment) -> Tensor:
    check_ids(input_ids, word.shape[0], "input_ids")
    check_ids(position_ids, position.shape[0], "position_ids")
    check_ids(segment_ids, segment.shape[0], "segment_ids")
    dtype = compute_dtype(word)
    return word[input_ids].to(dtype) + segment[segment_ids].to(dtype) + position[position_ids].to(dtype)


def forward(
    input_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding_idx: int,
    eps: float,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    z = _gather(input_ids, position_ids, segment_ids, word, position, segment)
    y, mean, rstd = normalise(z, weight, bias, eps)
    y = y * dropout_scale(rng, z.shape[0], z.shape[1], dropout_p, z.dtype)
    return y.to(word.dtype), mean, rstd


def _table_gradient(table: Tensor, ids: Tensor, dz: Tensor) -> Tensor:
    return torch.zeros(table.shape, dtype=dz.dtype, device=dz.device).index_add_(0, ids, dz)


def backward(
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    padding_idx: int,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    z = _gather(input_ids, position_ids, segment_ids, word, position, segment)
    dnorm = dy.to(z.dtype) * dropout_scale(rng, z.shape[0], z.shape[1], dropout_p, z.dtype)
    dz, dweight, dbias = normalise_backward(dnorm, z, mean, rstd, weight)
    dword = _table_gradient(word, input_ids, dz)
    if padding_idx >= 0:
        dword[padding_idx] = 0
    return (
        dword.to(word.dtype),
        _table_gradient(position, position_ids, dz).to(position.dtype),
        _table_gradient(segment, segment_ids, dz).to(segment.dtype),
        dweight.to(weight.dtype),
        dbias.to(weight.dtype),
    )


def tied_backward(
    dword: Tensor,
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    padding_idx: int,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, tables = (input_ids, position_ids, segment_ids), (word, position, segment)
    gradients = backward(dy, *ids, *tables, weight, mean, rstd, padding_idx, dropout_p, rng)
    dword += gradients[0]
    return gradients[1:]
