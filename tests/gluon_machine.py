"""What a Gluon kernel runs on in `gluon_interpreter`: partitions that take turns, shared memory, barriers and copies in flight.

Every partition of every program is a thread, and one of them runs at a time. Who is next is drawn by a seed, at each wait, arrival
and asynchronous instruction. Bulk copies and wgmma are jobs of their own that the same draw completes, late and in any order that
the hardware may take: a wgmma reads its operands at one moment between its issue and the wait that retires it, a bulk copy
writes its block row by row. What may not be touched meanwhile is marked, and touching it is a `Fault` that names both sides.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Fault(AssertionError):
    """What a real GPU would answer with wrong numbers or a hang."""


class Stop(BaseException):
    """Another thread failed."""


class Shared:
    """A view of shared memory, and of the marks on each of its elements.

    data: the elements. flight: bulk copies that will still write them. readers: unretired wgmmas and bulk stores that may still
    read them. dirty: partition whose plain store no `fence_async_shared` followed yet, else -1.
    """

    def __init__(self, machine: "Machine", data: Tensor, flight: Tensor, readers: Tensor, dirty: Tensor, name: str):
        self.machine, self.name = machine, name
        self.data, self.flight, self.readers, self.dirty = data, flight, readers, dirty

    @classmethod
    def of(cls, machine: "Machine", dtype: torch.dtype, shape: Sequence[int], name: str) -> "Shared":
        data = torch.empty(tuple(shape), dtype=dtype)
        poison(data)
        marks = [torch.zeros(tuple(shape), dtype=torch.int32) for _ in range(2)]
        return cls(machine, data, *marks, torch.full(tuple(shape), -1, dtype=torch.int32), name)

    def _view(self, change: Callable[[Tensor], Tensor]) -> "Shared":
        views = (change(each) for each in (self.data, self.flight, self.readers, self.dirty))
        return Shared(self.machine, *views, self.name)

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, number: int) -> "Shared":
        number = int(number)
        if not 0 <= number < self.data.shape[0]:
            raise Fault(f"{self.name}.index({number}) of {self.data.shape[0]}")
        return self._view(lambda t: t[number])

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        if not 0 <= start <= start + length <= self.data.shape[dim]:
            raise Fault(f"{self.name}.slice({start}, {length}, dim={dim}) of {tuple(self.data.shape)}")
        return self._view(lambda t: t.narrow(dim, int(start), int(length)))

    def permute(self, order: Sequence[int]) -> "Shared":
        return self._view(lambda t: t.permute(tuple(order)))

    def check_read(self, who: str, *, by_engine: bool) -> None:
        """by_engine: by wgmma or a bulk store, which see what plain stores wrote after a fence alone."""
        if bool((self.flight > 0).any()):
            raise Fault(f"{who} reads {self.name}, which a bulk copy still writes")
        if by_engine and bool((self.dirty >= 0).any()):
            raise Fault(f"{who} reads {self.name}, which was stored to without fence_async_shared after it")

    def check_write(self, who: str) -> None:
        if bool((self.flight > 0).any()):
            raise Fault(f"{who} writes {self.name}, which a bulk copy still writes")
        if bool((self.readers > 0).any()):
            raise Fault(f"{who} writes {self.name}, which a wgmma or a bulk store that nobody waited for may still read")


def poison(data: Tensor) -> None:
    """Make every element what no kernel may come to depend on."""
    data.fill_(float("nan") if data.dtype.is_floating_point else 77)


@dataclass
class Barrier:
    """An mbarrier: `count` arrivals and the bytes that were announced complete a phase."""

    name: str
    count: int
    missing: int = 0
    bytes: int = 0
    phase: int = 0
    valid: bool = True

    def __post_init__(self) -> None:
        self.missing = self.count

    def arrive(self, count: int) -> None:
        if count > self.missing:
            raise Fault(f"{self.name}: {count} arrivals where {self.missing} of {self.count} are missing")
        self.missing -= count
        self._settle()

    def announce(self, count: int) -> None:
        self.bytes += count

    def arrived(self, count: int) -> None:
        self.bytes -= count
        self._settle()

    def _settle(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.phase, self.missing = self.phase + 1, self.count

    def is_over(self, parity: int) -> bool:
        """Whether the phase of this parity is complete: the present one is of the other."""
        return self.phase % 2 != parity


@dataclass
class Job:
    """Something asynchronous, done in steps that the scheduler takes in order."""

    what: str
    steps: list[Callable[[], None]]
    after: "Job | None" = None  # which must be done before
    retire: Callable[[], None] = lambda: None  # when the issuing partition knows of its end

    @property
    def done(self) -> bool:
        return not self.steps

    def step(self) -> None:
        self.steps.pop(0)()


@dataclass
class Partition:
    """One group of warps of one program."""

    name: str
    program: tuple[int, int, int]
    grid: tuple[int, int, int]
    number: int
    baton: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    blocked: Callable[[], bool] | None = None  # what it waits for
    waits: str = ""
    over: bool = False
    wgmmas: list[Job] = field(default_factory=list)  # not retired, oldest first
    stores: list[Job] = field(default_factory=list)


class Machine:
    """Runs partitions until all are over."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.partitions: list[Partition] = []
        self.jobs: list[Job] = []
        self.failure: BaseException | None = None
        self._local = threading.local()
        self._main = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    @property
    def now(self) -> Partition:
        """The partition that runs."""
        return self._local.partition

    def start(self, name: str, program: Any, grid: Any, function: Callable[[], None]) -> Partition:
        partition = Partition(name, program, grid, len(self.partitions))
        self.partitions.append(partition)

        def body() -> None:
            self._local.partition = partition
            partition.baton.acquire()
            try:
                if self.failure is None:
                    function()
            except Stop:
                pass
            except BaseException as problem:  # carried to the caller
                self.failure = self.failure or problem
            partition.over = True
            self._next()

        thread = threading.Thread(target=body, daemon=True)
        self._threads.append(thread)
        thread.start()
        return partition

    def run(self) -> None:
        self._next()
        self._main.acquire()
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure
        left = [job.what for job in self.jobs if not job.done]
        if left:
            raise Fault(f"the kernel ended before {', '.join(left)}")
        for partition in self.partitions:
            if partition.wgmmas:
                raise Fault(f"{partition.name} ended without waiting for its wgmmas")

    def _next(self) -> None:
        """Give the baton to somebody; jobs in between."""
        while True:
            if self.failure is not None:
                waiting = [p for p in self.partitions if not p.over]
                (waiting[0].baton if waiting else self._main).release()
                return
            ready = [p for p in self.partitions if not p.over and (p.blocked is None or p.blocked())]
            jobs = [job for job in self.jobs if not job.done and (job.after is None or job.after.done)]
            if not ready and not jobs:
                if all(p.over for p in self.partitions):
                    self._main.release()
                else:
                    stuck = "; ".join(f"{p.name} {p.waits}" for p in self.partitions if not p.over)
                    self.failure = Fault(f"deadlock: {stuck}")
                    continue
                return
            choice = self.draw.choice([*ready, *jobs])
            if isinstance(choice, Job):
                try:
                    choice.step()
                except BaseException as problem:  # carried to the caller
                    self.failure = problem
                if choice.done:
                    self.jobs.remove(choice)
                continue
            choice.baton.release()
            return

    def switch(self, blocked: Callable[[], bool] | None = None, waits: str = "") -> None:
        """Let others run, at least until `blocked` says that this partition may go on."""
        partition = self.now
        partition.blocked, partition.waits = blocked, waits
        self._next()
        partition.baton.acquire()
        partition.blocked = None
        if self.failure is not None:
            raise Stop

    def issue(self, job: Job) -> Job:
        self.jobs.append(job)
        return job

    def retire(self, waiting: list[Job], left: int, waits: str) -> None:
        """Wait until all but the last `left` of these jobs are done."""
        due = waiting[: len(waiting) - left] if left < len(waiting) else []
        self.switch(lambda: all(job.done for job in due), waits)
        for job in due:
            job.retire()
            waiting.remove(job)
