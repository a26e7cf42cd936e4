"""What the models return: dataclasses with transformers' field names. None stands for what was not asked for.

Tensors of tokens are [T, ...] for packed input and [B, S, ...] for padded input, with zeros at padding.
"""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from bertfast import _torch

Kind = TypeVar("Kind", bound=type)


def _tree(kind: Kind) -> Kind:
    """Let torch look inside: FSDP puts its hooks on the tensors that a module returns."""
    _torch.register_dataclass(kind)
    return kind


@_tree
@dataclass
class BertModelOutput:
    """
    Attributes:
        last_hidden_state: [T, E] or [B, S, E].
        pooler_output: [B, E], or None without a pooler; zeros for sequences without tokens.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None


@_tree
@dataclass
class BertForPreTrainingOutput:
    """
    Attributes:
        loss: mlm_loss + nsp_loss.
        prediction_logits: [T, V] or [B, S, V], without labels or where all were asked for.
        seq_relationship_logits: [B, 2].
        mlm_loss, nsp_loss: means over the masked tokens, and over the sequences with a label.
        mlm_correct, mlm_count, nsp_correct, nsp_count: int64, how many targets have the largest logit, and how many there are.
    """

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    mlm_loss: Tensor | None = None
    nsp_loss: Tensor | None = None
    mlm_correct: Tensor | None = None
    mlm_count: Tensor | None = None
    nsp_correct: Tensor | None = None
    nsp_count: Tensor | None = None


@_tree
@dataclass
class MaskedLMOutput:
    """
    Attributes:
        loss: mean over the masked tokens.
        logits: [T, V] or [B, S, V], without labels or where all were asked for.
        mlm_correct, mlm_count: int64, how many masked tokens have the largest logit, and how many there are.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mlm_correct: Tensor | None = None
    mlm_count: Tensor | None = None


@_tree
@dataclass
class SequenceOutput:
    """
    Attributes:
        loss: mean over the sequences with a label.
        logits: [B, C], C labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


@_tree
@dataclass
class TokenOutput:
    """
    Attributes:
        loss: mean over the tokens with a label.
        logits: [T, C] or [B, S, C], C labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


@_tree
@dataclass
class QuestionAnsweringOutput:
    """
    Attributes:
        loss: half the sum of the means over the answers' first and last tokens.
        start_logits, end_logits: [T] or [B, S].
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
