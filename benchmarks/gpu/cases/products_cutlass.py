"""The products that CUTLASS makes (csrc/cuda), at BERT-base's and -large's sizes: beside cuBLAS alone, and beside the op's owner.

Nothing of it is Triton's, so `make kernels` leaves these out; tests/test_cuda_library.py reads the machine code. Not run where the
library was not built. Bytes count each matrix once.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import Arguments, Case, randn
from bertfast import _library

BF16 = torch.bfloat16
TOKENS = 16384
SIZES = ((768, 3072), (1024, 4096))
Peer = Callable[[Arguments], Callable[[], Any]]


# Expected on an H200, in us, before anything ran, by the columns of x or dy, or by the weight's sizes. Products at 690 TFLOP/s, the
# rate of Gluon's, whose traffic from L2 this is too (a tile of 64 x 256 in a cluster of two reads 24 KB a step: 0.9 GB for
# 16384x768x3072). The epilogue, 1.6 us of instructions for a tile's 3.6 us of wgmma, is hidden by the other warpgroup's product
# and costs power and bandwidth: 10 % with two results.
PREDICTED = {
    "linear_gelu_fwd": {768: 125, 1024: 215},
    "linear_gelu_infer": {768: 118, 1024: 205},
    "linear_dgelu": {768: 132, 1024: 222},
}
# A weight's gradient runs at 650 TFLOP/s; parts of cut tiles are written and read, 5 us, 8 where a tile is cut in seven.
PREDICTED_DWEIGHT = {
    (3072, 768): 124,
    (768, 3072): 124,
    (768, 768): 40,
    (2304, 768): 115,
    (4096, 1024): 205,
    (1024, 4096): 205,
    (1024, 1024): 62,
    (3072, 1024): 185,
}


def case(
    op: str,
    shape: str,
    make: Callable[[torch.device], Arguments],
    moved: int,
    flops: int,
    cublas: Peer,
    predicted: float,
) -> Case:
    """An op by its candidate of CUTLASS."""
    candidate, owner = "linear_gelu.cutlass" if "gelu" in op else "linear.cutlass", _library.owner(op, "CUDA")
    peers: dict[str, Peer] = {"op's owner": lambda args: lambda: owner(*args), "cuBLAS alone": cublas}
    return Case(
        op,
        f"{shape} cutlass",
        BF16,
        make,
        bytes=moved,
        flops=flops,
        peers=peers,
        run=_library.candidate_function(op, candidate),
        kernels=False,
        architectures=(),
        predicted_us=predicted,
        reason="the product at Gluon's rate, the epilogue hidden"
        if "gelu" in op
        else "650 TFLOP/s, parts, column sums",
    )


def weight(device: torch.device, n: int, k: int) -> torch.Tensor:
    return randn(device, BF16, n, k) * k**-0.5


def linear_alone(args: Arguments) -> Callable[[], Any]:
    x, weight, *_ = args
    return lambda: F.linear(x, weight)


def linear_gelu_fwd(t: int, k: int, n: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, k), weight(device, n, k), randn(device, BF16, n), False

    moved = 2 * (t * k + n * k + 2 * t * n)
    predicted = PREDICTED["linear_gelu_fwd"][k]
    return case("linear_gelu_fwd", f"{t}x{k}x{n}", make, moved, 2 * t * k * n, linear_alone, predicted)


def linear_gelu_infer(t: int, k: int, n: int) -> Case:
    """The weight is a view of its transpose, as inference keeps it."""

    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, k), weight(device, k, n).t(), randn(device, BF16, n), False

    moved = 2 * (t * k + n * k + t * n)
    return case(
        "linear_gelu_infer",
        f"{t}x{k}x{n} transposed",
        make,
        moved,
        2 * t * k * n,
        linear_alone,
        PREDICTED["linear_gelu_infer"][k],
    )


def linear_dgelu(t: int, k: int, n: int) -> Case:
    """From the gradient [T, k] behind the second product to [T, n] before GELU."""

    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, k), weight(device, k, n), randn(device, BF16, t, n), randn(device, BF16, n), False

    moved = 2 * (t * k + n * k + 2 * t * n)
    predicted = PREDICTED["linear_dgelu"][k]
    return case(
        "linear_dgelu", f"{t}x{k}x{n}", make, moved, 2 * t * k * n, lambda args: lambda: args[0] @ args[1], predicted
    )


def linear_dweight(t: int, n: int, k: int, sums: bool = False) -> Case:
    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, n), randn(device, BF16, t, k), BF16, sums

    moved = 2 * (t * n + t * k + n * k)
    shape = f"{t}x{n}x{k}" + " sums" * sums
    predicted = PREDICTED_DWEIGHT[n, k]
    return case(
        "linear_dweight", shape, make, moved, 2 * t * n * k, lambda args: lambda: args[0].t() @ args[1], predicted
    )


CASES: list[Case] = [
    *[make(TOKENS, k, n) for make in (linear_gelu_fwd, linear_gelu_infer, linear_dgelu) for k, n in SIZES],
    *[linear_dweight(TOKENS, n, k) for e, f in SIZES for n, k in ((f, e), (e, f), (e, e))],
    *[linear_dweight(TOKENS, 3 * e, e, sums=True) for e, _ in SIZES],
]
