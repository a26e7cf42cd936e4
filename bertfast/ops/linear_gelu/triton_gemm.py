"""GELU inside the product on tensor cores: y = gelu(x W^T + b), and dpre = (dy2 W2) gelu'(pre + b) with its bias gradient.

Persistent programs walk output tiles in an order that keeps rows of x and columns of W in L2. From sm_90 operands and results
travel by bulk copies (TMA, descriptors made on the device); before, by pointers and cp.async. The epilogue takes the
accumulator in slices, so that float32 values of a whole tile and the GELU's temporaries do not spill together. Forward also
stores the product before its bias (rounded to the dtype), from which backward starts; the second kernel is the backward of
the Linear *behind* a GELU joined with the GELU's own, and leaves column sums of dpre, one row a tile, for the bias.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.linear_gelu import tuning
from bertfast.triton import sums
from bertfast.triton.gelu import gelu, gelu_gradient
from bertfast.triton.launch import architecture, cdiv, launch, multiprocessors


@triton.jit
def tile_corner(
    tile, tiles_m, TILES_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr
):
    """(row, col) of a tile: GROUP tile rows are done column by column before the next GROUP."""
    group = tile // (GROUP * TILES_N)
    size = min(tiles_m - group * GROUP, GROUP)
    inside = tile % (GROUP * TILES_N)
    return (group * GROUP + inside % size) * BLOCK_M, inside // size * BLOCK_N


@triton.jit
def operand(ptr, rows, COLS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, TMA: tl.constexpr):
    """A matrix [rows, COLS] as `load_block` and `store_block` take it: a descriptor or the pointer itself."""
    return tl.make_tensor_descriptor(ptr, [rows, COLS], [COLS, 1], [BLOCK_ROWS, BLOCK_COLS]) if TMA else ptr


@triton.jit
def _place(row, col, rows, COLS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    r = row + tl.arange(0, BLOCK_ROWS)[:, None]
    c = col + tl.arange(0, BLOCK_COLS)[None, :]
    return r.to(tl.int64) * COLS + c, (r < rows) & (c < COLS)


@triton.jit
def load_block(
    a, row, col, rows, COLS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, TMA: tl.constexpr
):
    """[BLOCK_ROWS, BLOCK_COLS] from (row, col); zeros outside."""
    if TMA:
        block = a.load([row, col])
    else:
        place, inside = _place(row, col, rows, COLS, BLOCK_ROWS, BLOCK_COLS)
        block = tl.load(a + place, mask=inside, other=0.0)
    return block


@triton.jit
def store_block(
    a, block, row, col, rows, COLS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, TMA: tl.constexpr
):
    if TMA:
        a.store([row, col], block)
    else:
        place, inside = _place(row, col, rows, COLS, BLOCK_ROWS, BLOCK_COLS)
        tl.store(a + place, block, mask=inside)


@triton.jit
def halves(block, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(block, (ROWS, 2, COLS // 2)), (0, 2, 1)))


@triton.jit
def _forward_slice(
    acc, bias_ptr, y, pre, row, col, tokens, N: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    TANH: tl.constexpr, STORE_PRE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    c = col + tl.arange(0, COLS)
    bias = tl.load(bias_ptr + c, mask=c < N, other=0.0).to(tl.float32)
    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    if STORE_PRE:
        store_block(pre, acc.to(dtype), row, col, tokens, N, ROWS, COLS, TMA)
    store_block(y, gelu(acc + bias[None, :], TANH).to(dtype), row, col, tokens, N, ROWS, COLS, TMA)


@triton.jit(do_not_specialize=["tokens"])
def linear_gelu_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, pre_ptr, tokens,
    N: tl.constexpr, K: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr,
    TANH: tl.constexpr, STORE_PRE: tl.constexpr, TMA: tl.constexpr, SPECIALIZE: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = BLOCK_N // SLICES
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    x = operand(x_ptr, tokens, K, BLOCK_M, BLOCK_K, TMA)
    w = operand(w_ptr, N, K, BLOCK_N, BLOCK_K, TMA)
    y = operand(y_ptr, tokens, N, BLOCK_M, S, TMA)
    pre = operand(pre_ptr if STORE_PRE else y_ptr, tokens, N, BLOCK_M, S, TMA)
    for tile in tl.range(tl.program_id(0), tiles_m * TILES_N, PROGRAMS, flatten=FLATTEN, warp_specialize=SPECIALIZE):
        row, col = tile_corner(tile, tiles_m, TILES_N, BLOCK_M, BLOCK_N, GROUP)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            a = load_block(x, row, k, tokens, K, BLOCK_M, BLOCK_K, TMA)
            b = load_block(w, col, k, N, K, BLOCK_N, BLOCK_K, TMA)
            acc = tl.dot(a, b.T, acc)
        if SLICES == 1:
            _forward_slice(acc, bias_ptr, y, pre, row, col, tokens, N, BLOCK_M, S, TANH, STORE_PRE, TMA)
        else:
            left, right = halves(acc, BLOCK_M, BLOCK_N)
            if SLICES == 2:
                _forward_slice(left, bias_ptr, y, pre, row, col, tokens, N, BLOCK_M, S, TANH, STORE_PRE, TMA)
                _forward_slice(right, bias_ptr, y, pre, row, col + S, tokens, N, BLOCK_M, S, TANH, STORE_PRE, TMA)
            else:
                a0, a1 = halves(left, BLOCK_M, BLOCK_N // 2)
                _forward_slice(a0, bias_ptr, y, pre, row, col, tokens, N, BLOCK_M, S, TANH, STORE_PRE, TMA)
                _forward_slice(a1, bias_ptr, y, pre, row, col + S, tokens, N, BLOCK_M, S, TANH, STORE_PRE, TMA)
                a2, a3 = halves(right, BLOCK_M, BLOCK_N // 2)
                _forward_slice(a2, bias_ptr, y, pre, row, col + 2 * S, tokens, N, BLOCK_M, S, TANH, STORE_PRE, TMA)
                _forward_slice(a3, bias_ptr, y, pre, row, col + 3 * S, tokens, N, BLOCK_M, S, TANH, STORE_PRE, TMA)


@triton.jit
def _dgelu_slice(
    acc, bias_ptr, pre, dpre, partial_ptr, row, col, tokens, N: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    TANH: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    c = col + tl.arange(0, COLS)
    bias = tl.load(bias_ptr + c, mask=c < N, other=0.0).to(tl.float32)
    v = load_block(pre, row, col, tokens, N, ROWS, COLS, TMA).to(tl.float32) + bias[None, :]
    slope = acc * gelu_gradient(v, TANH)  # rows past the end: dy2 was read as zeros and so is the product
    store_block(dpre, slope.to(bias_ptr.dtype.element_ty), row, col, tokens, N, ROWS, COLS, TMA)
    tl.store(partial_ptr + (row // ROWS).to(tl.int64) * N + c, tl.sum(slope, 0), mask=c < N)


@triton.jit(do_not_specialize=["tokens"])
def linear_dgelu_kernel(
    dy_ptr, w_ptr, pre_ptr, bias_ptr, dpre_ptr, partial_ptr, tokens,
    N: tl.constexpr, K: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr,
    TANH: tl.constexpr, TMA: tl.constexpr, SPECIALIZE: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = BLOCK_N // SLICES
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    dy = operand(dy_ptr, tokens, K, BLOCK_M, BLOCK_K, TMA)
    w = operand(w_ptr, K, N, BLOCK_K, BLOCK_N, TMA)
    pre = operand(pre_ptr, tokens, N, BLOCK_M, S, TMA)
    dpre = operand(dpre_ptr, tokens, N, BLOCK_M, S, TMA)
    for tile in tl.range(tl.program_id(0), tiles_m * TILES_N, PROGRAMS, flatten=FLATTEN, warp_specialize=SPECIALIZE):
        row, col = tile_corner(tile, tiles_m, TILES_N, BLOCK_M, BLOCK_N, GROUP)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            a = load_block(dy, row, k, tokens, K, BLOCK_M, BLOCK_K, TMA)
            b = load_block(w, k, col, K, N, BLOCK_K, BLOCK_N, TMA)
            acc = tl.dot(a, b, acc)
        if SLICES == 1:
            _dgelu_slice(acc, bias_ptr, pre, dpre, partial_ptr, row, col, tokens, N, BLOCK_M, S, TANH, TMA)
        else:
            left, right = halves(acc, BLOCK_M, BLOCK_N)
            if SLICES == 2:
                _dgelu_slice(left, bias_ptr, pre, dpre, partial_ptr, row, col, tokens, N, BLOCK_M, S, TANH, TMA)
                _dgelu_slice(right, bias_ptr, pre, dpre, partial_ptr, row, col + S, tokens, N, BLOCK_M, S, TANH, TMA)
            else:
                a0, a1 = halves(left, BLOCK_M, BLOCK_N // 2)
                _dgelu_slice(a0, bias_ptr, pre, dpre, partial_ptr, row, col, tokens, N, BLOCK_M, S, TANH, TMA)
                _dgelu_slice(a1, bias_ptr, pre, dpre, partial_ptr, row, col + S, tokens, N, BLOCK_M, S, TANH, TMA)
                a2, a3 = halves(right, BLOCK_M, BLOCK_N // 2)
                _dgelu_slice(a2, bias_ptr, pre, dpre, partial_ptr, row, col + 2 * S, tokens, N, BLOCK_M, S, TANH, TMA)
                _dgelu_slice(a3, bias_ptr, pre, dpre, partial_ptr, row, col + 3 * S, tokens, N, BLOCK_M, S, TANH, TMA)


def _plan(tokens: int, n: int, k: int, device: torch.device, table: str) -> tuple[tuple[int], dict, dict, dict]:
    """(grid, constants up to SLICES, how operands travel, warps and stages) of one product."""
    arch, processors = architecture(device), multiprocessors(device)
    tile = tuning.fused_tile(table, tokens, n, arch, processors)
    m, width, specialize = tile["m"], tile["n"], bool(tile["specialize"])
    tiles, programs = cdiv(tokens, m) * cdiv(n, width), processors * tile["resident"]
    sizes = {"BLOCK_M": m, "BLOCK_N": width, "BLOCK_K": tile["k"], "GROUP": tuning.GROUP, "SLICES": tile["slices"]}
    # Specialised on sm_90 the loops must not be flattened into one, or it is ignored; on sm_100 they must be.
    travel = {"TMA": arch >= 90, "SPECIALIZE": specialize, "FLATTEN": arch >= 100 or not specialize}
    constants = {"N": n, "K": k, "PROGRAMS": programs, **sizes}
    return (min(tiles, programs),), constants, travel, {"warps": tile["warps"], "stages": tile["stages"]}


def linear_gelu_fused(
    x: Tensor, weight: Tensor, bias: Tensor, tanh: bool, store_pre: bool = True
) -> tuple[Tensor, Tensor | None]:
    """(y, pre) of x [T, K], weight [N, K], bias [N], all that `tuning.fused_takes`; pre is None unless stored."""
    (tokens, k), n = x.shape, weight.shape[0]
    y = torch.empty(tokens, n, dtype=x.dtype, device=x.device)
    pre = torch.empty_like(y) if store_pre else None
    grid, constants, travel, options = _plan(tokens, n, k, x.device, "fused_forward")
    constants |= {"TANH": tanh, "STORE_PRE": store_pre, **travel}
    launch(linear_gelu_fwd_kernel, grid, (x, weight, bias, y, pre, tokens), constants, **options)
    return y, pre


def linear_dgelu_fused(dy2: Tensor, weight2: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Through a second Linear and the GELU before it: (dpre [T, N], dbias [N]).

    Args:
        dy2: [T, K], gradient of the second Linear's output.
        weight2: [K, N], the second Linear's weight.
        pre: [T, N], the first Linear's product before its bias.
        bias: [N], the first Linear's.
        tanh: the form of the GELU.

    Raises:
        ValueError: where `tuning.fused_takes` does not hold; nothing owns this sum of two ops yet, so there is no other form.
    """
    if not tuning.fused_takes(dy2, weight2, pre, bias):
        raise ValueError("linear_dgelu_fused: takes contiguous float16 or bfloat16 of sizes that are multiples of 8")
    (tokens, k), n = dy2.shape, weight2.shape[1]
    grid, constants, travel, options = _plan(tokens, n, k, dy2.device, "fused_backward")
    dpre = torch.empty_like(pre)
    rows = cdiv(tokens, constants["BLOCK_M"])
    partial = torch.empty(rows, n, dtype=torch.float32, device=dy2.device)
    constants |= {"TANH": tanh, **travel}
    launch(linear_dgelu_kernel, grid, (dy2, weight2, pre, bias, dpre, partial, tokens), constants, **options)
    return dpre, sums.sum_partials(partial, bias.dtype)
