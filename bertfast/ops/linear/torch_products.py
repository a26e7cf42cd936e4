"""Products by torch's library on a GPU, in the forms that a layer's backward asks for; the column sums are linear_bwd's."""

import torch
from torch import Tensor

from bertfast import _library


def linear_add_dx(dy: Tensor, weight: Tensor, total: Tensor) -> None:
    if total.dtype is dy.dtype:
        total.addmm_(dy, weight)  # beta = 1: the sum is made in the product's accumulators
    else:
        total.add_(torch.mm(dy, weight))


def linear_dweight(dy: Tensor, x: Tensor, dtype: torch.dtype, sums: bool) -> tuple[Tensor, Tensor]:
    if dtype is dy.dtype:
        dweight = torch.mm(dy.t(), x)
    elif dtype is torch.float32 and dy.device.type == "cuda":
        dweight = torch.mm(dy.t(), x, out_dtype=torch.float32)
    elif dtype is torch.float32:
        dweight = torch.mm(dy.t().float(), x.float())
    else:
        dweight = torch.mm(dy.t(), x).to(dtype)
    if not sums:
        return dweight, dweight.new_empty(0)
    if dtype is not dy.dtype:
        return dweight, dy.sum(0, dtype=dtype)  # linear_bwd would round it to dy's dtype first
    *_, dbias = _library.resolved("linear_bwd", "CUDA")(dy, x, dweight, True, False, False)
    return dweight, dbias
