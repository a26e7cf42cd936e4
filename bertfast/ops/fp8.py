"""What an FP8 tensor is, in eager torch: real = stored * scale.

`scale` is float32, [] for a tensor or [rows, 1] for rows. Values beyond a format's largest number are clamped to it, as an
infinity is; NaN stays NaN. `amax`, float32 [], is raised in place to the largest magnitude met, infinity and NaN included.
"""

import torch
from torch import Tensor

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def scale_of(amax: Tensor, largest: float | Tensor, before: float | Tensor, margin: float = 0.0) -> Tensor:
    """The scale by which the largest magnitude becomes a format's largest number, 2^margin below it.

    before: the scale where amax is 0 or not finite.
    """
    return torch.where((amax > 0) & amax.isfinite(), amax * 2.0**margin / largest, before)


def quantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x / scale in FP8, by a product with the float32 reciprocal of the scale."""
    largest = LARGEST[dtype]
    return (x * scale.reciprocal()).clamp(-largest, largest).to(dtype)


def cast(x: Tensor, scale: Tensor, amax: Tensor, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, Tensor]:
    """x [T, C] in FP8 and, where `transposed`, its copy [C, T]; `amax` is raised to the largest |x|."""
    if x.numel():
        amax.copy_(torch.maximum(amax, x.abs().max().to(amax.dtype)))
    y = quantise(x, scale, dtype).contiguous()
    return y, y.t().contiguous() if transposed else y.new_empty(0)


def cast_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, C] in FP8 with a scale [T, 1] from each row's largest magnitude; 1 where that is 0 or not finite."""
    amax = x.abs().amax(-1, keepdim=True).float()
    scale = scale_of(amax, LARGEST[dtype], 1.0)
    return quantise(x, scale, dtype).contiguous(), scale
