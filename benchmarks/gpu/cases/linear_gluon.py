"""The products of a layer by the candidates in Gluon, at BERT-base's and -large's sizes: beside cuBLAS, and beside the op's owner.

For sm_90 alone; elsewhere these launchers are their owners. Bytes count each matrix once.

Predictions come from two prototypes of this kernel on an H200, in bfloat16 with tiles of 128 x 256: 16384 x 3072 x 768 took 114 us
plain, 142.5 with GELU and what is before it, 130.6 with GELU alone; 16384 x 4096 x 1024 took 192, 231 and 214. That is 12 rounds
of tiles of 12 steps, and 16 of 16: 0.77 us a step, and 2.4 and 1.4 us a tile for the epilogues. They write 128 and 64 KB a tile,
in 17 instructions an element (25 with GELU's gradient and sums), which alone are 2.5 us (3.6) of the warpgroup that issues them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import Arguments, Case, randn
from bertfast import _library

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOKENS = 16384
HOPPER = (90,)
Peer = Callable[[Arguments], Callable[[], Any]]
BASE, LARGE = 768, 1024


PROCESSORS = 132
STEP_US = 0.77  # of 128 x 256 x 64; 256 columns, as all of these rates
# Of a tile, over a plain product's: the prototypes' for GELU; ADD reads what GELU without pre does not write, and adds it in a
# tenth of its instructions; the gradient has GELU's bytes and 1.5 times its instructions.
EPILOGUE_US = {
    "linear_fwd": 0.0,
    "linear_gelu_fwd": 2.4,
    "linear_gelu_infer": 1.4,
    "linear_add_dx": 1.2,
    "linear_dgelu": 3.2,
}
PART_US = 64 / 4.2e3  # of a part of a tile of 128 x 128 float32, 64 KB, written and read at 4.2 TB/s: half of it each
LAUNCH_US, SUMS_US = 1.2, 3.8  # of a launch in a graph, and of `sums_kernel`, as measured


def predicted(op: str, rows: int, columns: int, depth: int) -> tuple[float, str]:
    """(microseconds, what they are made of) of a result [rows, columns]."""
    tiles_m, steps = math.ceil(rows / 128), math.ceil(depth / 64)
    if op != "linear_dweight":
        rounds = math.ceil(tiles_m * math.ceil(columns / 256) / PROCESSORS)
        if rounds == 1:  # tiles of 128 columns
            rounds = math.ceil(tiles_m * math.ceil(columns / 128) / PROCESSORS) / 2
        time = rounds * (steps * STEP_US + EPILOGUE_US[op])
        text = f"{rounds:g} rounds of {steps} steps of {STEP_US} us, {EPILOGUE_US[op]} us an epilogue"
        return (time + LAUNCH_US + SUMS_US, f"{text}, the last sums") if op == "linear_dgelu" else (time, text)
    tiles = tiles_m * math.ceil(columns / 128)
    rounds, left = divmod(tiles, PROCESSORS)
    if left / PROCESSORS >= 0.93:
        return (rounds + 1) * steps * STEP_US / 2, f"{rounds + 1} rounds of {steps} steps of {STEP_US / 2} us"
    share, parts = math.ceil(left * steps / PROCESSORS), PROCESSORS + left
    time = (rounds * steps + share) * STEP_US / 2 + parts * PART_US * 2 + LAUNCH_US
    return (
        time,
        f"{rounds} rounds of {steps} steps and {share} of {STEP_US / 2} us, {parts} parts written and read, a launch",
    )


def case(
    op: str,
    shape: str,
    make: Callable[[torch.device], Arguments],
    moved: int,
    size: tuple[int, int, int],
    cublas: Peer,
    dtype: torch.dtype = BF16,
) -> Case:
    """An op by its candidate in Gluon. size: rows and columns of the result, and the terms of each sum."""
    candidate = "linear_gelu.gluon" if "gelu" in op else "linear.gluon"
    owner = _library.owner(op, "CUDA")
    peers: dict[str, Peer] = {"op's owner": lambda args: lambda: owner(*args), "cuBLAS alone": cublas}
    time, reason = predicted(op, *size)
    # Of the pointers' accesses most are pairs of accumulators, 8 bytes wide: that is how wgmma leaves them.
    return Case(
        op,
        f"{shape} gluon",
        dtype,
        make,
        bytes=moved,
        flops=2 * math.prod(size),
        peers=peers,
        dot=True,
        tma=True,
        wide=0.0,
        run=_library.candidate_function(op, candidate),
        architectures=HOPPER,
        predicted_us=time,
        reason=f"predicted: {reason}",
    )


def weight(device: torch.device, dtype: torch.dtype, n: int, k: int) -> torch.Tensor:
    return randn(device, dtype, n, k) * k**-0.5


def linear_fwd(
    t: int, k: int, n: int, *, has_bias: bool = False, view: bool = False, dtype: torch.dtype = BF16
) -> Case:
    """view: the weight is the transpose of one that lies [k, n], as in the gradient of a product's input."""

    def make(device: torch.device) -> Arguments:
        w = weight(device, dtype, k, n).t() if view else weight(device, dtype, n, k)
        return randn(device, dtype, t, k), w, randn(device, dtype, n) if has_bias else None

    shape = f"{t}x{k}x{n}" + " bias" * has_bias + " transposed" * view
    moved = (t * k + n * k + t * n) * dtype.itemsize
    return case("linear_fwd", shape, make, moved, (t, n, k), lambda args: lambda: F.linear(*args), dtype)


def linear_add_dx(t: int, n: int, k: int, total: torch.dtype = BF16) -> Case:
    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, n), weight(device, BF16, n, k), randn(device, total, t, k)

    moved = (t * n + n * k) * BF16.itemsize + 2 * t * k * total.itemsize
    shape = f"{t}x{n}x{k}" + " float32 total" * (total is FP32)
    return case("linear_add_dx", shape, make, moved, (t, k, n), lambda args: lambda: args[0] @ args[1])


def linear_dweight(t: int, n: int, k: int, *, sums: bool = True, result: torch.dtype = BF16) -> Case:
    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, n), randn(device, BF16, t, k), result, sums

    moved = (t * n + t * k) * BF16.itemsize + n * k * result.itemsize
    shape = f"{t}x{n}x{k}" + " sums" * sums + " float32 result" * (result is FP32)
    return case("linear_dweight", shape, make, moved, (n, k, t), lambda args: lambda: args[0].t() @ args[1])


def gelu(t: int, k: int, n: int, *, tanh: bool = False, dtype: torch.dtype = BF16) -> list[Case]:
    """Up with GELU, in training and inference, and back through down and GELU."""

    def up(device: torch.device) -> Arguments:
        return randn(device, dtype, t, k), weight(device, dtype, n, k), randn(device, dtype, n), tanh

    def back(device: torch.device) -> Arguments:
        dy, pre = randn(device, dtype, t, k), randn(device, dtype, t, n)
        return dy, weight(device, dtype, k, n), pre, randn(device, dtype, n), tanh

    shape, size = f"{t}x{k}x{n}" + " tanh" * tanh, (t, n, k)
    ends, middle = (t * k + n * k) * dtype.itemsize, t * n * dtype.itemsize
    product: Peer = lambda args: lambda: F.linear(args[0], args[1])  # noqa: E731
    return [
        case("linear_gelu_fwd", shape, up, ends + 2 * middle, size, product, dtype),
        case("linear_gelu_infer", shape, up, ends + middle, size, product, dtype),
        case("linear_dgelu", shape, back, ends + 2 * middle, size, lambda args: lambda: args[0] @ args[1], dtype),
    ]


def layer(t: int, e: int) -> list[Case]:
    """Every product of a layer of width e in training, and what inference has of its own."""
    return [
        linear_fwd(t, e, 3 * e, has_bias=True),
        linear_fwd(t, e, e),
        linear_fwd(t, 4 * e, e),
        *gelu(t, e, 4 * e),
        linear_fwd(t, e, e, view=True),
        linear_add_dx(t, 4 * e, e),
        linear_add_dx(t, 3 * e, e),
        linear_dweight(t, e, 4 * e, sums=False),
        linear_dweight(t, 4 * e, e, sums=False),
        linear_dweight(t, e, e, sums=False),
        linear_dweight(t, 3 * e, e),
    ]


CASES: list[Case] = [
    *layer(TOKENS, BASE),
    *layer(TOKENS, LARGE),
    *[each for each in layer(1536, BASE) if "gelu" not in each.op],
    *gelu(1280, BASE, 4 * BASE),
    linear_add_dx(TOKENS, 3 * BASE, BASE, FP32),
    linear_dweight(TOKENS, 3 * BASE, BASE, result=FP32),
    linear_fwd(TOKENS, BASE, BASE, has_bias=True, dtype=FP16),
    *gelu(TOKENS, BASE, 4 * BASE, tanh=True),
    *gelu(TOKENS, BASE, 4 * BASE, dtype=FP16),
]
