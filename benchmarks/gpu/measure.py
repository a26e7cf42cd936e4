"""Times functions on a GPU in turn, A B A B, with events and cold caches; the clock is passed in, so that tests need no GPU."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from benchmarks.gpu.case import Ceilings
from bertfast.bench.protocol import Spread

Thunk = Callable[[], Any]
FLUSH_BYTES = 512 << 20  # ten times an H200's L2; its 120 us also hide the Python of the launches that follow


class Deadline:
    """What ends a stage before the eight minutes that one command may take: nothing is begun once it has passed."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.now = seconds, now
        self.end = now() + seconds

    @property
    def left(self) -> float:
        return self.end - self.now()

    @property
    def passed(self) -> bool:
        return self.left <= 0

    @property
    def text(self) -> str:
        return f"not begun: the stage had lasted {self.seconds:.0f} s; run it again, it goes on where it stopped"


class Clock(Protocol):
    def start(self, thunk: Thunk) -> Any:
        """Run the thunk; a token to ask for its time with."""

    def seconds(self, token: Any) -> float:
        """How long it ran."""


class CudaClock:
    def __init__(self, flush: bool = True) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda") if flush else None

    def start(self, thunk: Thunk) -> Any:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self.flush is not None:
            self.flush.zero_()
        begin.record()
        thunk()
        end.record()
        return begin, end

    def seconds(self, token: Any) -> float:
        begin, end = token
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


class WallClock:
    """What a user's own clock says of a call: from before it until the device has done it, Python and waiting included."""

    def __init__(self, synchronize: Thunk | None = None) -> None:
        self.synchronize = torch.cuda.synchronize if synchronize is None else synchronize

    def start(self, thunk: Thunk) -> float:
        self.synchronize()
        begin = time.perf_counter()
        thunk()
        self.synchronize()
        return time.perf_counter() - begin

    def seconds(self, token: float) -> float:
        return token


class Replays:
    """Counts replays of CUDA graphs while it is entered: what a call did, whatever it was asked to do."""

    def __init__(self, graph: type = torch.cuda.CUDAGraph) -> None:
        self.graph, self.count = graph, 0

    def __enter__(self) -> "Replays":
        self._replay = replay = self.graph.replay

        def counting(graph: Any) -> Any:
            self.count += 1
            return replay(graph)

        self.graph.replay = counting
        return self

    def __exit__(self, *_: object) -> None:
        self.graph.replay = self._replay


def path_of(thunk: Thunk, batches: int = 1) -> str:
    """ "captured" where most of the batches of a warm call come from CUDA graphs, else "eager"."""
    with Replays() as replays:
        thunk()
    return "captured" if 2 * replays.count > batches else "eager"


def tensors(outputs: Any) -> list[torch.Tensor]:
    """The tensors that an op gave, be it one or several."""
    return [t for t in (outputs if isinstance(outputs, (tuple, list)) else [outputs]) if isinstance(t, torch.Tensor)]


def explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1000]


def take_turns(
    thunks: dict[str, Thunk], clock: Clock, budget: float = 0.5, fewest: int = 10, most: int = 100
) -> dict[str, Spread | str]:
    """Seconds of each thunk, or why it failed. They take turns for about `budget` seconds after two rounds of warm-up."""
    spreads: dict[str, Spread | str] = {}
    estimate = 0.0
    for name, thunk in thunks.items():
        try:
            clock.seconds(clock.start(thunk))  # compiles
            estimate += clock.seconds(clock.start(thunk))
        except Exception as error:
            spreads[name] = explain(error)
    rounds = int(min(max(budget / max(estimate, 1e-6), fewest), most))
    tokens: dict[str, list[Any]] = {name: [] for name in thunks if name not in spreads}
    for _ in range(rounds):
        for name, own in tokens.items():
            own.append(clock.start(thunks[name]))
    for name, own in tokens.items():
        spreads[name] = Spread.of([clock.seconds(token) for token in own])
    return spreads


def host_seconds(
    thunk: Thunk, synchronize: Thunk, calls: int = 50, now: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the Python of one call: many calls without waiting. Few enough not to fill the queue of launches."""
    thunk()
    synchronize()
    begin = now()
    for _ in range(calls):
        thunk()
    seconds = (now() - begin) / calls
    synchronize()
    return seconds


def ceilings(clock: Clock) -> Ceilings:
    """What this device copies and multiplies, measured now."""
    x = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    y = torch.empty_like(x)
    c, d = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
    a, b = c.bfloat16(), d.bfloat16()
    spreads = take_turns({"copy": lambda: y.copy_(x), "matrix": lambda: a @ b, "float32": lambda: c @ d}, clock)
    medians = [spread.p50 for spread in spreads.values() if not isinstance(spread, str)]
    if len(medians) < len(spreads):
        raise RuntimeError(f"the ceilings could not be measured: {spreads}")
    copy, matrix, float32 = medians
    return Ceilings(2 * x.numel() / copy, 2 * 8192**3 / matrix, 2 * 8192**3 / float32)
