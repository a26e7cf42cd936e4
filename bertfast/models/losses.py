"""Losses as means over the targets that there are: 0 with zero gradients where there is none, in float32 at least.

`torch.nn.functional.cross_entropy` gives NaN for no target, which one odd batch of a long run would spread to every weight.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.nn.tokens import Tokens

IGNORED = -100


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_labels(name: str, labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Labels as int64; ValueError unless they are integers of that shape."""
    if tuple(labels.shape) != shape or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be int64 {shape}, got {labels.dtype} {tuple(labels.shape)}")
    return labels.to(torch.int64)


def of_sequences(labels: Tensor, tokens: Tokens) -> Tensor:
    """[B] labels with IGNORED at sequences without tokens."""
    return (
        labels
        if tokens.packing is None and len(tokens.shape) == 2
        else labels.masked_fill(tokens.lengths == 0, IGNORED)
    )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labels other than IGNORED; logits [K, C], labels [K] int64."""
    total = F.cross_entropy(_wide(logits), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many labels have the largest logit, and how many there are; int64."""
    return (logits.argmax(-1) == labels).sum(), (labels != IGNORED).sum()


def _mean_of_real(elements: Tensor, tokens: Tokens) -> Tensor:
    """Mean of [B, C] over sequences with tokens."""
    real = (tokens.lengths > 0)[:, None]
    return torch.where(real, elements, 0.0).sum() / (real.sum() * elements.shape[1]).clamp(min=1)


def classification(logits: Tensor, labels: Tensor, tokens: Tokens, problem: str | None) -> Tensor:
    """The loss of sequence classification, logits [B, C], by `BertConfig.problem_type` or, where that is None, by the labels.

    Raises:
        ValueError: on labels of another shape or dtype than the problem's.
    """
    batch, classes = logits.shape
    if problem is None:
        several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        problem = "regression" if classes == 1 else several
    if problem == "single_label_classification":
        return cross_entropy(logits, of_sequences(check_labels("labels", labels, (batch,)), tokens))
    shapes = [(batch, classes)] + ([(batch,)] if classes == 1 else [])
    if tuple(labels.shape) not in shapes:
        raise ValueError(f"labels of {problem} must be {' or '.join(map(str, shapes))}, got {tuple(labels.shape)}")
    wide = _wide(logits)
    targets = labels.reshape(batch, classes).to(wide.dtype)
    loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    return _mean_of_real(loss(wide, targets, reduction="none"), tokens)


def of_group(logits: Tensor, groups: Tensor) -> Tensor:
    """[N, N]: in each sequence's row the logits [N] of its own group, -inf elsewhere. Sums of it do not depend on an order."""
    return logits.masked_fill(groups[:, None] != groups, -torch.inf)


def choices(logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Mean over the sequences with label 1 of their cross-entropy within their group; logits, labels, groups [N]."""
    wide = _wide(logits)
    right = labels == 1
    losses = of_group(wide, groups).logsumexp(-1) - wide
    return torch.where(right, losses, 0.0).sum() / right.sum().clamp(min=1)


def span(logits: Tensor, starts: Tensor, ends: Tensor, tokens: Tokens) -> Tensor:
    """The loss of extractive question answering (Devlin et al., 2018, section 4.2): a softmax over each sequence's own tokens.

    Args:
        logits: [N, 2], of being an answer's first and last token.
        starts, ends: [B] int64, places in the input's own layout: within the sequence where packed, within the row where
            padded. Ignored outside it.
    """
    place = torch.arange(tokens.max_seqlen, device=logits.device)
    lengths, first = tokens.lengths, tokens.cu_seqlens[:-1].to(torch.int64)
    rows = (first[:, None] + place).clamp(max=logits.shape[0] - 1)
    table = _wide(logits)[rows]  # [B, max_seqlen, 2]
    outside = (place >= lengths[:, None])[..., None]
    table = table.masked_fill(outside, torch.finfo(table.dtype).min)
    losses = []
    for side, (name, places) in enumerate((("start_positions", starts), ("end_positions", ends))):
        places = check_labels(name, places, (lengths.shape[0],))
        if tokens.packing is not None:
            seqlen = tokens.shape[1]
            flat = torch.arange(lengths.shape[0], device=places.device) * seqlen + places
            found = tokens.row(torch.where((places >= 0) & (places < seqlen), flat, -1))
            places = torch.where(found >= 0, found - first, -1)
        answered = (places >= 0) & (places < lengths)
        losses.append(cross_entropy(table[:, :, side], torch.where(answered, places, IGNORED)))
    return (losses[0] + losses[1]) / 2
