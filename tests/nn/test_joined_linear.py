"""Several Linears as one product, with float32 parameters under a bfloat16 input too: their gradients, and only those wanted."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bertfast.nn.linear import joined_linear
from bertfast.testing import assert_within_budget, rms_error


def linears(sizes, dtype=torch.float32):
    torch.manual_seed(0)
    made = [nn.Linear(24, n) for n in sizes]
    for parameter in (p for linear in made for p in linear.parameters()):
        parameter.data = parameter.data.bfloat16().to(dtype)  # one value in every dtype
    return tuple(made)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(64, 64, 64), (5, 8), (40,)])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_parity(sizes, dtypes, bias):
    narrow, wide = dtypes
    x, dy = torch.randn(7, 24).to(narrow), torch.randn(7, sum(sizes)).to(narrow)

    def step(dtype, own, function):
        made, leaf = linears(sizes, own), x.detach().to(dtype).requires_grad_()
        y = function(leaf, made)
        y.backward(dy.to(dtype))
        return [
            y.detach(),
            leaf.grad,
            *(linear.weight.grad for linear in made),
            *([m.bias.grad for m in made] if bias else []),
        ]

    def stock(leaf, made):
        return torch.cat([F.linear(leaf, m.weight, m.bias if bias else None) for m in made], 1)

    ours = step(narrow, wide, lambda leaf, made: joined_linear(leaf, made, bias=bias))
    eager, exact = step(narrow, narrow, stock), step(torch.float64, torch.float64, stock)
    for i, (mine, theirs, oracle) in enumerate(zip(ours, eager, exact, strict=True)):
        assert mine.dtype == (narrow if i < 2 else wide)
        assert_within_budget(mine, theirs, oracle, f"result {i}", measure=rms_error)


@pytest.mark.parametrize("needed", [n for n in itertools.product((True, False), repeat=5) if any(n)])
def test_only_the_gradients_that_are_wanted(needed):
    made, x = linears((6, 4)), torch.randn(3, 24)
    tensors = [x, *(m.weight for m in made), *(m.bias for m in made)]
    joined_linear(x.requires_grad_(), made, bias=True).square().sum().backward()
    every = [t.grad for t in tensors]
    for tensor, n in zip(tensors, needed, strict=True):
        tensor.grad = None
        tensor.requires_grad_(n)
    joined_linear(x, made, bias=True).square().sum().backward()
    for tensor, gradient, n in zip(tensors, every, needed, strict=True):
        assert (tensor.grad is not None) == n
        if n:
            torch.testing.assert_close(tensor.grad, gradient)
