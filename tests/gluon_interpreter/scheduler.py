"""Partitions of programs as threads of which one runs at a time, handed on at random points that a seed decides."""

import math
import random
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .faults import Fault
from .global_memory import Owners

if TYPE_CHECKING:
    from .asynchronous import Operation, Product, Store
    from .memory import Barrier, Clock

KERNEL = "__gluon_kernel__"  # among the globals of a function that runs as a part of a kernel
STEPS = 1_000_000
_running = threading.local()


class _Abandoned(BaseException):
    """Ends a thread whose launch has failed elsewhere."""


def current() -> "Task":
    """The partition that this thread runs."""
    return _running.task


def step() -> "Task":
    """Let others run and asynchronous work go on, at random; the partition that asked."""
    task = current()
    task.machine.step(task)
    return task


def place() -> str:
    """Where the kernel is, such as "kernel.py:12 (consumer)"."""
    frame = sys._getframe(1)
    while frame is not None and KERNEL not in frame.f_globals:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "the launch"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"


class Task:
    """A partition of a program: what it knows of the others' work, and what it has started that is not retired."""

    def __init__(self, machine: "Machine", name: str, program: "Program", parent: "Task | None", warps: int) -> None:
        self.machine, self.name, self.program, self.warps = machine, name, program, warps
        self.clock: Clock = dict(parent.clock) if parent else {}
        self.fenced: Clock = dict(parent.fenced) if parent else {}
        self.clock[self] = 1
        self.baton = threading.Semaphore(0)
        self.blocked: tuple[Callable[[], bool], Callable[[], str]] | None = None
        self.done = False
        self.weight = 1.0
        self.products: list[Product] = []
        self.issued_products = 0
        self.stores: list[Store] = []
        self.issued_stores = 0

    def released(self) -> None:
        """What this partition does from now on is not covered by what it let others know."""
        self.clock[self] += 1

    def runnable(self) -> bool:
        return not self.done and (self.blocked is None or self.blocked[0]())

    def finish(self) -> None:
        if self.stores:
            raise Fault("unfinished", f"{self.name} ends before store_wait for {self.stores[0]}")
        if self.products:
            raise Fault("unfinished", f"{self.name} ends before warpgroup_mma_wait for {self.products[0]}")
        self.done = True


class Program:
    """One program of the grid, and the copies into its shared memory that somebody has to wait for."""

    def __init__(self, number: int, place: tuple[int, int, int]) -> None:
        self.number, self.place = number, place
        self.uses_atomics = False
        self.name = str(place[0]) if place[1:] == (0, 0) else str(place)
        self.loads: dict[Barrier, tuple[int, Any]] = {}


class Machine:
    """One launch.

    Args:
        seed: decides the order of everything.
        grid: numbers of programs.
        resident: programs that run at a time.
    """

    def __init__(self, seed: int, grid: Sequence[int], resident: int) -> None:
        self.random = random.Random(seed)
        self.grid = (*grid, 1, 1)[:3]
        self.resident = resident
        self.tasks: list[Task] = []
        self.operations: list[Operation] = []
        self.owners = Owners()
        self.failure: BaseException | None = None
        self.finished = threading.Event()
        self.steps = 0
        self._draw_tempers()

    def run(self, body: Callable[[], Any], warps: int) -> None:
        """Call `body` once for each program."""
        x, y, z = self.grid
        places = ((i, j, k) for k in range(z) for j in range(y) for i in range(x))
        self._waiting = [Program(number, place) for number, place in enumerate(places, 1)]
        self._body, self._warps = body, warps
        for _ in range(self.resident):
            self._start_program()
        if self.tasks:
            self.random.choice(self.tasks).baton.release()
            self.finished.wait()
        if self.failure is not None:
            raise self.failure
        while self.operations:  # stores that are read but not written yet
            self._advance()

    def spawn(self, name: str, program: Program, parent: Task | None, warps: int, body: Callable[[], Any]) -> Task:
        """A new partition, which runs when it is chosen."""
        task = Task(self, name, program, parent, warps)
        task.weight = self._weight()
        self.tasks.append(task)
        threading.Thread(target=self._thread, args=(task, body), daemon=True).start()
        return task

    def step(self, task: Task) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise Fault("steps", f"more than {STEPS}: does {task.name} wait in a loop, at {place()}?")
        if self.random.random() < 0.02:
            self._draw_tempers()
        while self.operations and self.random.random() < self.eagerness:
            self._advance()
        if self.random.random() < self.restlessness:
            self._hand_over(task)

    def block(self, task: Task, ready: Callable[[], bool], why: Callable[[], str]) -> None:
        """Go on when `ready`; `why` is asked if that never comes."""
        if not ready():
            task.blocked = (ready, why)
            while not ready():
                self._hand_over(task)
            task.blocked = None

    def _draw_tempers(self) -> None:
        self.eagerness = self.random.choice((0.02, 0.2, 0.6))  # of asynchronous work
        self.restlessness = self.random.choice((0.1, 0.5, 1.0))  # of partitions
        for task in self.tasks:
            task.weight = self._weight()

    def _weight(self) -> float:
        return math.exp(self.random.uniform(-3, 3))

    def _advance(self) -> None:
        operation = self.random.choice(self.operations).first()
        if operation.advance():
            self.operations.remove(operation)

    def _choose(self) -> Task:
        """Who runs next."""
        while True:
            ready = [task for task in self.tasks if task.runnable()]
            if ready:
                return self.random.choices(ready, [task.weight for task in ready])[0]
            if not self.operations:
                raise self._deadlock()
            self._advance()

    def _hand_over(self, task: Task) -> None:
        chosen = self._choose()
        if chosen is not task:
            chosen.baton.release()
            self._receive(task)

    def _receive(self, task: Task) -> None:
        task.baton.acquire()
        if self.failure is not None:
            raise _Abandoned

    def _deadlock(self) -> Fault:
        stuck = [task for task in self.tasks if not task.done]
        barriers = "; ".join(f"{task.name} waits for {task.blocked[1]()}" for task in stuck if task.blocked)
        bytes_only = any("waiting for 0 of" in task.blocked[1]() for task in stuck if task.blocked)
        return Fault("bytes" if bytes_only else "deadlock", barriers)

    def _start_program(self) -> None:
        if self._waiting:
            program = self._waiting.pop(0)
            self.spawn(f"program {program.name}", program, None, self._warps, lambda: self._run_program(program))

    def _run_program(self, program: Program) -> None:
        self._body()
        task = current()
        for barrier, (time, load) in program.loads.items():
            if task.clock.get((barrier, "copies"), 0) < time:
                raise Fault("unfinished", f"program {program.name} ends and nobody waited for {load}")
        self._start_program()

    def _thread(self, task: Task, body: Callable[[], Any]) -> None:
        _running.task = task
        try:
            with torch.no_grad():
                self._receive(task)
                body()
                task.finish()
                self.tasks.remove(task)
                if self.tasks:
                    self._choose().baton.release()
                else:
                    self.finished.set()
        except _Abandoned:
            pass
        except BaseException as problem:
            self._fail(problem)

    def _fail(self, problem: BaseException) -> None:
        self.failure = problem
        for task in self.tasks:
            task.baton.release()
        self.finished.set()
