"""Batches get into static memory whole and in order; on a pretended GPU by one copy and one launch, with no wait but for a slot."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from fake_cuda import DEVICE
from torch import Tensor

from bertfast.data.batches import Sample, collate
from bertfast.graphs import feed

CPU = torch.device("cpu")


def batch_of(lengths, **options):
    """Ids and labels tell batches and places apart."""
    samples = [
        Sample(range(100 * n, 100 * n + n), sequence_labels={"labels": 0.5 * n}, token_labels={"tags": [n] * n})
        for n in lengths
    ]
    return collate(samples, **{"token_budget": 24, "max_sequences": 4} | options)


def tensors(batch):
    return {name: value for name, value in batch.inputs().items() if isinstance(value, Tensor)}


def test_static_batches_hold_the_last_batch_of_their_key():
    one = feed.Feed(CPU)
    first, second, padded = (
        batch_of([3, 5]),
        batch_of([7, 4, 2]),
        batch_of([3, 5], layout="padded", pad_to=8, token_budget=None, max_sequences=None),
    )
    static = one.put(first, "packed")
    other = one.put(padded, "padded")
    addresses = {name: tensor.data_ptr() for name, tensor in tensors(static).items()}
    assert one.put(second, "packed") is static
    assert addresses == {name: tensor.data_ptr() for name, tensor in tensors(static).items()}
    for got, given in ((static, second), (other, padded)):
        expected = tensors(given)
        assert tensors(got).keys() == expected.keys()
        for name, tensor in tensors(got).items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor, expected[name])
            assert (tensor.data_ptr() - got.input_ids.data_ptr()) % 256 == 0
    assert one.nbytes == sum(-(-t.nbytes // 256) * 256 for each in (first, padded) for t in tensors(each).values())


def test_signatures():
    assert feed.signature(batch_of([3, 5])) == feed.signature(batch_of([7, 4, 2]))
    assert feed.signature(batch_of([3, 5])) != feed.signature(batch_of([3, 5], token_budget=32))
    wide = batch_of([3, 5])
    wide = replace(wide, labels=wide.labels | {"labels": wide.labels["labels"].double()})
    assert feed.signature(batch_of([3, 5])) != feed.signature(wide)


def test_tensors_without_numbers():
    @dataclass
    class Pair:
        a: Tensor
        b: Tensor

        def map(self, function):
            return Pair(function(self.a), function(self.b))

    static = feed.Feed(CPU).put(Pair(torch.zeros(0, dtype=torch.int64), torch.arange(3)), "key")
    assert static.a.shape == (0,)
    assert static.b.tolist() == [0, 1, 2]


class Device:
    """Streams that run what they were given only when somebody waits for them, as late as they can: a race shows itself."""

    def __init__(self, patch):
        self.main, self.current = Stream("compute"), None
        self.current, self.waits = self.main, []
        patch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
        patch.setattr(torch.cuda, "Event", lambda: Event(self))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        patch.setattr(torch.cuda, "stream", self.entered)
        copy, empty, zeros = Tensor.copy_, torch.empty, torch.zeros
        patch.setattr(torch, "empty", lambda *size, pin_memory=False, device=None, **options: empty(*size, **options))
        patch.setattr(torch, "zeros", lambda *size, device=None, **options: zeros(*size, **options))
        patch.setattr(feed, "_to_device", lambda to, source: self.current.queue.append(lambda: copy(to, source)))

    def entered(self, stream):
        return Entered(self, stream)


class Entered:
    def __init__(self, device, stream):
        self.device, self.stream = device, stream

    def __enter__(self):
        self.before, self.device.current = self.device.current, self.stream

    def __exit__(self, *_):
        self.device.current = self.before


class Stream:
    def __init__(self, name):
        self.name, self.queue = name, []

    def wait_event(self, event):
        self.queue.append(event.reach)

    def wait_stream(self, other):
        end = len(other.queue)
        self.queue.append(lambda: other.run(end))

    def run(self, until=None):
        """What was launched, up to so many of all that ever were."""
        done = getattr(self, "done", 0)
        until = len(self.queue) if until is None else until
        while done < until:
            self.done = done = done + 1
            self.queue[done - 1]()


class Event:
    def __init__(self, device):
        self.device = device

    def record(self, stream):
        self.stream, self.end = stream, len(stream.queue)

    def reach(self):
        self.stream.run(self.end)

    def synchronize(self):
        self.device.waits.append(self.stream.name)
        self.reach()


def test_a_gpu_gets_every_batch_in_its_turn(monkeypatch):
    """Ten steps are launched before the device begins; each reads its own batch. The host waits for slots of copies alone."""
    device = Device(monkeypatch)
    one, seen, batches = feed.Feed(DEVICE), [], [batch_of([2 + n, 3, 9 - n]) for n in range(7)]
    for batch in batches:
        read = partial(
            lambda static: seen.append({name: t.clone() for name, t in tensors(static).items()}), one.put(batch, "key")
        )
        device.main.queue.append(read)
        # The host may write over a batch as soon as it was put.
        batch.map(lambda tensor: tensor.fill_(77) if tensor.dtype == torch.float32 else tensor)
    device.main.run()
    assert device.waits == ["copies"] * 3
    assert len(seen) == 7
    for numbers, batch in zip(seen, [batch_of([2 + n, 3, 9 - n]) for n in range(7)], strict=True):
        for name, tensor in tensors(batch).items():
            assert torch.equal(numbers[name], tensor), name


@pytest.mark.parametrize("larger", [True, False])
def test_a_ring_grows(monkeypatch, larger):
    device = Device(monkeypatch)
    one, seen = feed.Feed(DEVICE), []
    small, large = batch_of([3, 5]), batch_of([7, 9, 2], token_budget=96)
    for key, batch in (("small", small), ("large", large) if larger else ("small", small), ("small", small)):
        static = one.put(batch, key)
        device.main.queue.append(lambda static=static: seen.append(static.input_ids.clone()))
    device.main.run()
    assert [ids.tolist() for ids in seen] == [
        each.input_ids.tolist() for each in (small, large if larger else small, small)
    ]
