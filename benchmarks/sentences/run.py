"""Runs the rows: every backend in its own process, one computing at a time, in turns whose order rotates; ratios are taken turn by
turn. What fails is noted, and what was measured before stays.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertfast.bench.protocol import Spread
from bertfast.testing import rounding_step

ROOT = Path(__file__).parents[2]
OURS, EXACT, STOCK = "bertfast", "exact", "torch"
PEERS = (STOCK, "onnx", "openvino")
TARGETS = {"torch": 2.0, "fastest": 1.5}  # times as fast as that backend; of the issue that asked for this
EVERY = 8  # each such text is compared with float64


class WorkerError(RuntimeError):
    """A side that cannot go on, with its reason."""


class Worker:
    """A backend's process, running `worker.py` under the Python given."""

    def __init__(self, python: str, own: bool) -> None:
        # A peer's environment must not see this project's packages; ours need the checkout.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        environment.pop("PYTHONPATH", None)
        if own:
            environment["PYTHONPATH"] = str(ROOT)
        command = [python, "-P", str(Path(__file__).with_name("worker.py"))]
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
        try:
            self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        except OSError as error:
            raise WorkerError(f"{python} does not start: {error}") from None

    def __call__(self, name: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self._said.seek(0)
            last = [words for words in self._said.read().splitlines() if words.strip()][-1:]
            raise WorkerError(f"its process ended with exit code {code}: {''.join(last)}")
        state, value = json.loads(line)
        if state == "error":
            raise WorkerError(value)
        return value

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()


@dataclass
class Side:
    """One backend on one row. ratio: its time over ours, above 1 where we are faster.

    Errors are against stock in float64 on one text in eight: of unit vectors ("encode") or raw scores ("predict").
    """

    seconds: Spread | None = None
    ratio: Spread | None = None
    rms_error: float | None = None
    mean_cosine: float | None = None
    worst_cosine: float | None = None
    versions: dict[str, str] | None = None
    reason: str | None = None


@dataclass
class Row:
    """One task at one dtype on one file. padding: what the library's default batches add, as a share of the real tokens."""

    task: str
    dtype: str
    source: str
    inputs: int
    tokens: int = 0
    padding: float = 0.0
    parity: bool | None = None
    sides: dict[str, Side] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, Spread]:
        """Of each peer that was measured, and of the fastest."""
        ratios = {name: side.ratio for name, side in self.sides.items() if side.ratio is not None and name != OURS}
        return {**ratios, "fastest": min(ratios.values(), key=lambda ratio: ratio.p50)} if ratios else {}


@dataclass
class Results:
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return not self.rows or any(row.parity is False for row in self.rows)

    def targets(self) -> list[dict[str, Any]]:
        """Each target at equal dtypes, and whether it was met."""
        return [
            {"task": row.task, "dtype": row.dtype, "source": row.source, "peer": peer, "least": least}
            | {"measured": row.ratios[peer].p50, "met": row.ratios[peer].p50 >= least}
            for row in self.rows
            if row.dtype != "int8"
            for peer, least in TARGETS.items()
            if peer in row.ratios
        ]

    def to_dict(self, environment: dict[str, Any]) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {"environment": environment, "rows": rows, "targets": self.targets(), "problems": self.problems}


def errors(side: Side, values: np.ndarray, exact: np.ndarray) -> None:
    """Puts a side's errors against float64 into it; cosines are those of vectors, or of all scores as one."""
    pair = [v if v.ndim == 2 else v.reshape(1, -1) for v in (values, exact)]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in pair]
    side.rms_error = float(np.sqrt(np.square(values - exact).mean()))
    cosines = (unit[0] * unit[1]).sum(1)
    side.mean_cosine, side.worst_cosine = float(cosines.mean()), float(cosines.min())


def parity(row: Row, exact: np.ndarray) -> bool | None:
    """Whether our error is within the budget: at most twice stock's at the same dtype, and one rounding step. None for int8, which
    has no such budget."""
    ours, stock = row.sides[OURS].rms_error, row.sides[STOCK].rms_error
    if row.dtype == "int8" or ours is None or stock is None:
        return None
    size = float(np.sqrt(np.square(exact).mean()))
    return ours <= 2 * stock + rounding_step(getattr(torch, row.dtype)) * size


class Workers:
    """A process for each side, started when first asked, and again for the next row after it has died."""

    def __init__(self, pythons: dict[str, str]) -> None:
        self._pythons, self._running = pythons, dict[str, Worker]()

    def ask(self, row: Row, name: str, request: str, **arguments: Any) -> Any:
        """The answer of a side; None from one that has failed on this row, now or before."""
        side = row.sides[name]
        if side.reason is not None:
            return None
        try:
            if name not in self._running:
                self._running[name] = Worker(self._pythons.get(name, sys.executable), own=name not in self._pythons)
            return self._running[name](request, **arguments)
        except WorkerError as error:
            side.reason = str(error)
            if name in self._running and self._running[name].process.poll() is not None:
                self._running.pop(name).close()
            return None

    def close(self) -> None:
        for worker in self._running.values():
            worker.close()


def measure(
    row: Row,
    workers: Workers,
    inputs: Path,
    folder: str,
    scratch: Path,
    threads: int,
    turns: int,
    note: Callable[[str], None],
) -> None:
    """All sides of one row: loaded, compared with float64, then timed in turns."""
    where = f"{row.task} {row.dtype} {row.source}"
    options = {"task": row.task, "folder": folder, "exports": str(scratch), "threads": threads}
    for name in (OURS, *PEERS, EXACT):
        note(f"{where}: loading {name}")
        side = row.sides[name] = Side()
        # The library has no int8 for torch: its bfloat16 stands there.
        dtype = "bfloat16" if name == STOCK and row.dtype == "int8" else row.dtype
        side.versions = workers.ask(row, name, "load", backend=name, dtype=dtype, **options)
        workers.ask(row, name, "read", path=str(inputs))
    facts = workers.ask(row, OURS, "padding")
    if facts is not None:
        row.tokens, row.padding = facts["tokens"], facts["padding"]
    _compare(row, workers, scratch, note)
    _time(row, workers, turns, note)


def _compare(row: Row, workers: Workers, scratch: Path, note: Callable[[str], None]) -> None:
    values: dict[str, np.ndarray] = {}
    for name in row.sides:
        note(f"{row.task} {row.dtype} {row.source}: comparing {name}")
        path = scratch / f"{name}.npy"
        workers.ask(row, name, "vectors", every=EVERY, path=str(path))
        if row.sides[name].reason is None:
            values[name] = np.load(path)
    exact = values.get(EXACT)
    row.sides.pop(EXACT)
    if exact is None:
        return
    for name, side in row.sides.items():
        if name in values:
            errors(side, values[name], exact)
    row.parity = parity(row, exact)


def _time(row: Row, workers: Workers, turns: int, note: Callable[[str], None]) -> None:
    """`vectors` was each side's warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name, side in row.sides.items() if side.reason is None}
    for turn in range(turns):
        names = list(seconds)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            note(f"{row.task} {row.dtype} {row.source}: turn {turn + 1} of {turns}, {name}")
            took = workers.ask(row, name, "turn")
            if took is not None:
                seconds[name].append(took)
    for name, values in seconds.items():
        side = row.sides[name]
        if side.reason is None:
            side.seconds = Spread.of(values)
            if row.sides[OURS].reason is None:
                side.ratio = Spread.of([theirs / ours for theirs, ours in zip(values, seconds[OURS], strict=True)])
