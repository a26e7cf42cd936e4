"""Runs the rows: every side in its own process, one computing at a time, in turns whose order rotates.

A turn is a pause, one call that does not count, and a few that do; ratios are taken turn by turn. What fails or is
interrupted is noted, and what was measured before stays.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.cpu import plan
from benchmarks.cpu.plan import Row
from benchmarks.cpu.worker import Worker, WorkerError, calls_for
from bertfast.bench.cases import DTYPES, Batch, load_model, random_batch
from bertfast.bench.protocol import Spread
from bertfast.testing import rounding_step

OURS, EXACT, MACHINE, INT8 = "bertfast", "exact", "machine", "int8"
PEERS = ("stock", "openvino", "onnxruntime")
COMPILED = ("stock compiled", "bertfast compiled")  # by torch.compile, where asked for


@dataclass
class Side:
    """One engine on one row. ratio: its time over ours, so above 1 where we are faster; for int8, ours over its.

    memory: bytes that a call needs above what its process held before; held: what the process keeps between calls.
    Errors are the largest of hidden states (real tokens) and pooled output; cosine the smallest of any vector.
    """

    seconds: Spread | None = None
    ratio: Spread | None = None
    memory: int | None = None
    held: int | None = None
    max_error: float | None = None
    rms_error: float | None = None
    cosine: float | None = None
    reason: str | None = None


@dataclass
class Measured:
    """One row of one model at one dtype. share: useful FLOP/s over the machine's matrix rate, in one rotation."""

    model: str
    dtype: str
    row: str
    real_tokens: int
    padding: float
    useful_flops: float
    sides: dict[str, Side] = field(default_factory=dict)
    share: Spread | None = None
    matrix_rate: float | None = None


@dataclass
class Pair:
    """Two sides and nothing else: training against stock, or one thread against two. ratio: the other over ours."""

    kind: str
    model: str
    dtype: str
    row: str
    ratio: Spread
    ours: float
    other: float
    our_memory: int | None = None
    other_memory: int | None = None

    @property
    def memory_ratio(self) -> float | None:
        return self.other_memory / self.our_memory if self.our_memory and self.other_memory else None


@dataclass
class Sentences:
    """Cosines of int8's sentence embeddings to those of stock in float64, over real sentences."""

    model: str
    dtype: str
    mean: float
    p01: float
    worst: float
    row: str = plan.SENTENCES


@dataclass
class Results:
    """All that was measured so far."""

    inference: list[Measured] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    sentences: list["Sentences"] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self, environment: dict[str, Any]) -> dict[str, Any]:
        return {
            "environment": environment,
            "inference": [asdict(m) for m in self.inference],
            "pairs": [asdict(p) for p in self.pairs],
            "int8_sentences": [asdict(s) for s in self.sentences],
            "problems": self.problems,
            "targets": [{**asdict(v), "met": v.met} for v in verdicts(self)],
        }


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured."""

    kind: str
    peer: str
    model: str
    dtype: str
    row: str
    least: float
    measured: float
    p20: float | None
    p80: float | None

    @property
    def met(self) -> bool:
        return self.measured >= self.least


def verdicts(results: Results) -> list[Verdict]:
    """Every target that has a measurement, in the order of the rows."""
    found: list[Verdict] = []

    def judge(kind: str, peer: str, at: Measured | Pair | Sentences, value: Spread | float | None) -> None:
        least = plan.targets_of(kind, peer, at.dtype, at.row)
        if least is None or value is None:
            return
        middle, p20, p80 = (value.p50, value.p20, value.p80) if isinstance(value, Spread) else (value, None, None)
        found.append(Verdict(kind, peer, at.model, at.dtype, at.row, least, middle, p20, p80))

    for m in results.inference:
        for peer in PEERS:
            judge("speed", peer, m, m.sides[peer].ratio if peer in m.sides else None)
        judge("share of matrix rate", MACHINE, m, m.share)
        if INT8 in m.sides:
            judge("int8 speed", OURS, m, m.sides[INT8].ratio)
    for s in results.sentences:
        judge("int8 mean cosine", EXACT, s, s.mean)
    for pair in results.pairs:
        if pair.kind == "threads":
            judge("threads", "1 thread", pair, pair.ratio)
        else:
            judge("training speed", "stock", pair, pair.ratio)
            judge("training memory", "stock", pair, pair.memory_ratio)
    return found


@contextmanager
def _workers(
    sides: tuple[str, ...], model: str, dtype: str, threads: dict[str, int], note: Callable[[str], None]
) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """Processes of the sides that load, and the reasons of those that do not."""
    running: dict[str, Worker] = {}
    reasons: dict[str, str] = {}
    try:
        for side in sides:
            note(f"loading {model} {dtype}: {side}")
            try:
                running[side] = Worker(side.split("@")[0], model, dtype, threads.get(side, torch.get_num_threads()))
            except WorkerError as error:
                reasons[side] = str(error)
        yield running, reasons
    finally:
        for worker in running.values():
            worker.close()


def _ask(workers: dict[str, Worker], side: str, failed: dict[str, str], name: str, *arguments: Any) -> Any:
    """The answer of a side, or None from one that has failed, now or before; the reason goes into `failed`."""
    if side not in workers or side in failed:
        return None
    try:
        return workers[side](name, *arguments)
    except WorkerError as error:
        failed[side] = str(error)
        return None


def _rotate(workers: dict[str, Worker], turns: int, failed: dict[str, str]) -> dict[str, list[float]]:
    """Values of `turns` turns of each side. A side that fails leaves, with its reason in `failed`."""
    first = {side: _ask(workers, side, failed, "turn", 1) for side in workers}
    names = [side for side in workers if side not in failed]
    calls = calls_for(first[OURS]) if OURS in names else calls_for(min((first[n] for n in names), default=1.0))
    values: dict[str, list[float]] = {side: [] for side in names}
    for turn in range(turns):
        shift = turn % max(1, len(names))
        for side in names[shift:] + names[:shift]:
            values[side].append(_ask(workers, side, failed, "turn", calls))
    return {side: got for side, got in values.items() if side not in failed}


def _cosines(a: np.ndarray, exact: np.ndarray) -> np.ndarray:
    wide = a.astype(np.float64)
    return (wide * exact).sum(-1) / (np.linalg.norm(wide, axis=-1) * np.linalg.norm(exact, axis=-1))


def _errors(side: Side, outputs: list[np.ndarray], exact: list[np.ndarray]) -> None:
    differences = [np.abs(a.astype(np.float64) - e) for a, e in zip(outputs, exact, strict=True)]
    side.max_error = max(float(d.max()) for d in differences)
    side.rms_error = max(float(np.sqrt((d**2).mean())) for d in differences)
    side.cosine = min(float(_cosines(a, e).min()) for a, e in zip(outputs, exact, strict=True))


def _judge(m: Measured, failed: dict[str, str], size: float) -> None:
    """Our model, compiled or not, has at most twice stock's root mean square error plus one rounding step of `size`."""
    stock = m.sides["stock"].rms_error
    for name in (OURS, COMPILED[1]):
        error = m.sides[name].rms_error if name in m.sides else None
        if stock is not None and error is not None and error > 2 * stock + rounding_step(DTYPES[m.dtype]) * size:
            failed[name] = f"root mean square error {error:.1e}, stock's {stock:.1e}"


def _set_batch(workers: dict[str, Worker], failed: dict[str, str], batch: Batch) -> None:
    for side in workers:
        if side != MACHINE:
            _ask(workers, side, failed, "batch", batch.input_ids.numpy(), batch.attention_mask.numpy())


def _measure(workers: dict[str, Worker], failed: dict[str, str], m: Measured, turns: int) -> None:
    """Errors, times and memory of every side on the batch they hold, into `m`. What is wrong is not timed."""
    names = (OURS, *PEERS, *(name for name in COMPILED if name in workers or name in failed), INT8)
    m.sides = {name: Side() for name in names}
    exact = _ask(workers, EXACT, failed, "outputs")
    for name, side in m.sides.items():
        outputs = _ask(workers, name, failed, "outputs")
        if exact is not None and outputs is not None:
            _errors(side, outputs, exact)
    if exact is not None:
        _judge(m, failed, max(float(np.sqrt((e**2).mean())) for e in exact))
    seconds = _rotate({side: worker for side, worker in workers.items() if side != EXACT}, turns, failed)
    ours = seconds.get(OURS)
    for name, side in m.sides.items():
        if name in seconds:
            side.seconds = Spread.of(seconds[name])
            if ours is not None:
                pairs = list(zip(seconds[name], ours, strict=True))
                side.ratio = Spread.of([b / a if name == INT8 else a / b for a, b in pairs])
            side.memory, side.held = _ask(workers, name, failed, "memory") or (None, None)
        side.reason = failed.get(name)
    if MACHINE in seconds and ours is not None:
        m.share = Spread.of([m.useful_flops / s / rate for s, rate in zip(ours, seconds[MACHINE], strict=True)])
        m.matrix_rate = Spread.of(seconds[MACHINE]).p50


def inference(
    model: str,
    dtype: str,
    rows: list[Row],
    turns: int,
    results: Results,
    note: Callable[[str], None],
    compiled: bool = False,
) -> None:
    """The rows of one model at one dtype, added to `results` one by one; `compiled`: beside torch.compile, too."""
    config = load_model(model).config
    sides = (OURS, *(p for p in PEERS if p != "onnxruntime" or dtype == plan.FLOAT32))
    sides += COMPILED if compiled else ()
    sides += (INT8,) if dtype == plan.BFLOAT16 else ()
    with _workers((*sides, MACHINE, EXACT), model, dtype, {}, note) as (workers, reasons):
        results.problems += [f"{model} {dtype} {side}: {reason}" for side, reason in reasons.items()]
        if OURS not in workers:
            return
        for row in rows:
            note(f"{model} {dtype} {row.name}")
            batch = random_batch(config.vocab_size, row.batch, row.length, row.padding)
            lengths = batch.attention_mask.sum(1)
            padding = 1.0 - batch.real_tokens / batch.attention_mask.numel()
            m = Measured(model, dtype, row.name, batch.real_tokens, padding, plan.useful_flops(config, lengths))
            failed = dict(reasons)
            _set_batch(workers, failed, batch)
            _measure(workers, failed, m, turns)
            results.problems += _new(failed, reasons, f"{model} {dtype} {row.name}")
            results.inference.append(m)
        if model == "minilm" and INT8 in workers:
            _sentences(workers, reasons, model, dtype, results)


def _sentences(workers: dict[str, Worker], reasons: dict[str, str], model: str, dtype: str, results: Results) -> None:
    failed = dict(reasons)
    ours, exact = (_ask(workers, side, failed, "sentences") for side in (INT8, EXACT))
    results.problems += _new(failed, reasons, f"{model} {dtype} {plan.SENTENCES}")
    if ours is not None and exact is not None:
        cosines = _cosines(ours, exact)
        mean, p01, worst = float(cosines.mean()), float(np.percentile(cosines, 1)), float(cosines.min())
        results.sentences.append(Sentences(model, dtype, mean, p01, worst))


def _new(failed: dict[str, str], reasons: dict[str, str], where: str) -> list[str]:
    """Lines of what failed on a row, beyond what never loaded."""
    return [f"{where} {side}: {reason}" for side, reason in failed.items() if side not in reasons]


def _pair(kind: str, sides: tuple[str, str], threads: dict[str, int], model: str, dtype: str, rows: list[Row],
          turns: int, results: Results, note: Callable[[str], None]) -> None:  # fmt: skip
    """Rows of two sides alone; the second is the one we are compared with."""
    vocabulary = load_model(model).config.vocab_size
    with _workers(sides, model, dtype, threads, note) as (workers, reasons):
        results.problems += [f"{kind} {model} {dtype} {side}: {reason}" for side, reason in reasons.items()]
        for row in rows if not reasons else ():
            note(f"{kind}: {model} {dtype} {row.name}")
            failed: dict[str, str] = {}
            _set_batch(workers, failed, random_batch(vocabulary, row.batch, row.length, row.padding))
            seconds = _rotate(workers, turns, failed)
            if not failed:
                ours, other = (seconds[side] for side in sides)
                ratio = Spread.of([b / a for a, b in zip(ours, other, strict=True)])
                memory = [(_ask(workers, side, failed, "memory") or (None,))[0] for side in sides]
                middles = [Spread.of(values).p50 for values in (ours, other)]
                results.pairs.append(Pair(kind, model, dtype, row.name, ratio, *middles, *memory))
            results.problems += _new(failed, reasons, f"{kind} {model} {dtype} {row.name}")


def training(dtype: str, rows: list[Row], turns: int, results: Results, note: Callable[[str], None]) -> None:
    """Steps of BERT-base pre-training against stock."""
    _pair("training", ("training bertfast", "training stock"), {}, "bert-base", dtype, rows, turns, results, note)


def threads(model: str, dtype: str, turns: int, results: Results, note: Callable[[str], None]) -> None:
    """One thread against two."""
    sides = ("bertfast@2", "bertfast@1")
    counts = {"bertfast@2": 2, "bertfast@1": 1}
    _pair("threads", sides, counts, model, dtype, [plan.THREAD_ROW], turns, results, note)
