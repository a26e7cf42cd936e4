"""Linear layers for inference from our own reordered weights (csrc/cpu/packed_linear.cpp): float32, bfloat16 and int8.

They stand beside oneDNN's (onednn.py): the same rate on thousands of tokens, 1.3 to 1.5 times on a handful, half the
rounding error, and outputs in buffers that the caller owns (measured on AMD Zen 4). No autograd.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bertfast import _ext

ACTIVATIONS = ("none", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class PackedWeight:
    """A weight [N, K] in the order the kernels read: opaque data, and for int8 a scale and a sum for each output."""

    data: Tensor
    scale: Tensor
    sum: Tensor
    outputs: int

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes + self.sum.nbytes


@cache
def available(dtype: torch.dtype, inputs: int, *, int8: bool = False) -> bool:
    """Whether this processor has kernels for x of `dtype` with that many inputs, and they are the fastest there are.

    float32 needs AVX2; bfloat16 too, an even number of inputs, and no AMX, which oneDNN uses: it is multiplied in pairs by
    AVX512-BF16, or as float32 where that is faster (csrc/cpu/isa.h). int8 needs AVX512-BF16 and VNNI and a multiple of 4.
    """
    return _ext.load() is not None and torch.ops.bertfast_cpu.can_pack(dtype, inputs, int8)


def pack(weight: Tensor, dtype: torch.dtype, *, int8: bool = False) -> PackedWeight:
    """Reorder weight [N, K], float32 or bfloat16 on a CPU, for x of `dtype`. ValueError where `available` is false.

    With int8 every output's row is rounded to integers within +-127 of a scale of its own.
    """
    data, scale, total = torch.ops.bertfast_cpu.pack_weight(weight, dtype, int8)
    return PackedWeight(data, scale, total, weight.shape[0])


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(x W^T + bias).

    Args:
        x: [T, K] in the dtype that the weight was packed for. With int8 each token is rounded to 256 steps over
            its own range; a token with a NaN or an infinity gives NaN.
        bias: [N] or None.
        activation: "none", "gelu" (exact erf) or "gelu_tanh".

    Returns:
        [T, N] in x's dtype.

    Raises:
        ValueError: on shapes or a dtype that do not belong to the packed weight, or another activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"packed_linear: activation must be one of {ACTIVATIONS}, got {activation!r}")
    kind = ACTIVATIONS.index(activation)
    return torch.ops.bertfast_cpu.packed_linear(x, weight.data, weight.scale, weight.sum, weight.outputs, bias, kind)
