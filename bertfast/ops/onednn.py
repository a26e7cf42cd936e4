"""Weights reordered once by oneDNN, through torch's private entry points (`bertfast/_torch.py`); plain products without them.

Weights reordered once ("prepacked") make fp32 products about 1.1 to 2 times as fast as `F.linear`, and bias and exact-erf
GELU ride along.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import _torch

ACTIVATIONS = ("none", "gelu", "gelu_tanh")


def _multiply(onednn: _torch.OneDnn, x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    if activation == "none":
        return onednn.linear_pointwise(x, packed, bias, "none", [], "none")
    return onednn.linear_pointwise(x, packed, bias, "gelu", [], "tanh" if activation == "gelu_tanh" else "none")


def _reorder(onednn: _torch.OneDnn, weight: Tensor) -> Tensor:
    # The layout is chosen for this many rows; 1024 measured within 2 % of the exact count from 16 rows up.
    return onednn.reorder_linear_weight(weight.detach(), 1024)


def _mean_what_they_did(onednn: _torch.OneDnn) -> bool:
    """Whether one tiny product of each activation is F.linear's: a private name may come to mean something else."""
    x, weight, bias = (torch.linspace(-1, 1.5, n, device="cpu", dtype=torch.float32) for n in (3 * 16, 8 * 16, 8))
    x, weight = x.reshape(3, 16), weight.reshape(8, 16)
    try:
        packed = _reorder(onednn, weight)
        for activation in ACTIVATIONS:
            for shift in (bias, None):
                y = F.linear(x, weight, shift)
                if activation != "none":
                    y = F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
                if not torch.allclose(_multiply(onednn, x, packed, shift, activation), y, rtol=1e-4, atol=1e-4):
                    return False
    except (RuntimeError, TypeError, ValueError):  # another signature, other names of activations, no such weight
        return False
    return True


@cache
def _entry_points() -> _torch.OneDnn | None:
    """Tried once a process, on plain tensors: the first call may come from inside anybody's mode or autocast."""
    onednn = _torch.onednn()
    if onednn is None:
        return None
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return onednn if _mean_what_they_did(onednn) else None


def available() -> bool:
    """Whether this torch has the entry points, they give what they should, and oneDNN is switched on."""
    if _entry_points.cache_info().currsize == 0 and (_torch.is_watched() or _torch.is_transformed()):
        return False  # under somebody's mode the trial would say nothing of torch
    return _entry_points() is not None


def can_prepack(weight: Tensor) -> bool:
    """Whether `prepack` takes this weight: a dense fp32 or bf16 matrix on a CPU."""
    return (
        available()
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.dim() == 2
        and weight.numel() > 0
        and (weight.dtype == torch.float32 or _torch.onednn_takes_bfloat16())
    )


def _needed() -> _torch.OneDnn:
    onednn = _entry_points()
    if onednn is None:
        raise RuntimeError(
            "this torch cannot prepack weights: ask can_prepack first, and use F.linear where it says no"
        )
    return onednn


def prepack(weight: Tensor) -> Tensor:
    """A reordered copy of weight [N, K], of the same size in memory; opaque, for `linear_packed` only."""
    return _reorder(_needed(), weight)


def linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The product of x [T, K] with a prepacked weight, bias and activation ("none", "gelu", "gelu_tanh") fused."""
    return _multiply(_needed(), x, packed, bias, activation)
