"""FP8 products by the candidate in Gluon, beside torch's scaled product, at the sizes of base and large.

For sm_90 alone; elsewhere these launchers are their owners. Predicted as `linear_gluon` does for 16-bit types, a step of which has
as many bytes as one of these and half its terms: half of that time each, and with sums in float32 a third more, since the cores of
a warpgroup add up 64 x 128 numbers a step while the other one multiplies. Guesses: nothing like it was ever timed.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.case import Arguments, Case
from benchmarks.gpu.cases.fp8_linear import FORWARD, stored
from benchmarks.gpu.cases.linear_gluon import HOPPER, predicted
from bertfast import _library

BF16, FP32 = torch.bfloat16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FULL = 4 / 3


def case(
    op: str, shape: str, make: Callable[[torch.device], Arguments], moved: int, size: tuple[int, int, int], full: bool
) -> Case:
    owner = _library.owner(op, "CUDA")
    rows, columns, depth = size
    time, reason = predicted("linear_add_dx" if op.endswith("add") else "linear_fwd", rows, columns, depth)
    return Case(
        op,
        f"{shape} gluon",
        BF16,
        make,
        bytes=moved,
        flops=2 * rows * columns * depth,
        peers={"op's owner": lambda args: lambda: owner(*args)},
        dot=True,
        tma=True,
        wide=0.0,
        run=_library.candidate_function(op, "fp8_linear.gluon"),
        architectures=HOPPER,
        predicted_us=time / 2 * (FULL if full else 1),
        reason=f"predicted: half of {reason}" + ", a third more for sums in float32" * full,
    )


def product(rows: int, depth: int, columns: int, *, fast: bool) -> Case:
    kind = E4M3 if fast else E5M2

    def make(device: torch.device) -> Arguments:
        scales = [torch.full((), 0.25, device=device) for _ in range(2)]
        return stored(device, kind, rows, depth), stored(device, E4M3, columns, depth), *scales, None, BF16, fast

    moved = (rows + columns) * depth + rows * columns * BF16.itemsize
    shape = f"{rows}x{depth}x{columns} {'e4m3' if fast else 'e5m2'}"
    return case("fp8_linear", shape, make, moved, (rows, columns, depth), not fast)


def added(rows: int, depth: int, columns: int, dtype: torch.dtype = BF16) -> Case:
    def make(device: torch.device) -> Arguments:
        scales = [torch.full((), 0.25, device=device) for _ in range(2)]
        total = torch.randn(rows, columns, device=device).to(dtype)
        return stored(device, E5M2, rows, depth), stored(device, E4M3, columns, depth), *scales, total

    moved = (rows + columns) * depth + 2 * rows * columns * dtype.itemsize
    shape = f"{rows}x{depth}x{columns}" + " float32 total" * (dtype is FP32)
    return case("fp8_linear_add", shape, make, moved, (rows, columns, depth), True)


# Gradients of what up and the joined projections read, base and large.
ADDED = ((16384, 3072, 768), (16384, 2304, 768), (16384, 4096, 1024), (16384, 3072, 1024))


def owners(rows: int, depth: int, columns: int) -> Case:
    """The addition by the op's owner."""

    def bf16(args: Arguments) -> Callable[[], Any]:
        a, b = ((x.float() * scale).to(BF16) for x, scale in ((args[0], args[2]), (args[1], args[3])))
        return lambda: args[4].addmm_(a, b.t())

    make, moved = added(rows, depth, columns).make, added(rows, depth, columns).bytes
    flops = 2 * rows * depth * columns
    shape = f"{rows}x{depth}x{columns}"
    return Case("fp8_linear_add", shape, BF16, make, moved, flops, peers={"bfloat16": bf16}, kernels=False)


CASES: list[Case] = [
    *[product(*sizes, fast=True) for sizes in FORWARD],
    product(4096, 768, 768, fast=True),  # fewer tiles of 256 columns than multiprocessors
    *[product(*sizes, fast=False) for sizes in FORWARD],
    *[owners(*sizes) for sizes in ADDED],
    *[added(*sizes) for sizes in ADDED],
    added(16384, 2304, 768, FP32),
]
