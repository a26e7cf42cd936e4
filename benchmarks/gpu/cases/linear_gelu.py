"""linear_gelu and its elementwise half at BERT-base's and -large's feed-forward; the split owner, and fused products by name.

What decides between split and fused is `linear_gelu_fwd` against `linear alone`: the fused product is to cost at most 5 % over
cuBLAS's. On an H200 it was 0.94 to 1.06 times as fast as the split form.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import COPY, Arguments, Case, compiled, randn
from bertfast import _library
from bertfast.ops.linear_gelu import triton as split
from bertfast.ops.linear_gelu.triton_gemm import linear_dgelu_fused, linear_gelu_fused

BASE, LARGE = (768, 3072), (1024, 4096)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOKENS = (128, 8192, 65536)
# Tokens, sizes, dtype: every entry of the launch tables is reached; 16-bit types share their code's shape.
SHAPES = [(t, size, BF16) for size in (BASE, LARGE) for t in TOKENS] + [(8192, BASE, FP16)]
Run = Callable[..., Any]


def inputs(device: torch.device, dtype: torch.dtype, t: int, k: int, n: int) -> Arguments:
    """x, weight, bias at the sizes that a layer's values have."""
    return randn(device, dtype, t, k), randn(device, dtype, n, k) * k**-0.5, randn(device, dtype, n)


def eager(args: Arguments) -> Run:
    x, weight, bias, tanh = args
    return lambda: F.gelu(F.linear(x, weight, bias), approximate="tanh" if tanh else "none")


def inductor(peer: Callable[[Arguments], Run]) -> Callable[[Arguments], Run]:
    """The same work by torch.compile."""
    return lambda args: compiled(peer(args))


def linear_alone(args: Arguments) -> Run:
    x, weight, bias, _ = args
    return lambda: F.linear(x, weight, bias)


def eager_elementwise_bwd(args: Arguments) -> Run:
    dy, pre, bias, tanh = args
    approximate = "tanh" if tanh else "none"

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        dpre = torch.ops.aten.gelu_backward(dy, pre + bias, approximate=approximate)
        return dpre, dpre.sum(0)

    return run


def eager_bwd(args: Arguments) -> Run:
    dy, x, weight, bias, pre, tanh, _, _ = args
    elementwise = eager_elementwise_bwd((dy, pre, bias, tanh))

    def run() -> tuple[torch.Tensor, ...]:
        dpre, dbias = elementwise()
        return dpre @ weight, dpre.t() @ x, dbias

    return run


def product_then_bwd(args: Arguments) -> Run:
    dy2, weight2, pre, bias, tanh = args
    return lambda: split.bias_gelu_bwd(dy2 @ weight2, pre, bias, tanh)


def elementwise(t: int, n: int, dtype: torch.dtype, tanh: bool = False) -> list[Case]:
    cell, shape = t * n * dtype.itemsize, f"{t}x{n}" + " tanh" * tanh

    def forward(device: torch.device) -> Arguments:
        return randn(device, dtype, t, n), randn(device, dtype, n), tanh

    def backward(device: torch.device) -> Arguments:
        return randn(device, dtype, t, n), *forward(device)

    def eager_fwd(args: Arguments) -> Run:
        return lambda: F.gelu(args[0] + args[1], approximate="tanh" if tanh else "none")

    return [
        Case(
            "bias_gelu_fwd",
            shape,
            dtype,
            forward,
            bytes=2 * cell,
            peers={"eager": eager_fwd, "compile": inductor(eager_fwd)},
        ),
        Case(
            "bias_gelu_bwd",
            shape,
            dtype,
            backward,
            bytes=3 * cell,
            peers={"eager": eager_elementwise_bwd, "compile": inductor(eager_elementwise_bwd)},
        ),
    ]


def whole(t: int, size: tuple[int, int], dtype: torch.dtype) -> list[Case]:
    """The op, forward and backward, as its owner runs it."""
    (k, n), shape = size, f"{t}x{size[0]}x{size[1]}"
    ends, middle = (t * k + n * k) * dtype.itemsize, t * n * dtype.itemsize

    def forward(device: torch.device) -> Arguments:
        return *inputs(device, dtype, t, k, n), False

    def backward(device: torch.device) -> Arguments:
        dy, pre = randn(device, dtype, t, n), randn(device, dtype, t, n)
        return dy, *inputs(device, dtype, t, k, n), pre, False, True, True

    peers = {"eager": eager, "compile": inductor(eager), "linear alone": linear_alone}
    flops = 2 * t * k * n
    return [
        Case("linear_gelu_fwd", shape, dtype, forward, bytes=ends + 2 * middle, flops=flops, peers=peers),
        Case(
            "linear_gelu_bwd",
            shape,
            dtype,
            backward,
            bytes=2 * ends + 2 * middle,
            flops=2 * flops,
            peers={"eager": eager_bwd, "compile": inductor(eager_bwd)},
        ),
    ]


def fused(t: int, size: tuple[int, int], dtype: torch.dtype, tanh: bool = False) -> list[Case]:
    """Both fused products, and the forward one for inference, which stores no product."""
    (k, n), shape = size, f"{t}x{size[0]}x{size[1]}" + " tanh" * tanh
    ends, middle = (t * k + n * k) * dtype.itemsize, t * n * dtype.itemsize

    def forward(device: torch.device) -> Arguments:
        return *inputs(device, dtype, t, k, n), tanh

    def backward(device: torch.device) -> Arguments:
        dy2, weight, bias = inputs(device, dtype, t, k, n)
        return dy2, weight.t().contiguous(), randn(device, dtype, t, n), bias, tanh

    # The few loads that are no bulk copies are the bias, two bytes each: nothing to be wide.
    product = {"dtype": dtype, "flops": 2 * t * k * n, "dot": True, "tma": True, "wide": 0.0}
    peers = {"eager": eager, "compile": inductor(eager), "linear alone": linear_alone}
    training, inference = ends + 2 * middle, ends + middle

    def op(suffix: str, moved: int, run: Run) -> Case:
        return Case("linear_gelu_fwd", f"{shape} {suffix}", make=forward, bytes=moved, peers=peers, run=run, **product)

    return [
        op("fused", training, split.linear_gelu_fwd_fused),
        op("fused, no pre", inference, lambda *args: linear_gelu_fused(*args, store_pre=False)),
        Case(
            "linear_gelu_bwd",
            f"{shape} fused dgelu",
            make=backward,
            bytes=training,
            peers={"product, bias_gelu_bwd": product_then_bwd},
            run=linear_dgelu_fused,
            **product,
        ),
    ]


# What prototypes of the candidate reached on an H200 at 16384 x 3072 and x 4096, as shares of the copy rate: forward 52.4 and 70
# us, backward 87 and 113 without its last sums, which take 3.4 us after the last program, as counted in `triton.ending`.
PROTOTYPES = {"bias_gelu_fwd": (0.94, 0.0), "bias_gelu_bwd": (0.84, 3.4)}
START_US = 2.0  # of a launch, as its first programs wait for their rows


def by_candidate(case: Case) -> Case:
    """The same work by the op's candidate, its owner among the peers."""
    predicted, reason = None, ""
    if case.op in PROTOTYPES:
        share, sums = PROTOTYPES[case.op]
        predicted = START_US + 1e6 * case.bytes / (share * COPY) + sums
        reason = f"bytes at {share:.0%} of the copy rate, as prototypes reached"
    run, owner = _library.candidate_function(case.op, "linear_gelu.cheap_erf"), _library.owner(case.op, "CUDA")
    peers = {"op's owner": lambda args: lambda: owner(*args), **case.peers}
    return replace(case, shape=f"{case.shape} cheap erf", run=run, peers=peers, predicted_us=predicted, reason=reason)


CASES: list[Case] = [
    *[case for t, (_, n), dtype in SHAPES for case in elementwise(t, n, dtype)],
    *[by_candidate(case) for t, (_, n), dtype in SHAPES for case in elementwise(t, n, dtype)],
    *elementwise(8192, 3072, BF16, tanh=True),
    *elementwise(8192, 3072, FP32),
    *[case for shape in [*SHAPES, (8192, BASE, FP32)] for case in whole(*shape)],
    *[by_candidate(case) for case in whole(8192, BASE, BF16)],
    *[case for shape in SHAPES for case in fused(*shape)],
    *fused(8192, BASE, BF16, tanh=True),
]
