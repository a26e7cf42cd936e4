"""linear_gelu and bias_gelu forward and backward against eager PyTorch, and the prepacked product of inference."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bertfast.ops  # noqa: F401  defines the ops
from bertfast.nn import prepack

# tokens, E, F: BERT-base at one sentence and at a batch; MiniLM; BERT-large.
SHAPES = [(128, 768, 3072), (1000, 768, 3072), (1000, 384, 1536), (512, 1024, 4096)]
CASES = [(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]


def case_id(case) -> str:
    shape, dtype = case
    return f"{'x'.join(map(str, shape))}-{str(dtype).removeprefix('torch.')}"


def make(shape, dtype):
    tokens, k, n = shape
    return torch.randn(tokens, k).to(dtype), (torch.randn(n, k) / k**0.5).to(dtype), torch.randn(n).to(dtype)


def eager_gradient(function, inputs):
    leaves = [t.requires_grad_() for t in inputs]
    y = function(*leaves)
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def bertfast_product(case, backward):
    x, weight, bias = make(*case)
    if not backward:
        return lambda: torch.ops.bertfast.linear_gelu_fwd(x, weight, bias, False)
    y, pre = torch.ops.bertfast.linear_gelu_fwd(x, weight, bias, False)
    dy = torch.randn_like(y)
    return lambda: torch.ops.bertfast.linear_gelu_bwd(dy, x, weight, bias, pre, False, True, True)


def eager_product(case, backward):
    inputs = make(*case)

    def function(x, weight, bias):
        return F.gelu(F.linear(x, weight, bias))

    return eager_gradient(function, inputs) if backward else lambda: function(*inputs)


def bertfast_elementwise(case, backward):
    (tokens, _, n), dtype = case
    pre, bias, dy = torch.randn(tokens, n).to(dtype), torch.randn(n).to(dtype), torch.randn(tokens, n).to(dtype)
    if backward:
        return lambda: torch.ops.bertfast.bias_gelu_bwd(dy, pre, bias, False)
    return lambda: torch.ops.bertfast.bias_gelu_fwd(pre, bias, False)


def eager_elementwise(case, backward):
    (tokens, _, n), dtype = case
    inputs = [torch.randn(tokens, n).to(dtype), torch.randn(n).to(dtype)]

    def function(pre, bias):
        return F.gelu(pre + bias)

    return eager_gradient(function, inputs) if backward else lambda: function(*inputs)


MAKERS = {
    "linear_gelu": (bertfast_product, eager_product),
    "bias_gelu": (bertfast_elementwise, eager_elementwise),
}


@pytest.mark.parametrize("side", [0, 1], ids=["bertfast", "eager"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("op", MAKERS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_training(benchmark, case, op, direction, side):
    benchmark.group = f"{op} {direction} {case_id(case)}"
    benchmark(MAKERS[op][side](case, direction == "backward"))


@pytest.mark.parametrize("side", ["bertfast", "eager"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_inference(benchmark, case, side):
    benchmark.group = f"prepacked linear and gelu {case_id(case)}"
    (tokens, k, n), dtype = case
    x, layer = torch.randn(tokens, k).to(dtype), nn.Linear(k, n, dtype=dtype)
    with torch.no_grad():
        if side == "bertfast":
            benchmark(prepack.fused_linear, x, (layer,), "gelu")
        else:
            benchmark(lambda: F.gelu(layer(x)))
