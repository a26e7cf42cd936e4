"""The feed-forward products as one step: the numbers and gradients of the ops they stand for."""

import itertools

import pytest
import torch

from bertfast import ops
from bertfast.nn.feed_forward import feed_forward
from bertfast.testing import assert_within_budget, leaves, rms_error

NAMES = ("x", "up", "up_bias", "down")


def inputs(dtype):
    torch.manual_seed(0)
    x, up, bias, down = torch.randn(7, 24), torch.randn(40, 24), torch.randn(40), torch.randn(24, 40)
    return [t.to(dtype) for t in (x, up, bias, down)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_equals_the_two_ops(dtype, approximate):
    dy = torch.randn(7, 24).to(dtype)

    def two_ops(x, up, bias, down):
        return ops.linear(ops.linear_gelu(x, up, bias, approximate=approximate), down)

    results = []
    for function in (lambda *t: feed_forward(*t, approximate), two_ops):
        parts = leaves(inputs(dtype))
        y = function(*parts)
        y.backward(dy)
        results.append([y.detach(), *(t.grad for t in parts)])
    for name, ours, theirs in zip(("y", *NAMES), *results, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("needed", [n for n in itertools.product((True, False), repeat=4) if any(n)])
def test_only_the_gradients_that_are_wanted(needed):
    parts = [t.requires_grad_(n) for t, n in zip(inputs(torch.float32), needed, strict=True)]
    every = leaves(parts)
    feed_forward(*parts, "none").sum().backward()
    feed_forward(*every, "none").sum().backward()
    for part, full, n in zip(parts, every, needed, strict=True):
        assert (part.grad is not None) == n
        if n:
            torch.testing.assert_close(part.grad, full.grad)


def test_parameters_of_another_dtype():
    # As under autocast: the products are bfloat16's, and the float32 gradients are not rounded to it.
    parts = inputs(torch.float32)
    x, dy = parts[0].bfloat16(), torch.randn(7, 24).bfloat16()
    results = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        mine = leaves([x if dtype != torch.float64 else x.double(), *(p.bfloat16().to(dtype) for p in parts[1:])])
        y = feed_forward(*mine, "none")
        y.backward(dy.to(y.dtype))
        results.append([y.detach(), *(t.grad for t in mine)])
    for name, ours, eager, exact in zip(("y", *NAMES), *results, strict=True):
        assert_within_budget(ours, eager, exact, name, measure=rms_error)
    assert [g.dtype for g in results[0]] == [torch.bfloat16] * 2 + [torch.float32] * 3
