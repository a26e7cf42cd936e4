"""Layers in training on a GPU, forward and backward by launchers, with references in the kernels' place."""

import copy
from contextlib import nullcontext

import pytest
import torch
from captured import captured_on_cpu
from half_cases import E, at_once, encoder, one_by_one, plainly, result, rows
from torch import nn

from bertfast import ops
from bertfast.nn import core, device, feed_forward, joined, linear, seeds, training
from bertfast.nn.layout import Padded
from bertfast.nn.parts import parts_of
from bertfast.testing import assert_within_budget, rms_error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "autocast": torch.float32}


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with captured_on_cpu():
        yield


def casting(name):
    return torch.autocast("cpu", torch.bfloat16) if name == "autocast" else nullcontext()


def joined_projections(gradients):
    """Those of query, key and value as the one tensor that attention makes: the key's bias gets zeros but for rounding."""
    joined = {name: g for name, g in gradients.items() if ".self." not in name}
    for kind in ("weight", "bias"):
        names = [name for name in gradients if ".self." in name and name.endswith(kind)]
        for layer in {name.split(".self.")[0] for name in names}:
            joined[f"{layer}.{kind}"] = torch.cat([gradients[name] for name in names if name.startswith(layer)])
    return joined


def assert_right(ours, eager, oracle):
    assert_within_budget(ours.output, eager.output, oracle.output, "output", rms_error)
    gradients, expected, exact = (joined_projections(each.gradients) for each in (ours, eager, oracle))
    assert gradients.keys() == expected.keys() == exact.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == expected[name].dtype
        assert_within_budget(gradient, expected[name], exact[name], name, rms_error)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("name", DTYPES)
def test_parity(name, read, act, bias):
    stack = encoder(act=act, bias=bias).to(DTYPES[name])
    x, layout = rows(DTYPES[name], read)
    double = copy.deepcopy(stack).double()
    oracle = result(lambda x: plainly(double, x, layout), double, x.detach().double().requires_grad_())
    for ours in (at_once, one_by_one):
        with casting(name):
            eager = result(lambda x: plainly(stack, x, layout), stack, x)
            found = result(lambda x, ours=ours: ours(stack, x, layout), stack, x)
        assert found.output.dtype == x.dtype
        assert_right(found, eager, oracle)


def test_rows_of_few_columns_keep_their_dtype_under_autocast_and_wide_ones_do_not():
    narrow, wide = torch.zeros(1, training.WIDE - 1), torch.zeros(1, training.WIDE)
    assert training.stream_dtype(narrow, torch.bfloat16) == torch.float32
    assert (
        training.stream_dtype(wide, torch.bfloat16)
        == training.stream_dtype(narrow, torch.bfloat16, True)
        == torch.bfloat16
    )
    assert (
        training.stream_dtype(wide, torch.float16)
        == training.stream_dtype(narrow, torch.float16, True)
        == torch.float32
    )


@pytest.mark.parametrize("name", ["float32", "autocast"])
def test_a_narrow_stream_of_16_bits(name):
    """Asked for; within the budget with weights as large as these."""
    stack = encoder()
    stack.narrow_stream = True
    x, layout = rows()
    double = copy.deepcopy(stack).double()
    oracle = result(lambda x: plainly(double, x, layout), double, x.detach().double().requires_grad_())
    with casting(name):
        eager = result(lambda x: plainly(stack, x, layout), stack, x)
        found = result(lambda x: at_once(stack, x, layout), stack, x)
        stack.narrow_stream = False
        assert torch.equal(at_once(stack, x, layout), found.output) == (name == "float32")
    assert found.output.dtype == torch.float32
    assert_right(found, eager, oracle)


def test_dropout_drops_what_the_ops_drop(monkeypatch):
    stack = encoder(0.2)
    x, layout = rows(read=True)
    drawn = seeds.draw(6, "cpu")
    ours = result(lambda x: at_once(stack, x, layout, drawn), stack, x)
    assert not torch.allclose(ours.output, at_once(stack, x, layout, seeds.draw(6, "cpu")))
    monkeypatch.setattr(device, "KINDS", frozenset())
    rest = iter(drawn)
    monkeypatch.setattr(core, "new_rng", lambda device: next(rest))
    by_ops = result(lambda x: one_by_one(stack, x, layout), stack, x)
    torch.testing.assert_close(ours.output, by_ops.output, rtol=1e-5, atol=1e-5)
    for name, gradient in ours.gradients.items():
        torch.testing.assert_close(gradient, by_ops.gradients[name], rtol=1e-4, atol=1e-4)


MASKS = {
    "none": None,
    "keys": (torch.arange(7) < torch.tensor([[7], [3]]))[:, None, None],
    "added": torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(0)),
    "a row that may attend to nothing": torch.tensor([[True] * 7, [False] * 7])[:, None, None],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_padded_layers(monkeypatch, mask, p):
    stack = encoder(p, depth=1)
    parts, layout = parts_of(stack.layer[0]), Padded(MASKS[mask])
    x = torch.randn(2, 7, E, requires_grad=True)

    def both(x):
        torch.manual_seed(5)
        x = core.attention_block(x, layout, parts.attention, 3, attention_p=p, hidden_p=p)
        return core.mlp_block(x, parts.mlp, hidden_p=p)

    ours = result(both, stack, x)
    monkeypatch.setattr(device, "KINDS", frozenset())
    monkeypatch.setattr(linear, "ordinary", lambda parts: False)
    monkeypatch.setattr(feed_forward, "ordinary", lambda parts: False)
    by_ops = result(both, stack, x)
    torch.testing.assert_close(ours.output, by_ops.output, rtol=1e-5, atol=1e-5)
    for name, gradient in ours.gradients.items():
        torch.testing.assert_close(gradient, by_ops.gradients[name], rtol=1e-4, atol=1e-4)


FROZEN = {
    "a layer": "layer.0.",
    "biases": "bias",
    "norms": "LayerNorm",
    "all products": "weight",
    "queries and keys": ("query", "key"),
    "all parameters": "",
}


@pytest.mark.parametrize("x_too", [False, True])
@pytest.mark.parametrize("what", FROZEN)
def test_what_needs_no_gradient_gets_none(what, x_too):
    stack = encoder()
    x, layout = rows(read=True)
    every = result(lambda x: at_once(stack, x, layout), stack, x)
    parts = FROZEN[what] if isinstance(FROZEN[what], tuple) else (FROZEN[what],)
    for name, parameter in stack.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    if x_too:
        if what == "all parameters":
            pytest.skip("nothing is left that needs a gradient")
        x.requires_grad_(False)
    some = result(lambda x: at_once(stack, x, layout), stack, x)
    expected = {name for name, p in stack.named_parameters() if p.requires_grad} | ({"x"} if x.requires_grad else set())
    assert some.gradients.keys() == expected
    for name, gradient in some.gradients.items():
        assert torch.equal(gradient, every.gradients[name])


def test_two_forwards_before_a_backward():
    """Between them weights change, as for a second call of a loop: each has the copies of its own."""
    stack = encoder()
    x, layout = rows()
    y = at_once(stack, x, layout)
    with torch.no_grad():
        query = stack.layer[1].attention.self.query.weight
        before, kept = query.clone(), query.detach().clone()
        at_once(stack, x.detach().requires_grad_(), layout)
    del before
    other = at_once(stack, x, layout)
    y.sum().backward()
    first = query.grad.clone()
    query.grad = None
    other.sum().backward()
    assert torch.equal(first, query.grad)
    assert torch.equal(query, kept)


def test_weights_edited_between_forward_and_backward_are_an_error():
    stack = encoder()
    x, layout = rows()
    y = at_once(stack, x, layout)
    with torch.no_grad():
        stack.layer[0].output.dense.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_there_is_no_second_derivative():
    stack = encoder(depth=1)
    x, layout = rows()
    (gradient,) = torch.autograd.grad(at_once(stack, x, layout).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["float32", "autocast"])
def test_checkpointing_gives_the_same_bits(name):
    stack = encoder(0.2, depth=3)
    x, layout = rows(read=True)
    drawn = seeds.draw(9, "cpu")
    with casting(name):
        plain = result(lambda x: at_once(stack, x, layout, drawn), stack, x)
        stack.gradient_checkpointing = True
        spare = result(lambda x: at_once(stack, x, layout, drawn), stack, x)
    assert torch.equal(plain.output, spare.output)
    for name, gradient in plain.gradients.items():
        assert torch.equal(gradient, spare.gradients[name])


def test_checkpointing_keeps_only_inputs():
    kept = []
    stack = encoder(depth=3)
    x, layout = rows()
    for checkpointing in (False, True):
        stack.gradient_checkpointing = checkpointing
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            at_once(stack, x, layout)
        kept.append(sum(t.numel() for t in saved if not isinstance(t, nn.Parameter)))
    assert kept[1] < kept[0] / 4


def test_a_backward_inside_autocast_has_the_bits_of_one_outside():
    stack = encoder()
    x, layout = rows()
    gradients = []
    for inside in (False, True):
        stack.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = at_once(stack, x, layout).sum()
            if inside:
                y.backward()
        if not inside:
            y.backward()
        gradients.append([p.grad for p in stack.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_held_copies_are_read_until_they_are_refreshed():
    stack = encoder()
    x, layout = rows()
    with joined.held(stack) as copies:
        before = at_once(stack, x, layout).detach()
        with torch.no_grad():
            stack.layer[0].attention.self.query.weight.add_(1)
        assert torch.equal(at_once(stack, x, layout), before)
        copies.refresh()
        after = at_once(stack, x, layout).detach()
        assert copies.nbytes() == sum(t.nbytes for copies in copies._copies.values() for t in copies[0].targets)
    assert not torch.equal(after, before)
    assert torch.equal(at_once(stack, x, layout), after)


def test_the_encoder_s_padded_batch_goes_the_same_way():
    stack = encoder()
    x = torch.randn(2, 7, E, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    y = stack(x, mask)
    packing = ops.pack(mask)
    flat = at_once(stack, ops.unpad(x, packing), rows()[1].__class__(packing.cu_seqlens, packing.max_seqlen))
    assert torch.equal(y, ops.repad(flat, packing))
