"""Candidate for linear_gelu on sm_90: bias and GELU, or GELU's gradient, in the epilogue of a CUTLASS product (csrc/cuda).

The erf form is `cheap_erf`'s, on the accumulators as they are. The owner runs where the library was not built, and for what it does
not take: the tanh form, other types than bfloat16, rows that are not aligned to 16 bytes, and results of few tiles.
"""

import torch
from torch import Tensor

from bertfast.ops.linear.cutlass_launch import BLOCK_M, BLOCK_N, check, fills, run, takes
from bertfast.ops.linear_gelu import torch_products
from bertfast.ops.linear_gelu import triton as owner
from bertfast.triton import launch, sums


def _takes(x: Tensor, weight: Tensor, bias: Tensor, columns: int, tanh: bool) -> bool:
    """Whether the library multiplies x and weight, as they lie in rows, to that many columns."""
    return not tanh and takes(x, weight, bias) and fills(x.shape[0], columns, x.device)


def linear_gelu_fwd(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    (tokens, depth), columns = x.shape, weight.shape[0]
    if not _takes(x, weight, bias, columns, tanh):
        return owner.linear_gelu_fwd(x, weight, bias, tanh)
    check("linear_gelu_fwd", (tokens, tokens), (columns, bias.shape[0]), (depth, weight.shape[1]))
    y = torch.empty(tokens, columns, dtype=x.dtype, device=x.device)
    pre = torch.empty_like(y)
    run("linear_gelu", (x, weight, bias, y, pre), (tokens, columns, depth))
    return y, pre


def linear_gelu_infer(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """For a weight [N, K] that lies as its transpose, which is how inference keeps it (`nn.device`)."""
    (tokens, depth), columns = x.shape, weight.shape[0]
    if not _takes(x, weight.t(), bias, columns, tanh):
        return torch_products.linear_gelu_infer(x, weight, bias, tanh)
    check("linear_gelu_infer", (tokens, tokens), (columns, bias.shape[0]), (depth, weight.shape[1]))
    y = torch.empty(tokens, columns, dtype=x.dtype, device=x.device)
    run("linear_gelu_infer", (x, weight, bias, y), (tokens, columns, depth))
    return y


def linear_dgelu(dy: Tensor, weight: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    (tokens, depth), columns = dy.shape, pre.shape[1]
    if not (_takes(dy, weight, bias, columns, tanh) and takes(pre)):
        return torch_products.linear_dgelu(dy, weight, pre, bias, tanh)
    check("linear_dgelu", (tokens, pre.shape[0]), (columns, weight.shape[1]), (depth, weight.shape[0]))
    check("linear_dgelu", (tokens, tokens), (columns, bias.shape[0]), (depth, depth))
    dpre = torch.empty_like(pre)
    width = launch.cdiv(columns, BLOCK_N) * BLOCK_N
    partial = pre.new_empty(launch.cdiv(tokens, BLOCK_M), width, dtype=torch.float32)
    run("linear_dgelu", (dy, weight, pre, bias, dpre, partial), (tokens, columns, depth))
    dbias = sums.sum_partials(partial, bias.dtype)
    return dpre, dbias if width == columns else dbias[:columns].clone()
