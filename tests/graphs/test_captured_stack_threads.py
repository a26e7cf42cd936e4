"""A captured stack in several threads, and in a forked child."""

import os
import threading

import pytest
import torch
from stack_cases import (
    CAPTURED,
    FIRST,
    REPLAYED,
    captured_encoder,
    eagerly,
    encoder,
    loss_of,
    rows_of,
    run,
    step,
)

from bertfast import _torch
from bertfast.graphs import stack


def test_several_threads(device):
    """Each with a model and a loop of its own: gradients are right, whatever runs eagerly meanwhile."""
    errors, hows = [], []

    def loop(number):
        try:
            layers = encoder(0.0, layers=1)
            for turn in range(12):
                x, layout = rows_of(seed=10 * number + turn)
                rows, how = run(layers, x, layout)
                hows.append(how)
                (dx,) = torch.autograd.grad(loss_of(rows), x)
                (expected,) = torch.autograd.grad(loss_of(eagerly(layers, x, layout)), x)
                assert torch.equal(dx, expected), how
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1800)
        assert not thread.is_alive(), "threads wait for each other"
    assert not errors, errors[0]
    assert set(hows) <= {
        FIRST, CAPTURED, REPLAYED, f"eager: {stack.PENDING}", "eager: another thread captures"
    }  # fmt: skip
    assert REPLAYED in hows


def test_a_backward_waits_for_no_capture(device):
    """It may run on the thread that a capture's own backward needs."""
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    torch.manual_seed(7)
    rows = run(layers, x, layout).rows
    begun, ended = threading.Event(), threading.Event()

    def capture():
        assert device.begin_capture()
        begun.set()
        ended.wait()
        device.end()

    thread = threading.Thread(target=capture)
    thread.start()
    begun.wait(1800)
    found = []
    other = threading.Thread(target=lambda: found.append(torch.autograd.grad(loss_of(rows), x)[0]))
    other.start()
    other.join(600)
    waits = other.is_alive()
    ended.set()
    thread.join()
    other.join()
    assert not waits
    assert torch.equal(found[0], expected.dx)


def test_a_turn_in_a_backward(device, monkeypatch):
    """It waits for a replay, and gives up where a capture begins while it waits."""
    monkeypatch.setattr(_torch, "in_backward", lambda: True)
    assert device.begin()
    found = []
    thread = threading.Thread(target=lambda: found.append(device.begin()))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert device._captures.acquire(blocking=False)
    thread.join(1800)
    device._captures.release()
    device.end()
    assert found == [False]
    assert device.begin()
    device.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_trains(device):
    layers = captured_encoder()
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            found = run(layers, x, layout)
            (dx,) = torch.autograd.grad(loss_of(found.rows), x)
            code = 0 if torch.equal(dx, expected.dx) and found.how is None else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert run(layers, x, layout).how == REPLAYED
