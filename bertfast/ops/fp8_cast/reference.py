"""Eager meaning of fp8_cast; `bertfast.ops.fp8` says what an FP8 tensor is."""

import torch
from torch import Tensor

from bertfast.ops import fp8


def cast(x: Tensor, scale: Tensor, amax: Tensor, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, Tensor]:
    """x [T, C] in FP8, and its copy [C, T]."""
    return fp8.cast(_wide(x), scale, amax, dtype, transposed)


def cast_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, C] in FP8 and the scales [T, 1] of its rows."""
    return fp8.cast_rows(_wide(x), dtype)


def cast_weights(weights: list[Tensor], scales: Tensor, casts: list[Tensor], transposed: list[Tensor]) -> None:
    """weights [N, K] each into a cast [N, K] and, where there is a list of them, a transposed one [K, N], by scales [n]."""
    for number, (weight, target) in enumerate(zip(weights, casts, strict=True)):
        wide = _wide(weight)
        amax = wide.abs().max().float()
        largest = fp8.LARGEST[target.dtype]
        scales[number] = fp8.scale_of(amax, largest, 1.0)
        target.copy_(fp8.quantise(wide, scales[number], target.dtype))
        if transposed:
            transposed[number].copy_(target.t())


def update_scales(history: Tensor, amax: Tensor, scale: Tensor, largest: Tensor, margin: float) -> None:
    """Shift `amax` [n] into `history` [H, n], zero it, and make of the largest there the next `scale` [n].

    scale = 2^margin * max(history) / largest of the format [n]; a tensor that was all zeros keeps its scale, and an amax that is
    not finite enters no history.
    """
    kept = torch.where(amax.isfinite(), amax, history[0])
    history.copy_(torch.cat((kept[None], history[:-1])))
    top = history.amax(0)
    scale.copy_(fp8.scale_of(top, largest, scale, margin))
    amax.zero_()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
