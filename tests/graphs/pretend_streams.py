"""torch.cuda's streams, events and graphs as far as CudaBackend asks for them: nothing runs, everything is written down."""

from contextlib import contextmanager

import torch

from bertfast.graphs import workspaces
from bertfast.triton import counters


class Stream:
    def __init__(self, log, name):
        self.log, self.name, self.cuda_stream = log, name, hash(name)

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
    """The number of a graph is that of its capture by torch.cuda.graph; what is captured otherwise has a name."""

    def __init__(self, cuda):
        self.cuda, self.log, self.number = cuda, cuda.log, "?"

    def capture_begin(self, *, pool, capture_error_mode):
        self.log.append(f"small capture into pool {pool} on {self.cuda.current.name}, {capture_error_mode}")
        self.number = "small"

    def capture_end(self):
        if self.cuda.small_broken is not None:
            raise self.cuda.small_broken

    def replay(self):
        self.log.append(f"replay {self.number}")

    def reset(self):
        self.log.append(f"reset {self.number}")

    def __del__(self):
        self.log.append(f"end of {self.number}")


class Cuda:
    """What is pretended. `current` is the stream that launches now, `reserved` the device's reserved memory."""

    def __init__(self, patch):
        self.log: list[str] = []
        self.current = Stream(self.log, "main")
        self.other = Stream(self.log, "other")
        self.reserved = 1000
        self.growth = 100  # a capture's
        self.pools = self.graphs = 0
        self.kept: list = []  # tensors and the streams that the allocator was told of
        self.broken: Exception | None = None  # raised when the next capture ends
        self.small_broken: Exception | None = None  # raised whenever a small capture ends
        for name in ("graph", "stream", "graph_pool_handle", "memory_reserved"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "CUDAGraph", lambda: CudaGraph(self))
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.kept.append((tensor, stream)))
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self.release_pool, raising=False)
        patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: self.current.cuda_stream, raising=False)
        patch.setattr(counters, "_captures", {})
        patch.setattr(counters, "_zeros", lambda device: torch.zeros(counters.COUNT, dtype=torch.int32))
        patch.setattr(workspaces, "_operands", lambda device: (torch.zeros(4, 4), torch.zeros(4)))
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(self.log, "side"))
        patch.setattr(torch.cuda, "Event", lambda: Event(self.log))
        patch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def captures(self):
        """Captures by torch.cuda.graph."""
        return [line for line in self.log if line.startswith("capture")]

    def end_allocating(self, device, pool):
        self.log.append(f"no capture into pool {pool} of device {device} is under way any more")

    def release_pool(self, device, pool):
        self.log.append(f"pool {pool} of device {device} is released")

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
        self.graphs += 1
        graph.number = self.graphs
        self.log.append(f"capture {graph.number} into pool {pool} on {stream.name}, {capture_error_mode}")
        before, self.current = self.current, stream
        yield
        if self.broken is not None:  # where ending a capture raises, torch stays on its stream
            error, self.broken = self.broken, None
            raise error
        self.current = before
        self.reserved += self.growth
