"""linear at BERT-base's and -large's sizes: the products are cuBLAS's either way; the bias gradient's column sum is ours."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import COPY, Arguments, Case, randn
from bertfast import _library
from bertfast.ops.linear.triton import linear_bwd

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Tokens, K, N: the attention's output, QKV in one, and the feed-forward's second half.
SHAPES = [
    (128, 768, 768, BF16),
    (8192, 768, 2304, BF16),
    (65536, 3072, 768, BF16),
    (65536, 4096, 1024, BF16),
    (8192, 768, 768, FP16),
    (8192, 768, 768, FP32),
]


def eager_fwd(args: Arguments) -> Callable[[], Any]:
    return lambda: F.linear(*args)


def eager_bwd(args: Arguments) -> Callable[[], Any]:
    dy, x, weight, *_ = args
    return lambda: (dy @ weight, dy.t() @ x, dy.sum(0))


def both(t: int, k: int, n: int, dtype: torch.dtype) -> list[Case]:
    shape, moved, flops = f"{t}x{k}x{n}", (t * k + n * k + t * n) * dtype.itemsize, 2 * t * k * n

    def forward(device: torch.device) -> Arguments:
        return randn(device, dtype, t, k), randn(device, dtype, n, k) * k**-0.5, randn(device, dtype, n)

    def backward(device: torch.device) -> Arguments:
        x, weight, _ = forward(device)
        return randn(device, dtype, t, n), x, weight, True, True, True

    written = (t * k + n * k) * dtype.itemsize
    return [
        Case("linear_fwd", shape, dtype, forward, moved, flops, peers={"eager": eager_fwd}, kernels=False),
        Case("linear_bwd", shape, dtype, backward, moved + written, 2 * flops, peers={"eager": eager_bwd}),
    ]


def column_sum(t: int, n: int, dtype: torch.dtype, weight: torch.dtype | None = None) -> list[Case]:
    """The bias gradient alone, as a layer's joined query, key and value ask for it: by the candidate and by the owner.

    weight: the dtype of the parameters, where it is not that of the rows, as under autocast.
    """
    shape = f"{t}x{n} column sum" + " of float32 weights" * (weight is not None)

    def make(device: torch.device) -> Arguments:
        dy, x = randn(device, dtype, t, n), randn(device, dtype, t, 8)
        return dy, x, randn(device, weight or dtype, n, 8), True, False, False

    def owner(args: Arguments) -> Callable[[], Any]:
        return lambda: linear_bwd(*args)[2].to(args[2].dtype)

    def eager(args: Arguments) -> Callable[[], Any]:
        return lambda: args[0].sum(0, dtype=args[2].dtype)

    run = _library.candidate_function("linear_bwd", "linear.ending_sums")
    peers = {"op's owner": owner, "eager": eager}
    moved = t * n * dtype.itemsize
    predicted = 1e6 * moved / (0.9 * COPY) + 3.4
    reason = (
        "bytes at 90 % of the copy rate, with rows on their way ahead, and 3.4 us for the last sums (triton.ending)"
    )
    case = Case("linear_bwd", shape, dtype, make, moved, peers=peers, run=run, predicted_us=predicted, reason=reason)
    return [case]


def by_candidate(case: Case) -> Case:
    """The same work by the op's candidate, its owner among the peers."""
    peers = {"op's owner": lambda args: lambda: linear_bwd(*args), **case.peers}
    return replace(
        case,
        shape=f"{case.shape} ending sums",
        run=_library.candidate_function(case.op, "linear.ending_sums"),
        peers=peers,
    )


CASES: list[Case] = [
    *[case for shape in SHAPES for case in both(*shape)],
    *column_sum(128, 2304, BF16),
    *column_sum(16384, 2304, BF16),
    *column_sum(16384, 3072, BF16),
    *column_sum(16384, 2304, BF16, weight=FP32),
    *column_sum(8192, 768, FP32),
    by_candidate(both(8192, 768, 2304, BF16)[1]),
]
