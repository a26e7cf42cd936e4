"""bertfast.triton.counters: who gets which counters, on fake streams, and that they stay apart where launches may meet."""

from types import SimpleNamespace

import pytest
import torch

from bertfast import _torch
from bertfast.triton import counters


@pytest.fixture
def gpu(monkeypatch):
    """Streams of a GPU that is not there: `gpu.stream` is the current one, `gpu.capturing` whether it is captured."""
    state = SimpleNamespace(stream=7, capturing=False, device=torch.device("cuda", 0), zeroed=[])
    monkeypatch.setattr(counters, "_streams", {})
    monkeypatch.setattr(counters, "_captures", {})
    monkeypatch.setattr(_torch, "current_stream", lambda index: state.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)

    def zeros(device):
        state.zeroed.append((state.stream, state.capturing))
        return torch.zeros(counters.COUNT, dtype=torch.int32)

    monkeypatch.setattr(counters, "_zeros", zeros)
    monkeypatch.setattr(counters, "_PLAIN", frozenset((torch.Tensor, SimpleNamespace)))
    state.x = SimpleNamespace(device=state.device)
    return state


def test_a_stream_keeps_its_own(gpu):
    first = counters.of(gpu.x, 1)
    assert counters.of(gpu.x, counters.COUNT) is first
    gpu.stream = 8
    second = counters.of(gpu.x, 1)
    assert second.data_ptr() != first.data_ptr()
    gpu.stream = 7
    assert counters.of(gpu.x, 1) is first
    assert gpu.zeroed == [(7, False), (8, False)]  # each on the stream that uses it


def test_a_launch_that_needs_more_has_none(gpu):
    assert counters.of(gpu.x, counters.COUNT + 1) is None
    assert gpu.zeroed == []


def test_only_a_prepared_stream_has_some_while_captured(gpu):
    eager = counters.of(gpu.x, 1)
    gpu.capturing = True
    assert counters.of(gpu.x, 1) is None  # this stream's graphs may run beside one another
    assert counters.of(gpu.x, 1) is None
    gpu.capturing = False
    counters.prepare(gpu.device, 9)
    counters.prepare(gpu.device, 9)
    assert gpu.zeroed == [(7, False), (7, False)]  # once, before the capture, and nothing in it
    gpu.stream, gpu.capturing = 9, True
    captured = counters.of(gpu.x, 1)
    assert captured is not None
    assert captured is not eager
    assert counters.of(gpu.x, 1) is captured
    gpu.capturing = False
    assert counters.of(gpu.x, 1) is not captured  # eager work of the same stream does not wait for its graphs


def test_what_is_recorded_leaves_nothing_behind():
    before = dict(counters._streams)
    found = counters.of(torch.empty(3, device="meta"), 4)
    assert found.device.type == "meta"
    assert found.dtype == torch.int32
    assert counters._streams == before


def test_pretended_counters_are_not_kept(monkeypatch):
    from torch._subclasses import FakeTensorMode

    monkeypatch.setattr(counters, "_captures", {})
    with FakeTensorMode():
        counters.prepare(torch.device("cpu"), 3)
    assert counters._captures == {}
