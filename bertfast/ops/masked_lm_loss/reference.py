"""Eager meaning of linear_cross_entropy, the vocabulary half of BERT's masked-LM loss.

    logits = x W^T + b,   lse = log(sum(exp(logits))),   loss = lse - logits[label],   argmax: the first of the largest logits
    dlogits = (exp(logits - lse) - onehot(label)) * dloss

Arithmetic in float32 (float64 for float64). A label of -100 makes its row count for nothing: loss 0, lse 0, argmax -1,
no gradient. Backward multiplies x and W again, so that no logits live between the passes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.ops.dropout_add_norm.reference import compute_dtype

IGNORED = -100


def bad_labels(labels: Tensor, vocabulary: int) -> Tensor:
    """Which labels name no word and are not IGNORED either."""
    return ((labels < 0) | (labels >= vocabulary)) & (labels != IGNORED)


def check_labels(labels: Tensor, vocabulary: int, places: Tensor | None = None) -> None:
    """IndexError where a label on a CPU names no word. `places`: what to call each row, where not its number.

    Labels elsewhere are not looked at, which would wait for the device: their loss becomes NaN.
    """
    if labels.device.type != "cpu":
        return
    bad = bad_labels(labels, vocabulary)
    if bad.any():
        row = int(bad.nonzero()[0])
        place = row if places is None else int(places[row])
        raise IndexError(
            f"masked_lm_loss: label {int(labels[row])} at place {place} is outside the vocabulary of {vocabulary} words"
        )


def statistics(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """loss, lse and argmax of each row of logits [M, V]."""
    ignored, bad = labels == IGNORED, bad_labels(labels, logits.shape[1])
    lse = logits.logsumexp(1)
    at_label = logits.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    lse = lse.masked_fill(bad, float("nan"))  # backward, which starts from it, is poisoned too
    loss = (lse - at_label).masked_fill(ignored, 0)
    return loss, lse.masked_fill(ignored, 0), logits.argmax(1).masked_fill(ignored, -1)


def gradient_(logits: Tensor, labels: Tensor, lse: Tensor, dloss: Tensor) -> Tensor:
    """Overwrite logits [M, V] by their gradient."""
    ignored = (labels == IGNORED)[:, None]
    logits.sub_(lse[:, None]).exp_()
    column = labels.clamp(0, logits.shape[1] - 1)[:, None]
    logits.scatter_add_(1, column, logits.new_full((1, 1), -1.0).expand(column.shape))
    return logits.mul_(dloss[:, None]).masked_fill_(ignored, 0)


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = compute_dtype(x)
    return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))


def forward(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_labels(labels, weight.shape[0])
    return statistics(_logits(x, weight, bias), labels)


def backward(
    dloss: Tensor, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits = _logits(x, weight, bias)
    dlogits = gradient_(logits, labels, lse, dloss.to(logits.dtype))
    dx, dweight = dlogits @ weight.to(logits.dtype), dlogits.t() @ x.to(logits.dtype)
    return dx.to(x.dtype), dweight.to(weight.dtype), dlogits.sum(0).to(bias.dtype)
