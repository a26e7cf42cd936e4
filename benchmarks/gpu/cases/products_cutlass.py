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


def case(op: str, shape: str, make: Callable[[torch.device], Arguments], moved: int, flops: int, cublas: Peer) -> Case:
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
    )


def weight(device: torch.device, n: int, k: int) -> torch.Tensor:
    return randn(device, BF16, n, k) * k**-0.5


def linear_gelu_fwd(t: int, k: int, n: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, k), weight(device, n, k), randn(device, BF16, n), False

    moved = 2 * (t * k + n * k + 2 * t * n)
    return case("linear_gelu_fwd", f"{t}x{k}x{n}", make, moved, 2 * t * k * n, lambda args: lambda: F.linear(*args[:2]))


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
        lambda args: lambda: F.linear(*args[:2]),
    )


def linear_dgelu(t: int, k: int, n: int) -> Case:
    """From the gradient [T, k] behind the second product to [T, n] before GELU."""

    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, k), weight(device, k, n), randn(device, BF16, t, n), randn(device, BF16, n), False

    moved = 2 * (t * k + n * k + 2 * t * n)
    return case("linear_dgelu", f"{t}x{k}x{n}", make, moved, 2 * t * k * n, lambda args: lambda: args[0] @ args[1])


def linear_dweight(t: int, n: int, k: int, sums: bool = False) -> Case:
    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, n), randn(device, BF16, t, k), BF16, sums

    moved = 2 * (t * n + t * k + n * k)
    shape = f"{t}x{n}x{k}" + " sums" * sums
    return case("linear_dweight", shape, make, moved, 2 * t * n * k, lambda args: lambda: args[0].t() @ args[1])


CASES: list[Case] = [
    *[make(TOKENS, k, n) for make in (linear_gelu_fwd, linear_gelu_infer, linear_dgelu) for k, n in SIZES],
    *[linear_dweight(TOKENS, n, k) for e, f in SIZES for n, k in ((f, e), (e, f), (e, e))],
    *[linear_dweight(TOKENS, 3 * e, e, sums=True) for e, _ in SIZES],
]
