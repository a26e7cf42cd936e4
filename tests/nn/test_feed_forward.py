"""The feed-forward products as one step, and weights cast in one pass: the numbers and gradients of the ops they stand for."""

import itertools

import pytest
import torch

from bertfast import ops
from bertfast.nn.cast import cast_weights
from bertfast.nn.feed_forward import feed_forward
from bertfast.testing import leaves

NAMES = ("x", "up", "up_bias", "down")


def inputs(dtype):
    torch.manual_seed(0)
    x, up, bias, down = torch.randn(7, 24), torch.randn(40, 24), torch.randn(40), torch.randn(24, 40)
    return [t.to(dtype) for t in (x, up, bias, down)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_same_bits_as_the_two_ops(dtype, approximate):
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
        assert torch.equal(ours, theirs), name


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


@pytest.mark.parametrize("count", [1, 3])
def test_cast_weights(count):
    parts = [torch.randn(5 + i, 6, requires_grad=i != 1) for i in range(count)]
    whole = cast_weights(parts, torch.bfloat16)
    assert torch.equal(whole, torch.cat([p.detach() for p in parts]).bfloat16())
    gradient = torch.randn(whole.shape).bfloat16()
    whole.backward(gradient)
    at = 0
    for part in parts:
        if part.requires_grad:
            assert torch.equal(part.grad, gradient[at : at + part.shape[0]].float())
        else:
            assert part.grad is None
        at += part.shape[0]


def test_a_weight_that_needs_no_cast_is_itself():
    weight = torch.randn(3, 4)
    assert cast_weights([weight], torch.float32) is weight
