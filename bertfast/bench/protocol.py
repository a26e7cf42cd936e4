"""How two things are timed fairly: in turn, A B A B, in one process after warm-up, and judged by medians.

Running one side after the other turns the drift of the machine into gain or loss; taking turns gives both the same
drift, and the ratio is taken pair by pair.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Median with the 20th and 80th percentile."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if not values:
            raise ValueError("no values to take percentiles of: ask for at least one run")
        return cls(*(float(v) for v in np.percentile(values, [20, 50, 80])))


@dataclass(frozen=True)
class Comparison:
    """Seconds of both sides over the same rounds, and stock over fast pair by pair."""

    stock: Spread
    fast: Spread
    ratio: Spread
    runs: int


def interleave(stock: Callable[[], object], fast: Callable[[], object], runs: int, warmup: int = 1) -> Comparison:
    """Time both, taking turns, `runs` times after `warmup` rounds that do not count."""
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    for _ in range(warmup):
        stock()
        fast()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for side, function in zip(seconds, (stock, fast), strict=True):
            begin = time.perf_counter()
            function()
            side.append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    return Comparison(Spread.of(seconds[0]), Spread.of(seconds[1]), Spread.of(ratios), runs)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def resident_memory() -> int | None:
    """Bytes of memory the process holds once free heap is given back; None where Linux is silent."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return _status("VmRSS")
    except OSError:
        return None


def peak_memory(function: Callable[[], object]) -> int | None:
    """Bytes of resident memory that one call needs above what the process held before; None where Linux is silent."""
    before = resident_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the present size
        function()
        return None if before is None else max(0, _status("VmHWM") - before)
    except OSError:
        return None
