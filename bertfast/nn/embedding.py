"""The sum of embeddings of any module with BERT's names inside: tables of words and positions, of segments where there are any,
and of tasks (ERNIE), then a norm and dropout.

The kernels sum three tables. Tasks are folded into the segments': a row for each pair of the two, which keeps both gradients; where
there are no segments, the third table is one row of zeros.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bertfast import ops
from bertfast.nn.plain import dropout_rate
from bertfast.ops.rng import new_rng


def segment_table(embeddings: nn.Module) -> Tensor:
    """[K, E]: of segments; of segments and tasks, the row of a pair being segment * tasks + task; of one zero for neither."""
    children: Any = embeddings._modules
    segments, tasks = children.get("token_type_embeddings"), children.get("task_type_embeddings")
    if segments is None:
        word: Any = children["word_embeddings"]
        weight = word._parameters["weight"]
        return weight.new_zeros(1, weight.shape[1])
    weight = segments._parameters["weight"]
    if tasks is None:
        return weight
    return (weight[:, None] + tasks._parameters["weight"]).flatten(0, 1)


def tables(embeddings: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """The tables of words, positions and segments. The first two are the parameters themselves."""
    word: Any = embeddings._modules["word_embeddings"]
    position: Any = embeddings._modules["position_embeddings"]
    return word._parameters["weight"], position._parameters["weight"], segment_table(embeddings)


def without_gradient(table: Tensor, row: int | None) -> Tensor:
    """The table, one row of which gets no gradient, as with the padding_idx of torch.nn.Embedding."""
    if row is None or not (torch.is_grad_enabled() and table.requires_grad):
        return table
    is_row = torch.arange(table.shape[0], device=table.device)[:, None] == row
    return torch.where(is_row, table.detach(), table)


def embed(
    embeddings: Any,
    input_ids: Tensor,
    segment_ids: Tensor | None,
    position_ids: Tensor | None,
    op: Callable[..., Any] = ops.embedding_sum_norm,
) -> Any:
    """The fused embedding, or its tied form; dropout as its Dropout's own mode says.

    Args:
        input_ids, position_ids: [B, S] or [T], int64 or int32.
        segment_ids: likewise, rows of `segment_table`; None for zeros.

    Returns:
        [B, S, E] or [T, E], and what `op` returns besides.
    """
    p = dropout_rate(embeddings.dropout)
    word, position, segment = tables(embeddings)
    return op(
        input_ids,
        word,
        without_gradient(position, embeddings.position_embeddings.padding_idx),
        segment,
        embeddings.LayerNorm.weight,
        embeddings.LayerNorm.bias,
        position_ids=position_ids,
        segment_ids=segment_ids,
        padding_idx=embeddings.word_embeddings.padding_idx,
        eps=embeddings.LayerNorm.eps,
        dropout_p=p,
        rng=new_rng(input_ids.device) if p > 0.0 else None,
    )
