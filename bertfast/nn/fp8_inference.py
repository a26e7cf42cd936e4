"""Inference of all layers with three of four products in FP8, each row by the scale of its own largest magnitude.

    x8, s = rows of x          qkv = x8 Wqkv8^T          context = attention(qkv)          out = context Wo^T (16 bits)
    (y, y8) = norm(x + out)    pre = y8 Wup8^T           hidden8 = gelu(pre)               z, z8 = norm(y + hidden8 Wdown8^T)

Norm and GELU cast what they make in the pass that makes it. The output product stays in 16 bits: no pass of ours makes the
context, and a cast of its own costs what FP8 would save. Weights are e4m3 with a scale for each output, cast in every call, as
the copies of `joined` are written: no look at a weight on a GPU says without a wait whether it was edited in place.

Nothing here waits for the device or depends on what tensors hold, so that a CUDA graph can hold it all.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast import _library
from bertfast.nn import device, products
from bertfast.nn.joined import Joined, Weights
from bertfast.nn.launches import run
from bertfast.nn.layout import Packed
from bertfast.nn.parts import Kind, LayerParts

E4M3 = torch.float8_e4m3fn
OPS = ("fp8_cast_rows", "fp8_linear", "fp8_norm_rows", "fp8_gelu_rows")


class Rows(NamedTuple):
    """A matrix [T, C] in e4m3, and the scales [T, 1] of its rows."""

    stored: Tensor
    scale: Tensor


class Launched8(device.Launched):
    """All layers of a stack with products in FP8."""

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, read: Tensor | None) -> Tensor:
        """As `device.Launched.forward`."""
        return layers(x, self.parts, self.kind, Packed(cu_seqlens.contiguous(), max_seqlen, read), self.joined)

    def running(self) -> tuple[Any, ...]:
        """As `device.Launched.running`."""
        return (*super().running(), *(_library.resolved(name, "CUDA") for name in OPS))


def cast(matrix: Tensor) -> Rows:
    """A matrix by a pass of its own."""
    return Rows(*run("fp8_cast_rows", (matrix.contiguous(), E4M3)))


def _product(x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return run("fp8_linear", (x.stored, weight.stored, x.scale, weight.scale, bias, dtype, True))[0]


def layers(x: Tensor, parts: Sequence[LayerParts], kind: Kind, layout: Packed, joined: Joined) -> Tensor:
    """Packed tokens through all layers, without dropout and without gradients; arguments and result as of `device.layers`."""
    x, read = x.contiguous(), layout.read
    last = len(parts) - 1
    with torch.no_grad(), device.on(x.device):
        joined.refresh()
        x8 = cast(x)
        for number, (part, weights) in enumerate(zip(parts, joined.layers, strict=True)):
            casts = [cast(weight.t()) for weight in (weights.qkv, weights.up, weights.down)]
            context = _attended(x8, casts[0], weights, kind, layout, joined.dtype)
            if number == last and read is not None:
                # Every token is a key and a value; only here does a token that nobody reads cease to matter.
                context, x = context.index_select(0, read), x.index_select(0, read)
            eps = float(part.attention.norm.eps), float(part.mlp.norm.eps)
            x, x8 = _fed(context, x, weights, casts[1:], kind, eps, joined.dtype, is_last=number == last)
    return x


def _attended(x8: Rows, qkv8: Rows, weights: Weights, kind: Kind, layout: Packed, dtype: torch.dtype) -> Tensor:
    """x8 [N, E] to the context [N, H D]."""
    qkv = _product(x8, qkv8, weights.qkv_bias, dtype)  # [N, 3 H D]
    split = qkv.view(qkv.shape[0], 3, kind.heads, -1)
    args = split, layout.cu_seqlens, layout.max_seqlen, kind.scale, 0.0, None
    return run("attention_fwd", args)[0].flatten(1)


def _fed(
    context: Tensor,
    x: Tensor,
    weights: Weights,
    casts: Sequence[Rows],
    kind: Kind,
    eps: tuple[float, float],
    dtype: torch.dtype,
    *,
    is_last: bool,
) -> tuple[Tensor, Rows]:
    """The rest of a layer, in which each row is by itself: context [R, H D] and residual [R, E] to [R, E], and that cast."""
    up, down = casts
    w = weights
    out = products.linear(None, context, w.dense.t(), slot=0)
    norm = w.dense_bias, x, w.attention_norm, w.attention_norm_bias, eps[0], 0.0, None
    x, *cast_rows = run("fp8_norm_rows", (out, *norm, E4M3))
    pre = _product(Rows(*cast_rows), up, None, dtype)
    hidden = Rows(*run("fp8_gelu_rows", (pre, w.up_bias, kind.approximate == "tanh", E4M3)))
    out = _product(hidden, down, None, dtype)
    norm = w.down_bias, x, w.norm, w.norm_bias, eps[1], 0.0, None
    if is_last:
        return run("dropout_add_norm_fwd", (out, *norm))[0], hidden
    x, *cast_rows = run("fp8_norm_rows", (out, *norm, E4M3))
    return x, Rows(*cast_rows)
