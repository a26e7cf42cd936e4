"""Low-rank adapters beside products: numbers, every gradient, what they drop, and a layer around them."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from bertfast.nn import prepack
from bertfast.nn.adapters import LowRank, added
from bertfast.nn.core import attention_block, mlp_block
from bertfast.nn.layout import Padded
from bertfast.nn.modules import BertLayer
from bertfast.nn.parts import parts_of
from bertfast.testing import assert_within_budget, rms_error

WIDTHS = (24, 40, 24)
RANKS = ((2,), (), (3, 4))  # of the adapters beside each product


def tensors(dtype, own=None):
    """y, x, and A and B of each adapter in turn, of one value in every dtype."""
    torch.manual_seed(0)
    shapes = [(7, sum(WIDTHS)), (7, 16)]
    for width, ranks in zip(WIDTHS, RANKS, strict=True):
        shapes += [shape for rank in ranks for shape in ((rank, 16), (width, rank))]
    made = [torch.randn(shape).bfloat16() for shape in shapes]
    return [t.to(dtype if i < 2 else own or dtype).requires_grad_() for i, t in enumerate(made)]


def adapters(flat, rate=0.0):
    pairs = iter(zip(flat[::2], flat[1::2], strict=True))
    return [[LowRank(*next(pairs), 0.5 + rank, rate) for rank in ranks] for ranks in RANKS]


def eager(y, x, beside, autocast=None):
    parts = list(y.split(WIDTHS, 1))
    for number, those in enumerate(beside):
        dtype = parts[number].dtype
        for low in those:
            kind = autocast or low.down.dtype
            inner = F.linear(x.to(kind), low.down.to(kind))
            parts[number] = parts[number] + F.linear(inner, low.up.to(kind)) * low.scale
        parts[number] = parts[number].to(dtype)
    return torch.cat(parts, 1)


def step(function, dtype, own=None):
    """The result and the gradients of everything."""
    y, x, *flat = tensors(dtype, own)
    result = function(y * 1, x, adapters(flat))
    result.backward(torch.linspace(-1, 1, result.numel()).view(result.shape).bfloat16().to(dtype))
    return [result.detach(), *(t.grad for t in (y, x, *flat))]


@pytest.mark.parametrize(
    ("dtype", "own", "autocast"),
    [
        (torch.float32, None, None),
        (torch.bfloat16, None, None),
        (torch.bfloat16, torch.float32, None),  # what PEFT makes of a bfloat16 model
        (torch.bfloat16, torch.float32, torch.bfloat16),
    ],
)
def test_parity(dtype, own, autocast):
    def ours(y, x, beside):
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            return added(y, x, beside, WIDTHS)

    results = step(ours, dtype, own)
    expected = step(lambda y, x, beside: eager(y, x, beside, autocast), dtype, own)
    exact = step(lambda y, x, beside: eager(y, x, beside), torch.float64)
    for number, (mine, theirs, oracle) in enumerate(zip(results, expected, exact, strict=True)):
        assert mine.dtype == theirs.dtype
        assert_within_budget(mine, theirs, oracle, f"result {number}", measure=rms_error)


def test_writes_into_the_product():
    y, x, *flat = (t.detach() for t in tensors(torch.float32))
    assert added(y, x, adapters(flat), WIDTHS).data_ptr() == y.data_ptr()


@pytest.mark.parametrize("needed", [n for n in itertools.product((True, False), repeat=4) if any(n)])
def test_only_the_gradients_that_are_wanted(needed):
    """For y, x, and A and B of one adapter; the others stay as they are."""
    every = step(lambda *given: added(*given, WIDTHS), torch.float32)[1:]
    y, x, *flat = tensors(torch.float32)
    for tensor, need in zip((y, x, *flat[:2]), needed, strict=True):
        tensor.requires_grad_(need)
    result = added(y * 1, x, adapters(flat), WIDTHS)
    result.backward(torch.linspace(-1, 1, result.numel()).view(result.shape).bfloat16().float())
    for tensor, gradient, need in zip((y, x, *flat), every, (*needed, *[True] * (len(flat) - 2)), strict=True):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, gradient)


def test_what_is_dropped():
    """A and B are identities: what is added shows the mask, which backward must have again."""
    x = torch.ones(400, 50, requires_grad=True)
    low = LowRank(torch.eye(50), torch.eye(50), 2.0, 0.25)
    y = added(torch.zeros(400, 50), x, [[low]], [50])
    kept = y != 0
    assert abs(kept.double().mean() - 0.75) < 0.015
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2.0 / 0.75))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(3)
    first = added(torch.zeros(400, 100), x, [[low], [low]], [50, 50])
    assert not torch.equal(*(first[:, columns] != 0 for columns in (slice(50), slice(50, 100))))
    torch.manual_seed(3)
    with torch.no_grad():
        assert torch.equal(added(torch.zeros(400, 100), x, [[low], [low]], [50, 50]), first)


def test_compiled():
    y, x, *flat = (t.detach() for t in tensors(torch.float32))
    expected = eager(y, x, adapters(flat))
    compiled = torch.compile(lambda *given: added(*given, WIDTHS), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(y, x, adapters(flat)), expected)


def eager_layer(x, parts, beside, heads=2):
    """A layer of torch's functions."""

    def product(x, number):
        linear = parts.linears[number]
        y = F.linear(x, linear.weight, linear.bias)
        for low in beside[number]:
            y = y + F.linear(F.linear(x, low.down), low.up) * low.scale
        return y

    def split(t):
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    def norm(x, module):
        return F.layer_norm(x, module.weight.shape, module.weight, module.bias, module.eps)

    context = F.scaled_dot_product_attention(*(split(product(x, i)) for i in range(3)))
    h = norm(x + product(context.transpose(1, 2).flatten(2), 3), parts.norms[0])
    return norm(h + product(F.gelu(product(h, 4)), 5), parts.norms[1])


def fast_layer(x, parts, beside, use_prepack):
    first, second = beside[:4], beside[4:]
    h = attention_block(x, Padded(), parts.attention, 2, use_prepack=use_prepack, beside=first)
    return mlp_block(h, parts.mlp, use_prepack=use_prepack, beside=second)


@pytest.mark.parametrize("where", [(0, 2, 3), (4,), (5,), range(6)])
@pytest.mark.parametrize("train", [True, False])
def test_a_layer(where, train):
    """Every gradient of adapters whose base is frozen; and inference, from prepacked weights."""
    torch.manual_seed(1)
    layer = BertLayer(16, 2, 32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).requires_grad_(False)
    parts, x = parts_of(layer), torch.randn(2, 5, 16)
    shapes = [linear.weight.shape if i in where else None for i, linear in enumerate(parts.linears)]
    flat = [t for shape in shapes if shape for t in (torch.randn(3, shape[1]), torch.randn(shape[0], 3))]

    def run(function, dtype):
        layer.to(dtype)
        leaves = [t.to(dtype).requires_grad_(train) for t in flat]
        pairs = iter(zip(leaves[::2], leaves[1::2], strict=True))
        y = function(x.to(dtype), parts, [[LowRank(*next(pairs), 0.3)] if shape else [] for shape in shapes])
        if train:
            y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape))
        return [y.detach(), *(leaf.grad for leaf in leaves if train)]

    exact, theirs = run(eager_layer, torch.float64), run(eager_layer, torch.float32)
    ours = run(functools.partial(fast_layer, use_prepack=not train), torch.float32)
    for number, each in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_within_budget(*each, f"result {number}", measure=rms_error)
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert (prepack.memory(layer) > 0) == (not train)


def test_a_second_product_follows_the_gradients_of_the_first():
    """Nothing before the feed-forward half needs gradients, and the base is frozen: only A and B do."""
    layer = BertLayer(16, 2, 32).eval().requires_grad_(False)
    low = LowRank(torch.randn(3, 16, requires_grad=True), torch.randn(32, 3, requires_grad=True), 1.0)
    mlp_block(torch.randn(5, 16), parts_of(layer).mlp, beside=[[low], []]).square().sum().backward()
    assert low.down.grad.abs().sum() > 0
    assert low.up.grad.abs().sum() > 0
