"""Shared memory that knows who touched which of its bytes, and the barriers in it.

Every partition and every kind of asynchronous work has a counter of its own, an agent. A clock says for each agent how far its work
is known to be done: clocks travel with arrivals at barriers and waits for them. Two accesses are ordered if the later one's clock
contains the earlier one, whatever the order that this run happened to take, so one run finds a missing wait that few runs would
show. `fenced` is the part of a clock that an asynchronous access may rely on: what a partition stored before a
`fence_async_shared` of its own.
"""

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import scheduler
from .faults import Fault
from .values import Value, kernel_dtype, scalar_or_value, torch_dtype

Clock = dict[Hashable, int]


def join(clock: Clock, other: Clock) -> None:
    """Let `clock` know what `other` knows."""
    for agent, time in other.items():
        if clock.get(agent, 0) < time:
            clock[agent] = time


@dataclass
class Access:
    """Bytes that an agent reads or writes; done once a clock has the agent at `time`."""

    agent: Hashable
    time: int
    writes: bool
    asynchronous: bool
    what: str
    name: str
    bytes: int  # a bit for each byte of the allocation

    def verb(self) -> str:
        return f"{'written' if self.writes else 'read'} by {self.what}"


@dataclass
class Allocation:
    memory: Tensor  # uint8
    accesses: list[Access] = field(default_factory=list)
    written: int = 0
    barriers: dict[int, "Barrier"] = field(default_factory=dict)
    masks: dict[tuple, int] = field(default_factory=dict)

    def touch(self, access: Access, clock: Clock, fenced: Clock) -> None:
        """Note an access, which is a fault unless it is ordered after all earlier ones that it cannot share its bytes with."""
        if not access.writes and access.bytes & ~self.written:
            raise Fault("uninitialised", f"{access.name} is {access.verb()} where nothing was ever written")
        for earlier in self.accesses:
            if not (earlier.writes or access.writes) or not earlier.bytes & access.bytes:
                continue
            if clock.get(earlier.agent, 0) < earlier.time:
                raise Fault("race", f"{access.name} is {access.verb()} while it may still be {earlier.verb()}")
            unfenced = earlier.writes and not earlier.asynchronous and access.asynchronous
            if unfenced and fenced.get(earlier.agent, 0) < earlier.time:
                raise Fault(
                    "fence", f"{access.name} is {access.verb()}, and no fence_async_shared since {earlier.verb()}"
                )
        if access.writes:
            self.written |= access.bytes
            self.accesses = [a for a in self.accesses if a.bytes & ~access.bytes]
        else:  # the same agent's earlier reads of these bytes say nothing more
            self.accesses = [a for a in self.accesses if a.writes or a.agent != access.agent or a.bytes & ~access.bytes]
        self.accesses.append(access)


def touch(
    task: "scheduler.Task", view: "Shared", *, writes: bool, what: str, agent: Hashable = None, time: int | None = None
) -> None:
    """Note an access of a partition or, with `agent` and `time`, of asynchronous work that it starts."""
    asynchronous = agent is not None
    access = Access(
        agent=agent if asynchronous else task,
        time=task.clock[task] if time is None else time,
        writes=writes,
        asynchronous=asynchronous,
        what=f"{what} of {task.name} at {scheduler.place()}",
        name=view.name,
        bytes=view.bytes(),
    )
    view.allocation.touch(access, task.clock, task.fenced)


class Shared:
    """A view of shared memory, as `allocate_shared_memory` and its own methods give it."""

    def __init__(
        self,
        allocation: Allocation,
        name: str,
        kind: torch.dtype,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int,
    ) -> None:
        self.allocation, self.name, self.kind, self.offset = allocation, name, kind, offset
        self.shape, self.strides = tuple(shape), tuple(strides)

    @classmethod
    def allocate(cls, name: str, dtype: Any, shape: Sequence[int]) -> "Shared":
        """Fresh memory: all bits set, which is NaN in every floating type."""
        kind, sizes = torch_dtype(dtype), [operator.index(size) for size in shape]
        memory = torch.full((prod(sizes) * kind.itemsize,), 255, dtype=torch.uint8)
        return cls(Allocation(memory), name, kind, sizes, _contiguous(sizes), 0)

    @property
    def dtype(self) -> Any:
        return kernel_dtype(self.kind)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def index(self, index: Any) -> "Shared":
        place = operator.index(index)
        if not 0 <= place < self.shape[0]:
            raise Fault("bounds", f"{self.name}.index({place}) of {self.shape[0]}")
        view = self._view(self.shape[1:], self.strides[1:], self.offset + place * self.strides[0])
        view.name += f"[{place}]"
        return view

    def slice(self, start: Any, length: Any, dim: int = 0) -> "Shared":
        begin, size = operator.index(start), operator.index(length)
        if begin < 0 or begin + size > self.shape[dim]:
            raise Fault("bounds", f"{self.name}.slice({begin}, {size}) of {self.shape[dim]}")
        shape = (*self.shape[:dim], size, *self.shape[dim + 1 :])
        view = self._view(shape, self.strides, self.offset + begin * self.strides[dim])
        view.name += f"[{':, ' * dim}{begin}:{begin + size}]"
        return view

    def permute(self, order: Sequence[int]) -> "Shared":
        if sorted(order) != list(range(self.rank)):
            raise Fault("shape", f"permute{tuple(order)} of {self.rank} dimensions")
        return self._view([self.shape[i] for i in order], [self.strides[i] for i in order], self.offset)

    def reshape(self, shape: Sequence[int]) -> "Shared":
        if self.strides != _contiguous(self.shape) or prod(shape) != self.numel:
            raise Fault("shape", f"{self.name} {list(self.shape)} cannot be reshaped to {list(shape)}")
        return self._view(shape, _contiguous(shape), self.offset)

    def _reinterpret(self, dtype: Any, shape: Sequence[int], layout: Any) -> "Shared":
        kind = torch_dtype(dtype)
        begin, size = self.offset * self.kind.itemsize, prod(shape) * kind.itemsize
        if begin + size > self.allocation.memory.numel() or begin % kind.itemsize:
            raise Fault("bounds", f"{self.name} has no room for {dtype} {list(shape)}")
        return Shared(self.allocation, self.name, kind, shape, _contiguous(shape), begin // kind.itemsize)

    def _keep_alive(self) -> None:
        pass

    def load(self, layout: Any) -> Any:
        touch(scheduler.step(), self, writes=False, what="load")
        return scalar_or_value(self.tensor().clone())

    def store(self, value: Any) -> None:
        if not isinstance(value, Value) or tuple(value.shape) != self.shape or value.dtype != self.dtype:
            what = f"{value.dtype} {value.shape}" if isinstance(value, Value) else repr(value)
            raise Fault("shape", f"{what} is stored to {self.name}, {self.dtype} {list(self.shape)}")
        touch(scheduler.step(), self, writes=True, what="store")
        self.tensor().copy_(value.data)

    def tensor(self) -> Tensor:
        """The bytes of this view, to read or write now."""
        return self.allocation.memory.view(self.kind).as_strided(self.shape, self.strides, self.offset)

    def bytes(self) -> int:
        """A bit for each byte of the allocation: whether it belongs to this view."""
        key = (self.kind.itemsize, self.offset, self.shape, self.strides)
        mask = self.allocation.masks.get(key)
        if mask is None:
            size, width = self.allocation.memory.numel(), self.kind.itemsize
            inside = torch.zeros(size // width, dtype=torch.bool)
            inside.as_strided(self.shape, self.strides, self.offset).fill_(True)
            bits = np.packbits(np.repeat(inside.numpy(), width), bitorder="little")
            mask = self.allocation.masks[key] = int.from_bytes(bits.tobytes(), "little")
        return mask

    def barrier(self) -> "Barrier":
        found = self.allocation.barriers.get(self.offset)
        if self.shape != (1,) or found is None:
            raise Fault("barrier", f"{self.name} {list(self.shape)} is no initialised barrier")
        return found

    def _view(self, shape: Sequence[int], strides: Sequence[int], offset: int) -> "Shared":
        return Shared(self.allocation, self.name, self.kind, shape, strides, offset)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass
class Barrier:
    """An mbarrier: a phase is complete when `count` arrivals and as many bytes as were expected have come."""

    name: str
    count: int
    maker: "scheduler.Task"
    made: int  # in the maker's time
    pending: int = 0
    expected: int = 0  # bytes, of this phase
    brought: int = 0
    copies: int = 0  # that were asked for in this phase and have not brought all
    phase: int = 0
    gathered: Clock = field(default_factory=dict)  # what those who arrived in this phase knew
    gathered_fenced: Clock = field(default_factory=dict)
    released: Clock = field(default_factory=dict)  # what whoever waits for the latest phase learns
    released_fenced: Clock = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pending = self.count

    def check_fence(self, task: "scheduler.Task") -> None:
        """Copies see a barrier from the first `fence_async_shared` after its `init` on."""
        if task.fenced.get(self.maker, 0) < self.made:
            raise Fault(
                "fence", f"a copy to {self.name} at {scheduler.place()}, and no fence_async_shared since its init"
            )

    def passed(self, parity: int) -> bool:
        return self.phase & 1 != parity

    def learn(self, clock: Clock, fenced: Clock) -> None:
        join(self.gathered, clock)
        join(self.gathered_fenced, fenced)

    def arrive(self, count: int, clock: Clock, fenced: Clock) -> None:
        if count > self.pending:
            raise Fault("arrivals", f"{count} more at {self.name}, which waits for {self.pending} of {self.count}")
        self.learn(clock, fenced)
        self.pending -= count
        self.advance()

    def advance(self) -> None:
        """Go to the next phase if this one is complete."""
        if self.pending or self.expected != self.brought:
            return
        if self.copies:
            raise Fault(
                "bytes", f"{self.name} expects {self.expected} bytes, and a copy to it has not brought its last"
            )
        self.phase += 1
        self.pending, self.expected, self.brought = self.count, 0, 0
        join(self.released, self.gathered)
        join(self.released_fenced, self.gathered_fenced)
        self.released[(self, "copies")] = self.phase
        self.gathered, self.gathered_fenced = {}, {}

    def state(self) -> str:
        text = f"{self.name} in phase {self.phase}, waiting for {self.pending} of {self.count} arrivals"
        if self.expected != self.brought:
            text += f", with {self.expected} bytes expected and {self.brought} brought"
        return text

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other
