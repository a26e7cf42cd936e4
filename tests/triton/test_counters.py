"""bertfast.triton.counters: who gets which counters, on fake streams, and that they stay apart where launches may meet."""

import threading
from contextlib import suppress
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
    monkeypatch.setattr(counters, "_under_way", set())
    monkeypatch.setattr(_torch, "current_stream", lambda index: state.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)

    def zeros(device):
        state.zeroed.append((state.stream, state.capturing))
        return SimpleNamespace(device=device, dtype=torch.int32, shape=(counters.COUNT,))

    monkeypatch.setattr(counters, "_zeros", zeros)
    monkeypatch.setattr(counters, "_PLAIN", frozenset((torch.Tensor, SimpleNamespace)))
    state.x = SimpleNamespace(device=state.device)
    return state


def test_a_stream_keeps_its_own(gpu):
    first = counters.of(gpu.x, 1)
    assert counters.of(gpu.x, counters.COUNT) is first
    gpu.stream = 8
    second = counters.of(gpu.x, 1)
    assert second is not first
    gpu.stream = 7
    assert counters.of(gpu.x, 1) is first
    assert gpu.zeroed == [(7, False), (8, False)]  # each on the stream that uses it


def test_a_launch_that_needs_more_has_none(gpu):
    assert counters.of(gpu.x, counters.COUNT + 1) is None
    assert gpu.zeroed == []


def test_a_capture_has_some_only_while_it_is_announced(gpu):
    eager = counters.of(gpu.x, 1)
    gpu.capturing = True
    assert counters.of(gpu.x, 1) is None  # this stream's graphs may run beside one another
    gpu.capturing = False
    captured = []
    for _ in range(2):
        with counters.capturing(gpu.device, 9):
            gpu.stream, gpu.capturing = 9, True
            captured.append(counters.of(gpu.x, 1))
            assert counters.of(gpu.x, 1) is captured[0]
            assert counters.are_counters(captured[0])
            assert counters.are_current(captured[0])
            gpu.stream = 7
            assert counters.of(gpu.x, 1) is None  # somebody else's, at the same time
            assert not counters.are_current(eager)
            gpu.capturing = False
            assert counters.of(gpu.x, 1) is eager
            assert not counters.are_current(captured[0])
    assert captured[0] is captured[1] is not None
    assert captured[0] is not eager
    assert gpu.zeroed == [(7, False), (7, False)]  # once, before the capture, and nothing in it
    gpu.stream = 9
    assert counters.of(gpu.x, 1) is not captured[0]  # eager work of the same stream does not wait for its graphs


def test_somebody_else_s_capture_on_a_handle_that_was_handed_out_again_has_none(gpu):
    with counters.capturing(gpu.device, 9):
        gpu.stream, gpu.capturing = 9, True
        assert counters.of(gpu.x, 1) is not None
    assert counters.of(gpu.x, 1) is None


def test_launches_of_other_threads_are_in_the_capture_too(gpu):
    """As those of a backward, which autograd runs on a thread of its own."""
    seen = []
    with counters.capturing(gpu.device, 9):
        gpu.stream, gpu.capturing = 9, True
        thread = threading.Thread(target=lambda: seen.append(counters.of(gpu.x, 1)))
        thread.start()
        thread.join()
        assert seen[0] is counters.of(gpu.x, 1) is not None


def test_a_capture_that_breaks_off_leaves_nothing_open(gpu):
    with suppress(RuntimeError), counters.capturing(gpu.device, 9):
        raise RuntimeError("out of memory")
    gpu.stream, gpu.capturing = 9, True
    assert counters.of(gpu.x, 1) is None


def test_other_tensors_are_no_counters(gpu):
    assert not counters.are_counters(torch.zeros(counters.COUNT, dtype=torch.int32))  # bounds of 1,023 sequences
    assert not counters.are_counters(torch.zeros(8, device="meta"))


def test_what_is_recorded_leaves_nothing_behind():
    before = dict(counters._streams)
    found = counters.of(torch.empty(3, device="meta"), 4)
    assert found.device.type == "meta"
    assert found.dtype == torch.int32
    assert counters._streams == before


def test_pretended_counters_are_not_kept(monkeypatch):
    from torch._subclasses import FakeTensorMode

    monkeypatch.setattr(counters, "_captures", {})
    with FakeTensorMode(), counters.capturing(torch.device("cpu"), 3):
        pass
    assert counters._captures == {}
