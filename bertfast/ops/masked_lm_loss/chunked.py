"""linear_cross_entropy on a CPU: torch's products, and between them one C++ pass over the logits each way.

Forward works on rows, which its statistics need whole; backward on words, so that every row of the weight gradient is made
once. At most LOGITS_BYTES of logits beside the kept ones live at a time. In float16 and bfloat16 the logits are rounded to
that dtype by the product, as eager's are. Without the extension, or for another dtype, the passes are the reference's.

Both passes against eager, 20, 160 and 1228 rows x 768 x 30522 with logits kept, processor time of one thread of a Zen 4 (median,
interleaved): float32 1.57, 1.29 and 1.08 times its speed, bfloat16 1.38, 1.12 and 1.03. 95 % of the time are the products, with
the page faults of the weight gradient among them; those are what is won at few rows.
"""

import torch
from torch import Tensor

from bertfast import _ext
from bertfast.ops import products
from bertfast.ops.masked_lm_loss import reference
from bertfast.ops.memory import fresh

# Both passes at 1228 rows took the same in pieces of 4 to 32 MB, within 4 %; float32 in pieces of 128 MB took 7 % more.
LOGITS_BYTES = 32 << 20


def _pieces(total: int, bytes_each: int) -> list[slice]:
    """Even pieces, at least one, of so many rows or words, whose logits take `bytes_each`."""
    count = max(-(-total * bytes_each // LOGITS_BYTES), 1)
    step = max(-(-total // (2 * count)) * 2, 2)  # even: bfloat16 is multiplied in pairs
    return [slice(at, min(at + step, total)) for at in range(0, max(total, 1), step)]


def _native(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16) and _ext.load() is not None


def _with_bias(product: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, and ours to overwrite."""
    return product.add(bias) if product.dtype == dtype else product.to(dtype).add_(bias)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, vocabulary = x.shape[0], weight.shape[0]
    reference.check_labels(labels, vocabulary)
    columns, native, labels = reference.padded(vocabulary), _native(x), labels.contiguous()
    loss = x.new_empty(rows, dtype=reference.compute_dtype(x))
    lse, argmax = torch.empty_like(loss), labels.new_empty(rows)
    bias = bias.to(loss.dtype).contiguous()
    pieces = [slice(0, rows)] if keep else _pieces(rows, columns * x.element_size())
    logits = fresh(x, (pieces[0].stop, columns))
    for part in pieces:
        product = logits[: part.stop - part.start, :vocabulary]
        for words in _pieces(vocabulary, product.shape[0] * x.element_size()):
            products.matmul(x[part], weight[words].t(), out=product[:, words])
        if native:
            torch.ops.bertfast_cpu.cross_entropy_statistics(
                product, bias, labels[part], loss[part], lse[part], argmax[part]
            )
        else:
            loss[part], lse[part], argmax[part] = reference.statistics(
                _with_bias(product, bias, loss.dtype), labels[part]
            )
    if keep:
        logits[:, vocabulary:] = 0
    return loss, lse, argmax, logits if keep else x.new_empty(0)


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
    rows, vocabulary = x.shape[0], weight.shape[0]
    dloss, labels, native = dloss.to(lse.dtype).contiguous(), labels.contiguous(), _native(x)
    added = bias.to(lse.dtype).contiguous()
    pieces = _pieces(vocabulary, rows * x.element_size())
    buffer = fresh(x, (rows, reference.padded(pieces[0].stop)))
    dx = lse.new_zeros(x.shape if needs_dx else (0,))
    dweight = fresh(weight, weight.shape if needs_dweight else (0,))
    dbias = torch.empty_like(added)
    for words in pieces:
        some, dlogits = weight[words], buffer[:, : words.stop - words.start]
        logits = kept[:, words] if kept.dim() == 2 else products.matmul(x, some.t(), out=dlogits)
        if native:
            torch.ops.bertfast_cpu.cross_entropy_gradient(
                logits, added[words], labels, lse, dloss, words.start, dlogits, dbias[words]
            )
        else:
            wide = reference.gradient_(_with_bias(logits, added[words], lse.dtype), labels, lse, dloss, words.start)
            dbias[words], dlogits = wide.sum(0), wide.to(x.dtype)
        if needs_dx:
            dx += products.matmul(dlogits, some)
        if needs_dweight:
            products.matmul(dlogits.t(), x, out=dweight[words])
    return dx.to(x.dtype), dweight, (dbias if needs_dbias else dbias.new_empty(0)).to(bias.dtype)
