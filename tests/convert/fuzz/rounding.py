"""Products that add up in other orders: right code with other rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bertfast.testing import rounding_step


@contextmanager
def split_products(parts: int, once: bool) -> Iterator[None]:
    """`F.linear` as a sum over pieces of its terms, rounded to its dtype once or at every piece; the last digit of what a layer
    norm gives is drawn."""
    linear_before, norm_before = torch.nn.functional.linear, torch.nn.functional.layer_norm
    generator = torch.Generator().manual_seed(parts + 10 * once)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        pieces = list(zip(x.chunk(parts, -1), weight.chunk(parts, -1), strict=False))
        wide = once and not torch.is_autocast_enabled("cpu") and x.dtype in (torch.bfloat16, torch.float16)
        products = [linear_before(*((a.float(), b.float()) if wide else (a, b))) for a, b in reversed(pieces)]
        total = sum(products[1:], products[0])
        return (total if bias is None else total + bias).to(x.dtype if wide else products[0].dtype)

    def layer_norm(*args: Any, **kwargs: Any) -> Tensor:
        y = norm_before(*args, **kwargs)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else y.dtype
        noise = torch.rand(y.shape, generator=generator) * 2 - 1
        return y + y.detach() * (noise * rounding_step(dtype)).to(y.dtype)

    torch.nn.functional.linear, torch.nn.functional.layer_norm = linear, layer_norm
    try:
        yield
    finally:
        torch.nn.functional.linear, torch.nn.functional.layer_norm = linear_before, norm_before
