"""y = gelu(pre + b) on [T, F] and its gradients; linear_gelu as cuBLAS's product and these, or as one kernel.

Forward: a program a tile of rows and columns. Backward: a program walks a chunk of rows, writes dpre and keeps the sum of its
columns, so the bias gradient costs no second read; chunks are added in a fixed order (bertfast.triton.sums). Which of
the two makes linear_gelu is `tuning.forward_owner`'s word; both start backward from `pre`, the product before its bias.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.linear.triton import weight_gradients
from bertfast.ops.linear_gelu import reference, tuning
from bertfast.ops.linear_gelu.triton_gemm import linear_gelu_fused
from bertfast.triton import sums
from bertfast.triton.gelu import gelu, gelu_gradient
from bertfast.triton.launch import architecture, cdiv, launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit(do_not_specialize=["rows"])
def bias_gelu_fwd_kernel(
    pre_ptr, bias_ptr, y_ptr, rows, F: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TANH: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    mask = (row < rows) & (col < F)
    place = row.to(tl.int64) * F + col
    pre = tl.load(pre_ptr + place, mask=mask).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask=col < F).to(tl.float32)
    tl.store(y_ptr + place, gelu(pre + bias, TANH).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def bias_gelu_bwd_kernel(
    dy_ptr,
    pre_ptr,
    bias_ptr,
    dpre_ptr,
    partial_ptr,
    rows,
    F: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TANH: tl.constexpr,
):
    chunk = tl.program_id(0)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    bias = tl.load(bias_ptr + col, mask=col < F).to(tl.float32)
    first = chunk * CHUNK
    total = tl.zeros((ROWS, COLS), tl.float32)
    for row in range(first, min(first + CHUNK, rows), ROWS):
        r = row + tl.arange(0, ROWS)[:, None]
        mask = (r < rows) & (col < F)
        place = r.to(tl.int64) * F + col
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        pre = tl.load(pre_ptr + place, mask=mask, other=0.0).to(tl.float32)
        dpre = dy * gelu_gradient(pre + bias, TANH)
        total += tl.where(mask, dpre, 0.0)
        tl.store(dpre_ptr + place, dpre.to(dpre_ptr.dtype.element_ty), mask=mask)
    out = tl.program_id(1) * COLS + tl.arange(0, COLS)
    tl.store(partial_ptr + chunk.to(tl.int64) * F + out, tl.sum(total, 0), mask=out < F)


def bias_gelu_fwd(pre: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    if pre.dtype not in DTYPES:
        return reference.bias_gelu_forward(pre, bias, tanh)
    pre, bias = pre.contiguous(), bias.contiguous()
    rows, cols = pre.shape
    tile = tuning.TABLES.find("bias_gelu_forward", architecture(pre.device))
    y = torch.empty_like(pre)
    grid = cdiv(rows, tile["rows"]), cdiv(cols, tile["cols"])
    constants = {"F": cols, "ROWS": tile["rows"], "COLS": tile["cols"], "TANH": tanh}
    launch(bias_gelu_fwd_kernel, grid, (pre, bias, y, rows), constants, warps=tile["warps"])
    return y


def bias_gelu_bwd(dy: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    if pre.dtype not in DTYPES:
        return reference.bias_gelu_backward(dy, pre, bias, tanh)
    dy, pre, bias = dy.contiguous(), pre.contiguous(), bias.contiguous()
    rows, cols = pre.shape
    tile = tuning.TABLES.find("bias_gelu_backward", architecture(pre.device))
    dpre, count = torch.empty_like(pre), sums.chunks(rows)
    partial = torch.empty(count, cols, dtype=torch.float32, device=pre.device)
    sizes = {"ROWS": tile["rows"], "COLS": tile["cols"]}
    constants = {"F": cols, "CHUNK": sums.chunk_rows(rows), **sizes, "TANH": tanh}
    grid = count, cdiv(cols, tile["cols"])
    launch(bias_gelu_bwd_kernel, grid, (dy, pre, bias, dpre, partial, rows), constants, warps=tile["warps"])
    return dpre, sums.sum_partials(partial, bias.dtype)


def linear_gelu_fwd(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    if tuning.forward_owner(x, weight) == "fused":
        return linear_gelu_fwd_fused(x, weight, bias, tanh)
    return linear_gelu_fwd_split(x, weight, bias, tanh)


def linear_gelu_fwd_split(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """cuBLAS's product, then bias_gelu."""
    pre = F.linear(x, weight)
    return bias_gelu_fwd(pre, bias, tanh), pre


def linear_gelu_fwd_fused(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """One kernel; float32, float64 and sizes that it does not take go to the split form."""
    if not tuning.fused_takes(x, weight, bias):
        return linear_gelu_fwd_split(x, weight, bias, tanh)
    y, pre = linear_gelu_fused(x, weight, bias, tanh)
    assert pre is not None
    return y, pre


def linear_gelu_bwd(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, tanh: bool, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of two forms there is one: given dy, its only fusion is bias_gelu_bwd, and the products are cuBLAS's.

    What a fused backward would add, dy's own product, belongs to the Linear behind: `triton_gemm.linear_dgelu_fused`.
    """
    dpre, dbias = bias_gelu_bwd(dy, pre, bias, tanh)
    return *weight_gradients(dpre, x, weight, needs_dx, needs_dweight), dbias
