"""Batches from the host into static memory of a GPU, so that neither waits for the other.

A batch's tensors are gathered in one pinned buffer of a small ring, go to the device by one copy on a stream of their own, into one
of two buffers, and from there into the static memory by one launch on the stream that computes:

    host      gather k+1 |  launch k+1 ...
    copies        copy k+1 |                    -> buffer (k+1) % 2
    compute   ... step k ............. | copy buffer -> static | step k+1

The host runs ahead of the device by up to a step, so the copy of a batch runs beside the step before it. It waits only for a slot
of the ring that the device has not read yet. On a CPU tensors are copied.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

_ALIGNED = 256  # bytes at which each tensor begins, as in fresh memory of the device: kernels are chosen by alignment
_SLOTS = 4


class Batch(Protocol):
    """What has tensors and a way to exchange them, such as `bertfast.data.batches.Batch`."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Any:
        """The same with `function` of each tensor, always in the same order."""
        ...


class _Place(NamedTuple):
    """Where a tensor lies in the bytes of a batch."""

    begin: int
    end: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, memory: Tensor) -> Tensor:
        return memory[self.begin : self.end].view(self.dtype).view(self.shape)


def _tensors(batch: Batch) -> list[Tensor]:
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    batch.map(note)
    return tensors


def signature(batch: Batch) -> Hashable:
    """Shapes and dtypes of all tensors of a batch."""
    return tuple((tensor.dtype, tuple(tensor.shape)) for tensor in _tensors(batch))


class _Static:
    """The static memory of batches of one signature, and a batch of views of it."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.places: list[_Place] = []
        begin = 0
        for tensor in _tensors(batch):
            self.places.append(_Place(begin, begin + tensor.nbytes, tensor.dtype, tensor.shape))
            begin += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        self.memory = torch.zeros(max(begin, _ALIGNED), dtype=torch.uint8, device=device)
        places = iter(self.places)
        self.batch = batch.map(lambda _: next(places).view(self.memory))

    def gather(self, batch: Batch, memory: Tensor) -> None:
        """Copy a batch's tensors to where they belong in memory of the host."""
        for place, tensor in zip(self.places, _tensors(batch), strict=True):
            place.view(memory).copy_(tensor)


def _to_device(to: Tensor, source: Tensor) -> None:
    """A copy that the present stream makes, from pinned memory or the device's own, for which the host does not wait."""
    to.copy_(source, non_blocking=True)


class Feed:
    """Static batches on one device, by signature, and how batches of the host get into them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._statics: dict[Hashable, _Static] = {}
        self._ring: _Ring | None = None

    @property
    def nbytes(self) -> int:
        """Memory on the device."""
        ring = 0 if self._ring is None else self._ring.nbytes
        return ring + sum(static.memory.nbytes for static in self._statics.values())

    def put(self, batch: Batch, key: Hashable) -> Any:
        """The static batch of a key, which holds the numbers of `batch` for what is launched from now on.

        key: of batches with the same signature and the same plain attributes: those of the static batch are its first one's.
        """
        static = self._statics.get(key)
        if static is None:
            static = self._statics[key] = _Static(batch, self.device)
        if self.device.type == "cuda":
            size = static.memory.numel()
            if self._ring is None or self._ring.size < size:
                self._ring = _Ring(size, self.device)
            self._ring.send(static, batch)
        else:
            static.gather(batch, static.memory)
        return static.batch


class _Ring:
    """Pinned buffers of the host, two buffers of the device, the stream between them, and who may write where."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self._device, self._turn = size, device, 0
        self._hosts = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(_SLOTS)]
        self._sent: list[Any] = [None] * _SLOTS  # events: the device has read the slot
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._read: list[Any] = [None] * 2  # events: what computes has read the buffer
        self._stream = torch.cuda.Stream(device)
        # Memory of the stream that computes may still be written by kernels launched before it was given back.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self.nbytes = 2 * size

    def send(self, static: _Static, batch: Batch) -> None:
        slot, half, size = self._turn % _SLOTS, self._turn % 2, static.memory.numel()
        self._turn += 1
        if self._sent[slot] is not None:
            self._sent[slot].synchronize()  # the one wait of the host, for a copy of four batches ago
        static.gather(batch, self._hosts[slot])
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            if self._read[half] is not None:
                self._stream.wait_event(self._read[half])
            _to_device(self._buffers[half][:size], self._hosts[slot][:size])
            self._sent[slot] = self._recorded(self._stream)
        compute.wait_event(self._sent[slot])
        _to_device(static.memory, self._buffers[half][:size])
        self._read[half] = self._recorded(compute)

    def _recorded(self, stream: Any) -> Any:
        event = torch.cuda.Event()
        event.record(stream)
        return event
