"""Candidate for linear on sm_90: a weight's gradient by CUTLASS's stream-K (csrc/cuda), which cuts the tiles of the last round.

The owner runs where the library was not built, and for what it does not take: other types than bfloat16, for operands and result,
rows that are not aligned to 16 bytes, and few tokens.
"""

import torch
from torch import Tensor

from bertfast import _cuda, _library
from bertfast.ops.linear import torch_products
from bertfast.ops.linear.cutlass_launch import check, run, takes
from bertfast.triton import launch

# Fewer tokens than this leave little to multiply for each sum of a tile's parts. Predicted, never measured.
LEAST_TOKENS = 1024


def linear_dweight(dy: Tensor, x: Tensor, dtype: torch.dtype, sums: bool) -> tuple[Tensor, Tensor]:
    (tokens, rows), columns = dy.shape, x.shape[1]
    if not (dtype is dy.dtype and tokens >= LEAST_TOKENS and takes(dy, x)):
        return torch_products.linear_dweight(dy, x, dtype, sums)
    check("linear_dweight", (rows, rows), (columns, columns), (tokens, x.shape[0]))
    dweight = dy.new_empty(rows, columns)
    size = _cuda.dweight_workspace(launch.multiprocessors(dy.device), tokens, rows, columns)
    workspace = torch.empty(size, dtype=torch.uint8, device=dy.device)
    run("linear_dweight", (dy, x, dweight), (tokens, rows, columns), workspace)
    if not sums:
        return dweight, dy.new_empty(0)
    *_, dbias = _library.resolved("linear_bwd", "CUDA")(dy, x, dweight, True, False, False)
    return dweight, dbias
