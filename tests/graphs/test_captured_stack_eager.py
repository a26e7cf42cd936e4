"""Calls of a captured stack that run eagerly, and the reason that each gives."""

import threading
import warnings

import pytest
import torch
from stack_cases import (
    FIRST,
    REPLAYED,
    assert_close,
    assert_equal,
    captured_encoder,
    encoder,
    loss_of,
    rows_of,
    run,
    step,
)
from torch.utils.checkpoint import checkpoint

from bertfast import _library, graphs
from bertfast.graphs.cache import Limits
from bertfast.nn import joined


def reason_of(layers, **options) -> str:
    """Why the next call runs eagerly; its numbers are those of an eager one."""
    x, layout = rows_of()
    how = run(layers, x, layout, **options).how
    assert how.startswith("eager: ")
    assert_equal(step(layers, x, layout, captured=True), step(layers, x, layout, captured=False))
    return how.removeprefix("eager: ")


def test_suspended(device):
    layers = captured_encoder()
    with graphs.suspended():
        assert reason_of(layers) == "its caller captures whole steps"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(run(layers, *rows_of()).how))
        thread.start()
        thread.join()
    assert seen == [REPLAYED], "it is this thread's"
    assert run(layers, *rows_of()).how == REPLAYED


def test_no_graphs(device):
    layers = encoder()
    x, layout = rows_of()
    for _ in range(3):
        assert run(layers, x, layout, Limits(max_graphs=0)).how == "eager: max_graphs is 0"


def test_anomaly_detection(device):
    layers = captured_encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            assert reason_of(layers) == "anomaly detection looks at every number"


def test_torchs_own_functions(device, monkeypatch):
    layers = captured_encoder()
    monkeypatch.setattr(_library, "resolved", lambda name, key: _library.meaning(name))
    assert reason_of(layers) == "torch's own functions run for some ops"


def test_without_gradients(device):
    layers = captured_encoder()
    x, layout = rows_of()
    with torch.no_grad():
        assert run(layers, x, layout).how is None
    layers.requires_grad_(False)
    assert run(layers, x.detach(), layout).how is None
    assert run(layers, *rows_of()).how == FIRST, "x alone needs one"


def test_on_a_device_where_nothing_is_captured():
    layers = encoder()
    assert run(layers, *rows_of()).how is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_around_it(device, reentrant):
    """Every forward of a checkpointed part runs eagerly, in the backward too, so that both save the same."""
    layers, hows = captured_encoder(dropout=0.1), []

    def part(x, layout):
        rows, how = run(layers, x, layout)
        hows.append(how)
        return rows

    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    layers.zero_grad()
    x.grad = None
    torch.manual_seed(7)
    loss_of(checkpoint(part, x, layout, use_reentrant=reentrant)).backward()
    found = {name: p.grad for name, p in layers.named_parameters()}
    assert_close(expected._replace(dx=x.grad, gradients=found), expected)
    elsewhere = "eager: what is saved for backward goes elsewhere, as in checkpointing"
    # The second forward of the other kind ends where all that was saved is there again.
    assert hows == ([None, "eager: it is called in a backward, as checkpointing does"] if reentrant else [elsewhere])
    assert run(layers, x, layout).how == REPLAYED


def test_copies_that_somebody_holds(device):
    layers = captured_encoder()
    with joined.held(layers):
        assert reason_of(layers) == "its caller says when copies of the weights are written"
    assert run(layers, *rows_of()).how == REPLAYED


def test_offloading(device):
    layers = captured_encoder()
    with torch.autograd.graph.save_on_cpu():
        assert "goes elsewhere" in reason_of(layers)


def test_dispatch_modes_and_transforms(device):
    from torch.utils.flop_counter import FlopCounterMode

    layers = captured_encoder()
    with FlopCounterMode(display=False):
        assert run(layers, *rows_of()).how.startswith("eager: ")


def test_called_inside_a_turn(device):
    layers = captured_encoder()
    assert device.begin()
    try:
        assert reason_of(layers) == "it is called inside another captured call"
    finally:
        device.end()


def test_its_caller_captures(device, monkeypatch):
    layers = captured_encoder()
    monkeypatch.setattr(device, "is_capturing", lambda: True)
    assert reason_of(layers) == "its stream is being captured by its caller"


def test_a_backward_that_its_caller_captures(device, monkeypatch):
    """Or one while another thread captures: it is computed from the call's own tensors."""
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    for name in ("is_capturing", "in_turn"):
        torch.manual_seed(7)
        rows = run(layers, x, layout).rows
        with monkeypatch.context() as patch:
            patch.setattr(device, name, lambda: True)
            (dx,) = torch.autograd.grad(loss_of(rows), x)
        assert torch.equal(dx, expected.dx)
        del rows
