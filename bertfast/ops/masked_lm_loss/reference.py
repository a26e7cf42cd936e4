"""Eager meaning of linear_cross_entropy, the vocabulary half of BERT's masked-LM loss.

    logits = x W^T + b,   lse = log(sum(exp(logits))),   loss = lse - logits[label],   argmax: the first of the largest logits
    dlogits = (exp(logits - lse) - onehot(label)) * dloss

Arithmetic in float32 (float64 for float64). A label of -100 makes its row count for nothing: loss 0, lse 0, argmax -1,
no gradient. Kept for backward, where asked for: x W^T [M, V padded], without the bias and in x's dtype; else backward
multiplies again.
"""

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
            f"masked_lm_loss: label {int(labels[row])} at place {place} is outside the vocabulary of {vocabulary} words; "
            "was the text tokenised for another model? Tokens that are not to be predicted have ignore_index"
        )


def padded(vocabulary: int) -> int:
    """Columns of kept logits: rows of 30522 would not begin at multiples of 16 bytes, which GPUs read at once."""
    return (vocabulary + 63) // 64 * 64


def statistics(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """loss, lse and argmax of each row of logits [M, V]."""
    ignored, bad = labels == IGNORED, bad_labels(labels, logits.shape[1])
    log_p, argmax = logits.log_softmax(1), logits.argmax(1)
    loss = -log_p.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    # Taken at the largest logit, which is finite where any is.
    lse = (logits.gather(1, argmax[:, None]) - log_p.gather(1, argmax[:, None]))[:, 0]
    loss, lse = (t.masked_fill(bad, float("nan")).masked_fill(ignored, 0) for t in (loss, lse))
    return loss, lse, argmax.masked_fill(ignored, -1)


def gradient_(logits: Tensor, labels: Tensor, lse: Tensor, dloss: Tensor, first: int = 0) -> Tensor:
    """Overwrite logits [M, ...], those of word `first` and the following ones, by their gradient."""
    ignored = labels == IGNORED
    logits.sub_(lse[:, None]).exp_()
    column = labels[:, None] - first
    here = (column >= 0) & (column < logits.shape[1])
    logits.scatter_add_(1, column.clamp(0, logits.shape[1] - 1), -here.to(logits.dtype))
    logits.mul_(dloss[:, None])
    # Not by a dloss of 0: a NaN in an ignored row must not come out. On a CPU a look is cheaper than the pass.
    return logits.masked_fill_(ignored[:, None], 0) if logits.device.type != "cpu" or ignored.any() else logits


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vocabulary, dtype = weight.shape[0], compute_dtype(x)
    check_labels(labels, vocabulary)
    product = F.linear(x.to(dtype), weight.to(dtype))
    kept = F.pad(product.to(x.dtype), (0, padded(vocabulary) - vocabulary)) if keep else x.new_empty(0)
    return *statistics(product + bias.to(dtype), labels), kept


def backward(
    dloss: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    lse: Tensor,
    kept: Tensor,
    needs_dx: bool,
    needs_dweight: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x)
    has_kept = kept.dim() == 2
    product = kept[:, : weight.shape[0]].to(dtype) if has_kept else F.linear(x.to(dtype), weight.to(dtype))
    dlogits = gradient_(product + bias.to(dtype), labels, lse, dloss.to(dtype))
    return (
        (dlogits @ weight.to(dtype)).to(x.dtype) if needs_dx else x.new_empty(0),
        (dlogits.t() @ x.to(dtype)).to(weight.dtype) if needs_dweight else weight.new_empty(0),
        dlogits.sum(0).to(bias.dtype) if needs_dbias else bias.new_empty(0),
    )
