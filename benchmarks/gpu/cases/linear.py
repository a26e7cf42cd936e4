"""linear at BERT-base's and -large's sizes: the products are cuBLAS's either way; the bias gradient's column sum is ours."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import Arguments, Case, randn

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


CASES: list[Case] = [case for shape in SHAPES for case in both(*shape)]
