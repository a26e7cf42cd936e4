"""The only file that touches torch's private oneDNN entry points, each with a plain fallback.

Two gains are behind them. Weights reordered once ("prepacked") make fp32 products about 1.1 to 2 times as fast as
`F.linear`, and bias and exact-erf GELU ride along. And where MKL is not on an Intel processor its fp32 product runs at half
of oneDNN's rate, so unpacked products of training go to oneDNN there too (measured on AMD Zen 5: 190 against 420 GFLOP/s).
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.ops.memory import fresh

ACTIVATIONS = ("none", "gelu", "gelu_tanh")

# oneDNN adds a fp32 product's K terms in one running sum, MKL in short ones: at K = 768 its root mean square error is
# 1.5 times MKL's, at 3072 it is 2.2 times, and a weight gradient has as many terms as there are tokens. Even pieces of at
# most 1024 keep it at 1.6 times.
_LONGEST_SUM = 1024


@cache
def available() -> bool:
    """Whether this torch has the entry points and oneDNN is switched on."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn._linear_pointwise, "binary")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


@cache
def prefers_unpacked() -> bool:
    """Whether oneDNN beats the BLAS behind `F.linear` on fp32 weights as they are: on processors that are not Intel's."""
    try:
        with open("/proc/cpuinfo") as file:
            return available() and "GenuineIntel" not in file.read()
    except OSError:
        return False


def _usable(x: Tensor, weight: Tensor) -> bool:
    """Whether `_unpacked` takes these. Shapes that do not fit are left to stock, whose errors say so; oneDNN's do not."""
    tensors = (x, weight)
    return (
        not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.numel() > 0 for t in tensors)
        and all(t.dtype == torch.float32 and t.dim() == 2 for t in tensors)
        and x.shape[1] == weight.shape[1]
        and prefers_unpacked()
    )


def _unpacked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, a long sum in pieces."""
    terms = x.shape[1]
    step = max(-(-terms // -(-terms // _LONGEST_SUM)), 1)
    y = torch.ops.mkldnn._linear_pointwise(x[:, :step], _dense(weight[:, :step]), bias, "none", [], "none")
    for at in range(step, terms, step):
        part = slice(at, at + step)
        y = torch.ops.mkldnn._linear_pointwise.binary(x[:, part], y, _dense(weight[:, part]), None, "add")
    return y


def _dense(weight: Tensor) -> Tensor:
    """A weight without gaps between its rows or its columns: on any other oneDNN runs its reference loop, 100 times slower."""
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N]. No autograd of its own."""
    if _usable(x, weight) and (bias is None or bias.shape == weight.shape[:1]):
        # oneDNN's entry point reads a bias as if it were contiguous.
        return _unpacked(x, weight, None if bias is None else bias.contiguous())
    return F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [M, K] times b [K, N], either of which may be a transposed view. No autograd of its own.

    out: [M, N] to write to and to return. oneDNN's entry point takes none: small outputs are worth the copy, large ones
    should be made in pieces.
    """
    if not _usable(a, b.t()):
        return torch.mm(a, b, out=fresh(a, (a.shape[0], b.shape[1])) if out is None else out)
    product = _unpacked(a, b.t(), None)
    return product if out is None else out.copy_(product)


def can_prepack(weight: Tensor) -> bool:
    """Whether `prepack` takes this weight: a dense fp32 or bf16 matrix on a CPU."""
    return (
        available()
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.dim() == 2
        and weight.numel() > 0
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def prepack(weight: Tensor) -> Tensor:
    """A reordered copy of weight [N, K], of the same size in memory; opaque, for `linear_packed` only."""
    # The layout is chosen for this many rows; 1024 measured within 2 % of the exact count from 16 rows up.
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1024)


def linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The product of x [T, K] with a prepacked weight, bias and activation ("none", "gelu", "gelu_tanh") fused."""
    if activation == "none":
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "none")
    return torch.ops.mkldnn._linear_pointwise(
        x, packed, bias, "gelu", [], "tanh" if activation == "gelu_tanh" else "none"
    )


def linear_activated(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The same from the plain weight, for where nothing can be prepacked."""
    y = linear(x, weight, bias)
    return y if activation == "none" else F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
