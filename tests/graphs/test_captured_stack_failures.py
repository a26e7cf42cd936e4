"""Captures of a stack that fail: an error, no memory, a replay that computes other numbers."""

import warnings

import pytest
import torch
from captured import Taping, captured_on_cpu
from stack_cases import (
    CAPTURED,
    FIRST,
    HOWS,
    assert_equal,
    encoder,
    rows_of,
    step,
)

from bertfast import graphs
from bertfast.graphs import backend as backends
from bertfast.graphs import cache
from bertfast.graphs.cache import Limits


class Broken(Taping):
    """Fails in the capture with this number, from 1 on."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.captures = at, error, 0

    def capture(self, function, pool=backends.INFERENCE):
        assert pool == backends.TRAINING
        self.captures += 1
        if self.captures in self.at:
            raise self.error
        return super().capture(function, pool)


@pytest.mark.parametrize("at", [(1,), (2,)], ids=["forward", "backward"])
def test_a_capture_that_fails(at):
    with captured_on_cpu(Broken(at, RuntimeError("no"))) as device:
        layers = encoder()
        x, layout = rows_of()
        step(layers, x, layout, captured=True, how=FIRST)
        with pytest.warns(UserWarning, match="could not be captured"):
            found = step(layers, x, layout, captured=True, how="eager: capturing it raised RuntimeError: no")
        assert_equal(found, step(layers, x, layout, captured=False))
        assert not device._lock.locked()
        assert graphs.reasons(layers) == ["capturing it raised RuntimeError: no"]
        graphs.clear(layers)
        for how in HOWS:
            step(layers, x, layout, captured=True, how=how)


def test_failures_of_training_do_not_end_inference(device, monkeypatch):
    layers = encoder()
    owned = cache.of(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(2):
            owned.fail(number, "no", backends.TRAINING)
    assert owned.find("a place", [], Limits(), kind=backends.TRAINING) == "no"
    assert owned.find("a place", [], Limits()) == cache.FIRST


@pytest.mark.parametrize("at", [(1,), (2,), (1, 2)], ids=["forward", "backward", "twice"])
def test_out_of_memory_at_a_capture(at):
    with captured_on_cpu(Broken(at, torch.OutOfMemoryError("no"))):
        layers = encoder()
        x, layout = rows_of()
        step(layers, x, layout, captured=True, how=FIRST)
        how = CAPTURED if len(at) == 1 else "eager: there is no memory for its graph"
        found = step(layers, x, layout, captured=True, how=how)
        assert_equal(found, step(layers, x, layout, captured=False))


@pytest.mark.parametrize("which", [1, 2], ids=["forward", "backward"])
def test_a_replay_that_differs(which):
    """Its bits are compared before anybody sees them."""

    class Shifted(Taping):
        captures = 0

        def capture(self, function, pool=backends.INFERENCE):
            self.captures += 1
            graph = super().capture(function, pool)
            replay, shifted = graph.replay, self.captures == which

            def off(function):
                replay(function)
                if shifted:
                    graph.outputs[-1].view(-1)[3] += 1e-3

            graph.replay = off
            return graph

    with captured_on_cpu(Shifted()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = encoder()
        x, layout = rows_of()
        step(layers, x, layout, captured=True, how=FIRST)
        found = step(layers, x, layout, captured=True)
        assert_equal(found, step(layers, x, layout, captured=False))
        (reason,) = graphs.reasons(layers)
        assert "differs from the eager call in 1 of" in reason
        assert ("rows" in reason) == (which == 1)
