"""What tests of passes that write FP8 ask: the nearest number of the format, and errors of what is read back."""

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def distance_to_nearest(x: Tensor, dtype: torch.dtype) -> Tensor:
    """How far float64 numbers are from the nearest that the format has: beyond its ends, from its ends."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    numbers = numbers[numbers.isfinite()].unique()
    after = torch.searchsorted(numbers, x.contiguous()).clamp(1, len(numbers) - 1)
    return torch.minimum((x - numbers[after - 1]).abs(), (x - numbers[after]).abs())


def assert_nearest(stored: Tensor, exact: Tensor, scale: Tensor | float, allowance: Tensor | float, what: str) -> None:
    """AssertionError unless `stored`, FP8, is `exact` / scale rounded to nearest, where exact, float64, may be off by `allowance`.

    An allowance moves a value over the middle between two numbers: what is stored then is farther than the nearest by twice that.
    """
    v = exact / scale
    limit = distance_to_nearest(v, stored.dtype) + 2 * torch.as_tensor(allowance).double() / scale
    wrong = (stored.double() - v).abs() > limit
    assert not wrong.any(), (
        f"{what}: {int(wrong.sum())} of {wrong.numel()} are not the nearest, the first {v[wrong][:3]}"
    )
