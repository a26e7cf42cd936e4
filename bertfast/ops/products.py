"""Matrix products without autograd, by the fastest there is for this processor, dtype and layout.

On processors that are not Intel's they are our own (csrc/cpu/product.cpp): measured on AMD Zen 4 at the sizes of a training
step, 1.02 to 1.15 times oneDNN's rate in float32 (MKL's is 0.85 to 0.95 of that) and 1.03 to 1.1 times in bfloat16, and
they read a bfloat16 product's weights from float32 and write its gradients to float32, where others need a pass for each.
Of fewer than 32 tokens they are torch's: a step of BERT-base on 16 takes 0.86 to 0.95 of the time that it takes by ours.
On an Intel Xeon with AVX512-BF16, and AMX hidden, MKL's are 1.05 to 1.2 times ours in float32, and in bfloat16 all are at 0.65
of that: where pairs of bfloat16 are slower than floats, their products are torch's on widened numbers, and parameters
kept in float32 enter them unrounded. Elsewhere, and for what our kernels do not take, products are torch's.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from bertfast import _ext
from bertfast.ops.memory import fresh

_MANY_ROWS = 64  # below, widening the weights costs more than it spares
_FEW = 32  # tokens; below, our kernels spend more on the order of the weights than they gain


@cache
def preferred() -> bool:
    """Whether our own products are asked first: MKL knows Intel's processors better, and AMX where they have it."""
    try:
        with open("/proc/cpuinfo") as file:
            return _ext.load() is not None and "GenuineIntel" not in file.read()
    except OSError:
        return False


@cache
def widens() -> bool:
    """Whether bfloat16 is multiplied faster as float32 here: no AMX, and no fast instruction for it."""
    return _ext.load() is not None and bool(torch.ops.bertfast_cpu.widens_bfloat16())


def _usable(tensors: Sequence[Tensor]) -> bool:
    return not torch.compiler.is_compiling() and all(
        type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors
    )


def _is_short(a: Tensor, out: Tensor | None) -> bool:
    """Whether few rows, or in a weight's gradient few terms of each sum, make torch's product the faster one."""
    return min(a.shape) < _FEW and (out is None or out.dtype == a.dtype)


def _multiply(a: Tensor, b: Sequence[Tensor], along: int, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """`product` by torch, all of one dtype, `out` too where it is given."""
    if len(b) > 1 and (a.dtype == torch.float32 or (along and _is_short(a, out))):
        y = fresh(a, (a.shape[0], sum(t.shape[1] for t in b) if along else b[0].shape[1])) if out is None else out
        return _multiply_parts(a, b, along, bias, y)
    whole = b[0] if len(b) == 1 else torch.cat(list(b), along)
    y = fresh(a, (a.shape[0], whole.shape[1])) if out is None else out
    return torch.mm(a, whole, out=y) if bias is None else torch.addmm(bias, a, whole, out=y)


def _multiply_parts(a: Tensor, b: Sequence[Tensor], along: int, bias: Tensor | None, y: Tensor) -> Tensor:
    """The same into y without the b_i joined, which would copy every weight. With along = 0 y must be float32: it holds the sums
    between one product and the next."""
    at = 0
    for part in b:
        end = at + part.shape[along]
        if along:
            mine = None if bias is None else bias[at:end]
            _multiply(a, [part], 1, mine, y[:, at:end])
        elif at == 0:
            _multiply(a[:, :end], [part], 0, bias, y)
        else:
            y.addmm_(a[:, at:end], part)
        at = end
    if not along and at != a.shape[1]:
        raise ValueError(f"product: the matrices have {at} rows in all, where a has {a.shape[1]} columns")
    if bias is not None and bias.shape != y.shape[1:]:
        raise ValueError(f"product: bias must be [{y.shape[1]}], got {tuple(bias.shape)}")
    return y


def product(
    a: Tensor,
    b: Sequence[Tensor],
    *,
    along: int = 0,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """a [M, K] times the b_i joined, in a's dtype, plus bias [N].

    Args:
        a: [M, K]; like the b_i it may be a transposed view.
        b: matrices that make [K, N] one below the other (`along` 0) or side by side (1); cast to a's dtype.
        out: [M, N] of any dtype, to write to and to return; of a's dtype, and made here, by default.
    """
    usable = _usable([a, *b])
    wide = usable and a.dtype == torch.bfloat16 and a.shape[0] >= _MANY_ROWS and widens()
    if (
        usable
        and not wide
        and preferred()
        and not _is_short(a, out)
        and torch.ops.bertfast_cpu.can_multiply(a, b, along)
    ):
        if out is None:
            out = fresh(a, (a.shape[0], sum(t.shape[1] for t in b) if along else b[0].shape[1]))
        if out.dtype in (torch.float32, torch.bfloat16) and out.stride(1) == 1:
            torch.ops.bertfast_cpu.product(a, b, along, bias, out)
            return out
    dtype = torch.float32 if wide else a.dtype
    into = out if out is not None and out.dtype == dtype else None
    # Autocast would round what was widened; to turn it off costs as much as a product of sixteen rows.
    with torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext():
        cast = None if bias is None else bias.to(dtype)
        y = _multiply(a.to(dtype), [t.to(dtype) for t in b], along, cast, into)
    if out is None:
        return y.to(a.dtype)
    return y if into is not None else out.copy_(y)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N]."""
    return product(x, [weight.t()], bias=bias)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [M, K] times b [K, N], either of which may be a transposed view; written to out [M, N] where it is given."""
    return product(a, [b], out=out)
