"""linear_cross_entropy on a CPU: the products by chunks of rows, the softmax and its gradient in place in float32.

At most LOGITS_BYTES of logits live at a time, however many tokens are masked. In float16 and bfloat16 the logits are rounded
to that dtype by the product, as eager's are, and the weight gradient is added over chunks in float32. Both passes at 160 x 768
x 30522 with logits kept, two threads of an AMD EPYC: 1.15 times eager's speed in float32, 0.89 times in bfloat16, where the
products are all the time there is and argmax comes on top; the reference would multiply in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bertfast.ops import onednn
from bertfast.ops.masked_lm_loss import reference

LOGITS_BYTES = 64 << 20


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Even pieces of the rows."""
    pieces = -(-rows * vocabulary * 4 // LOGITS_BYTES)
    step = -(-rows // max(pieces, 1))
    return (slice(at, min(at + step, rows)) for at in range(0, rows, max(step, 1)))


def _with_bias(product: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, and ours to overwrite."""
    return product.add(bias) if product.dtype == dtype else product.to(dtype).add_(bias)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vocabulary = weight.shape[0]
    reference.check_labels(labels, vocabulary)
    rows = x.shape[0]
    loss = x.new_empty(rows, dtype=reference.compute_dtype(x))
    lse, argmax = torch.empty_like(loss), labels.new_empty(rows)
    kept = x.new_empty((rows, reference.padded(vocabulary)) if keep else (0,))
    if keep:
        kept[:, vocabulary:] = 0
    for part in _chunks(rows, vocabulary):
        product = onednn.linear(x[part], weight)
        if keep:
            kept[part, :vocabulary] = product
        loss[part], lse[part], argmax[part] = reference.statistics(_with_bias(product, bias, loss.dtype), labels[part])
    return loss, lse, argmax, kept


def backward(
    dloss: Tensor, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, lse: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary = weight.shape[0]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dweight = dbias = None
    for part in _chunks(x.shape[0], vocabulary):
        product = kept[part, :vocabulary] if kept.dim() == 2 else onednn.linear(x[part], weight)
        logits = _with_bias(product, bias, lse.dtype)
        dlogits = reference.gradient_(logits, labels[part], lse[part], dloss[part].to(lse.dtype))
        column_sum = dlogits.sum(0)
        dlogits = dlogits.to(x.dtype)
        dx[part] = onednn.matmul(dlogits, weight)
        product = onednn.matmul(dlogits.t(), x[part])
        if dweight is None or dbias is None:
            dweight, dbias = product, column_sum
        else:
            dweight, dbias = dweight.to(lse.dtype).add_(product), dbias.add_(column_sum)
    if dweight is None or dbias is None:
        return dx, torch.zeros_like(weight, memory_format=torch.contiguous_format), torch.zeros_like(bias)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)
