"""torch.cuda's streams, events and graphs as far as CudaBackend asks for them: nothing runs, everything is written down."""

from contextlib import contextmanager

import torch


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for the event on {event.on}")

    def synchronize(self):
        self.log.append(f"host waits for {self.name}")


class Event:
    def __init__(self, log):
        self.log, self.on = log, None

    def record(self, stream):
        self.on = stream.name

    def synchronize(self):
        self.log.append(f"host waits for the event on {self.on}")


class CudaGraph:
    def __init__(self, log, number):
        self.log, self.number = log, number

    def replay(self):
        self.log.append(f"replay {self.number}")

    def reset(self):
        self.log.append(f"reset {self.number}")


class Cuda:
    """What is pretended. `current` is the stream that launches now, `reserved` the device's reserved memory."""

    def __init__(self, patch):
        self.log: list[str] = []
        self.current = Stream(self.log, "main")
        self.other = Stream(self.log, "other")
        self.reserved = 1000
        self.growth = 100  # a capture's
        self.pools = self.graphs = 0
        self.broken: Exception | None = None  # raised when the next capture ends
        for name in ("graph", "stream", "graph_pool_handle", "memory_reserved"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "CUDAGraph", self.make_graph)
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(self.log, "side"))
        patch.setattr(torch.cuda, "Event", lambda: Event(self.log))
        patch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def make_graph(self):
        self.graphs += 1
        return CudaGraph(self.log, self.graphs)

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def memory_reserved(self, device):
        return self.reserved

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.log.append(f"capture {graph.number} into pool {pool} on {stream.name}, {capture_error_mode}")
        before, self.current = self.current, stream
        yield
        if self.broken is not None:  # where ending a capture raises, torch stays on its stream
            error, self.broken = self.broken, None
            raise error
        self.current = before
        self.reserved += self.growth
