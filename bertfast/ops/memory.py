"""Fresh memory for results that are written whole: without a page fault for every 4 KB, which took a tenth of a training step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bertfast import _ext

_LARGE = 4 << 20


def fresh(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised, on `like`'s device and of its dtype unless another is given; in huge pages where it is large."""
    made = like.new_empty(shape, dtype=dtype)
    if made.device.type == "cpu" and made.nbytes >= _LARGE and not torch.compiler.is_compiling() and _ext.load():
        torch.ops.bertfast_cpu.expect_whole_use(made)
    return made
