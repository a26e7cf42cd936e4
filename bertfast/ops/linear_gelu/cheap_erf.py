"""Candidate for linear_gelu and its elementwise half: the erf form in 16-bit types with a cheaper erfc.

    gelu(x) = x (1 - q) for x >= 0, x q below,   q = erfc(|x| / sqrt 2) / 2 = exp(-x x / 2) t (c1 + c2 t + c3 t t + c4 t t t),
    t = 1 / (1 + p |x|)

That is Hastings' form (Abramowitz and Stegun, 7.1.25 to 7.1.28) with other numbers: theirs keep the absolute error of erf small,
these the relative error of erfc, which the negative tail of gelu is proportional to. They are the weighted Chebyshev fit on
|x| <= 6 that is exact at 0 (a linear program over 4,001 points) for each p, and the p whose error is least: 7.3e-5, a fiftieth
of bfloat16's step and a thirteenth of float16's. Below -6 gelu is under 6e-9; float32's own formula, v (1 + erf) / 2, has lost
all its digits there. With erf both passes are bound by instructions (38 an element), with this by memory. The bias gradient's last
sums end in the backward kernel (`triton.ending`).

float32, float64 and the tanh form are the owner's. Infinities and NaN give what its formula gives.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.linear.triton import weight_gradients
from bertfast.ops.linear_gelu import triton as owner
from bertfast.triton import ending, launch, sums, tables

TABLES = tables.load("linear_gelu.cheap_erf", Path(__file__).with_suffix(".json"))
DTYPES = (torch.float16, torch.bfloat16)
P = 0.2863593
COEFFICIENTS = (0.10664848, 0.17286672, -0.06027722, 0.28076202)  # of t, t t, ...: halved, as q needs them

_INTERPRETED = tl.constexpr(launch.INTERPRETED)
_P = tl.constexpr(P)
_C1, _C2, _C3, _C4 = (tl.constexpr(c) for c in COEFFICIENTS)
_EXPONENT = tl.constexpr(-0.5 * math.log2(math.e))
_DENSITY_AT_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def _reciprocal(x):
    """1 / x in one instruction, of a relative error of 2^-23."""
    if _INTERPRETED:
        y = 1.0 / x
    else:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def _exp2(x):
    """2^x in one instruction, of a relative error of 2^-22; subnormal results are 0."""
    if _INTERPRETED:
        y = tl.exp2(x)
    else:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def _tail(x):
    """(q / e, e) with e = exp(-x x / 2): q is their product."""
    t = _reciprocal(tl.abs(x) * _P + 1.0)
    return t * (((_C4 * t + _C3) * t + _C2) * t + _C1), _exp2(x * x * _EXPONENT)


@triton.jit
def gelu(x):
    scaled, e = _tail(x)
    q = e * scaled
    return x * tl.where(x < 0, q, 1.0 - q)


@triton.jit
def gelu_gradient(x):
    """Phi(x) + x phi(x) = 1/2 + sign(x) (1/2 + e (|x| phi(0) - q / e))."""
    scaled, e = _tail(x)
    half = e * (tl.abs(x) * _DENSITY_AT_0 - scaled) + 0.5
    return 0.5 + tl.where(x < 0, -half, half)


@triton.jit(do_not_specialize=["rows"])
def cheap_gelu_fwd_kernel(
    pre_ptr, bias_ptr, y_ptr, rows, F: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]  # [1, COLS]
    mask = (row < rows) & (col < F)
    place = row.to(tl.int64) * F + col
    pre = tl.load(pre_ptr + place, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, gelu(pre + bias).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def cheap_gelu_bwd_kernel(
    dy_ptr, pre_ptr, bias_ptr, dpre_ptr, partial_ptr, counter_ptr, dbias_ptr, rows,
    F: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """dpre of a chunk of rows and some columns, and the sums of these columns. Programs beside one another share rows."""
    chunk = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]  # [1, COLS]
    bias = tl.load(bias_ptr + col, mask=col < F, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLS), tl.float32)
    first = chunk * CHUNK
    # Staged: the next rows are on their way while these are worked on, a fifth of the time.
    for row in tl.range(first, min(first + CHUNK, rows), ROWS, num_stages=STAGES):
        r = row + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
        mask = (r < rows) & (col < F)
        place = r.to(tl.int64) * F + col
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        pre = tl.load(pre_ptr + place, mask=mask, other=0.0).to(tl.float32)
        dpre = dy * gelu_gradient(pre + bias)
        total += dpre  # past the last row dy is 0
        tl.store(dpre_ptr + place, dpre.to(dpre_ptr.dtype.element_ty), mask=mask)
    out = tl.program_id(0) * COLS + tl.arange(0, COLS)
    tl.store(partial_ptr + chunk.to(tl.int64) * F + out, tl.sum(total, 0), mask=out < F)
    if counter_ptr is not None:
        ending.end(partial_ptr, counter_ptr, dbias_ptr, tl.program_id(0), chunk, tl.num_programs(1), F, COLS, DEEP)


def bias_gelu_fwd(pre: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    if tanh or pre.dtype not in DTYPES:
        return owner.bias_gelu_fwd(pre, bias, tanh)
    pre, bias = pre.contiguous(), bias.contiguous()
    rows, cols = pre.shape
    tile = TABLES.find("forward", launch.architecture(pre.device))
    y = torch.empty_like(pre)
    grid = launch.cdiv(rows, tile["rows"]), launch.cdiv(cols, tile["cols"])
    constants = {"F": cols, "ROWS": tile["rows"], "COLS": tile["cols"]}
    launch.launch(cheap_gelu_fwd_kernel, grid, (pre, bias, y, rows), constants, warps=tile["warps"])
    return y


def bias_gelu_bwd(dy: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    if tanh or pre.dtype not in DTYPES:
        return owner.bias_gelu_bwd(dy, pre, bias, tanh)
    dy, pre, bias = dy.contiguous(), pre.contiguous(), bias.contiguous()
    rows, cols = pre.shape
    tile = TABLES.find("backward", launch.architecture(pre.device))
    chunk = min(sums.chunk_rows(rows), tile["chunk"])
    dpre, dbias = torch.empty_like(pre), torch.empty_like(bias)
    if not rows:
        return dpre, dbias.zero_()
    grid = launch.cdiv(cols, tile["cols"]), launch.cdiv(rows, chunk)
    partial = ending.partials(grid[1], cols, pre.device)
    counter = ending.counter_of(pre, *grid) if tile["ends"] else None
    sizes = {"ROWS": tile["rows"], "COLS": tile["cols"], "STAGES": tile["stages"]}
    constants = {"F": cols, "CHUNK": chunk, **sizes, "DEEP": counter is not None and ending.is_deep(grid[1])}
    args = (dy, pre, bias, dpre, partial, counter, None if counter is None else dbias, rows)
    launch.launch(cheap_gelu_bwd_kernel, grid, args, constants, warps=tile["warps"])
    if not tile["ends"]:
        sums.add_up(partial[: grid[1]], dbias)
    elif counter is None:
        ending.add_up(partial, grid[1], dbias, tile["cols"], tile["warps"])
    return dpre, dbias


def linear_gelu_fwd(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """cuBLAS's product, then `bias_gelu_fwd`."""
    pre = F.linear(x, weight)
    return bias_gelu_fwd(pre, bias, tanh), pre


def linear_gelu_bwd(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, tanh: bool, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dpre, dbias = bias_gelu_bwd(dy, pre, bias, tanh)
    return *weight_gradients(dpre, x, weight, needs_dx, needs_dweight), dbias
