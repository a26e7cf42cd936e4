"""What a caller does with rows and gradients of a captured stack: keeps them, asks for some, twice, in another order, by hooks."""

import copy
import gc

import pytest
import torch
from stack_cases import (
    CAPTURED,
    FIRST,
    HOWS,
    REPLAYED,
    WIDTH,
    assert_equal,
    captured_encoder,
    eagerly,
    encoder,
    loss_of,
    rows_of,
    run,
    step,
)

from bertfast import graphs
from bertfast.graphs import stack


def test_gradients_are_the_callers(device):
    """Two backwards add up, and no later call writes into what an earlier one left in `.grad`."""
    layers = captured_encoder()
    twice, once = [], []
    for number in (1, 2):
        x, layout = rows_of(seed=number)
        once.append(step(layers, x, layout, captured=False).gradients)
    layers.zero_grad()
    for number in (1, 2):
        x, layout = rows_of(seed=number)
        found = run(layers, x, layout)
        assert found.how == REPLAYED
        loss_of(found.rows).backward()
        twice.append({name: p.grad for name, p in layers.named_parameters()})
        if number == 1:
            kept = {name: p.grad.clone() for name, p in layers.named_parameters()}
            for name, gradient in kept.items():
                assert torch.equal(gradient, once[0][name])
    for name, gradient in twice[1].items():
        assert torch.equal(gradient, once[0][name] + once[1][name])


def test_rows_are_the_callers(device):
    layers = captured_encoder()
    x, layout = rows_of(seed=1)
    rows = run(layers, x, layout).rows
    kept = rows.detach().clone()
    loss_of(rows).backward()
    with torch.no_grad():
        rows.fill_(3)
    run(layers, *rows_of(seed=2)).rows.sum().backward()
    assert torch.equal(run(layers, x, layout).rows, kept)


def test_a_second_forward_before_the_backward(device):
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of(seed=1)
    other, other_layout = rows_of(seed=2)
    expected = []
    for one, its in ((x, layout), (other, other_layout)):
        expected.append(step(layers, one, its, captured=False))
    layers.zero_grad()
    x.grad = other.grad = None
    torch.manual_seed(7)
    first = run(layers, x, layout)
    torch.manual_seed(7)
    second = run(layers, other, other_layout)
    assert (first.how, second.how) == (REPLAYED, f"eager: {stack.PENDING}")
    loss_of(second.rows).backward()
    loss_of(first.rows).backward()
    assert torch.equal(x.grad, expected[0].dx)
    assert torch.equal(other.grad, expected[1].dx)
    for name, p in layers.named_parameters():
        assert torch.equal(p.grad, expected[1].gradients[name] + expected[0].gradients[name])
    assert run(layers, x, layout).how == REPLAYED


def test_a_result_that_is_dropped_is_not_waited_for(device):
    layers = captured_encoder()
    found = run(layers, *rows_of())
    assert device.is_pending()
    assert run(layers, *rows_of()).how == f"eager: {stack.PENDING}"
    del found
    gc.collect()
    assert not device.is_pending()
    assert run(layers, *rows_of()).how == REPLAYED


def test_the_rule_is_the_devices(device):
    """Two models share it."""
    one, two = captured_encoder(), captured_encoder(dropout=0.1)
    held = run(one, *rows_of())
    assert run(two, *rows_of()).how == f"eager: {stack.PENDING}"
    loss_of(held.rows).backward()
    assert run(two, *rows_of()).how == REPLAYED


def test_nothing_is_captured_between_forward_and_backward(device):
    layers = captured_encoder()
    held = run(layers, *rows_of())
    for _ in range(3):
        assert run(layers, *rows_of((9, 8))).how in (FIRST, f"eager: {stack.PENDING}")
    loss_of(held.rows).backward()
    assert run(layers, *rows_of((9, 8))).how == CAPTURED


def test_backward_twice(device):
    """The second one computes the forward again, with the same dropout: other calls have written over the first's activations."""
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of(seed=1)
    expected = step(layers, x, layout, captured=False)
    layers.zero_grad()
    x.grad = None
    torch.manual_seed(7)
    found = run(layers, x, layout)
    assert found.how == REPLAYED
    loss = loss_of(found.rows)
    loss.backward(retain_graph=True)
    for number in (4, 5):
        again, its = rows_of(seed=number)
        loss_of(run(layers, again, its).rows).backward(inputs=[again])
    loss.backward()
    assert torch.equal(x.grad, expected.dx + expected.dx)
    for name, p in layers.named_parameters():
        assert torch.equal(p.grad, expected.gradients[name] + expected.gradients[name])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_weight_written_to_between_forward_and_backward(device):
    """autograd's error, as eagerly."""
    layers = captured_encoder()
    rows = run(layers, *rows_of()).rows
    with torch.no_grad():
        layers.layer[0].intermediate.dense.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(rows).backward()
    del rows
    x, layout = rows_of()
    assert_equal(step(layers, x, layout, captured=True, how=REPLAYED), step(layers, x, layout, captured=False))


def test_double_backward_is_refused(device):
    layers = captured_encoder()
    x, layout = rows_of()
    (dx,) = torch.autograd.grad(loss_of(run(layers, x, layout).rows), x, create_graph=True)
    with pytest.raises(RuntimeError, match="bertfast"):
        dx.sum().backward()


def test_partial_backward(device):
    """Gradients of some inputs alone, as torch.autograd.grad asks for them."""
    layers = captured_encoder()
    x, layout = rows_of()
    weight = layers.layer[1].output.dense.weight
    expected = torch.autograd.grad(loss_of(eagerly(layers, x, layout)), [x, weight])
    found = torch.autograd.grad(loss_of(run(layers, x, layout).rows), [x, weight])
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_hooks_of_parameters(device):
    """Each sees every gradient once, whole, and may change it; what it writes there reaches nobody else."""
    layers, plain = captured_encoder(), encoder()
    for model in (layers, plain):
        weight = model.layer[0].output.dense.weight
        model.seen = []
        weight.register_hook(lambda g, model=model: model.seen.append("hook") or g * 2)
        weight.register_post_accumulate_grad_hook(lambda p, model=model: model.seen.append(p.grad.clone()))
    for number in range(3):
        x, layout = rows_of(seed=number)
        assert_equal(
            step(layers, x, layout, captured=True, how=REPLAYED),
            step(plain, x.detach().requires_grad_(), layout, captured=False),
        )
    assert layers.seen[::2] == ["hook"] * 3
    assert all(torch.equal(one, two) for one, two in zip(layers.seen[1::2], plain.seen[1::2], strict=True))


def test_hooks_while_it_is_captured(device):
    """A hook does not see the capture's own backwards."""
    layers, seen = encoder(), []
    layers.layer[0].output.dense.weight.register_hook(lambda g: seen.append(g.shape))
    for how in HOWS:
        step(layers, *rows_of(), captured=True, how=how)
    assert len(seen) == 4


def test_inference_between_forward_and_backward(device):
    """Its graphs are in a pool of their own."""
    from bertfast.models import BertConfig, BertModel

    config = BertConfig(
        vocab_size=70, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config).eval()
    ids = torch.randint(1, 70, (4, 12))
    plain = copy.deepcopy(model)
    for one in (model, plain):
        for _ in range(3 if one is model else 1):
            one.zero_grad()
            hidden = one(ids).last_hidden_state
            for _ in range(3 if one is model else 0):
                with torch.no_grad():
                    assert_state = one(ids.flip(0)).last_hidden_state
            loss_of(hidden).backward()
    with torch.no_grad():
        torch.testing.assert_close(assert_state, plain(ids.flip(0)).last_hidden_state, rtol=1e-5, atol=1e-5)
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    assert graphs.memory(model).graphs == 2


def test_graphs_let_go_between_forward_and_backward(device):
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    layers.zero_grad()
    torch.manual_seed(7)
    rows = run(layers, x, layout).rows
    graphs.clear(layers)
    (dx,) = torch.autograd.grad(loss_of(rows), x)
    assert torch.equal(dx, expected.dx)


def test_a_model_that_goes_between_forward_and_backward(device):
    layers = captured_encoder()
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    rows = run(layers, x, layout).rows
    del layers
    gc.collect()
    (dx,) = torch.autograd.grad(loss_of(rows), x)
    assert torch.equal(dx, expected.dx)
