"""One engine in one process: loads its model, then answers requests over a pipe, one process computing at a time.

Engines in one process disturb each other: a pool of threads that still spins after its call makes the next engine look
twice as slow on a batch of 16 tokens. It also makes peak memory nobody's.
"""

import contextlib
import gc
import importlib
import logging
import multiprocessing
import signal
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertfast.bench.cases import Batch, BenchError, minilm_folder, sentence_batches
from bertfast.bench.protocol import peak_memory, resident_memory

PAUSE = 0.05  # seconds before a turn, in which the threads of the side before fall asleep
AIM = 0.25  # seconds that the timed calls of a turn are to take together
MOST_CALLS = 9


class WorkerError(Exception):
    """What went wrong in the process of a side, in one line."""


def timed_turn(call: Callable[[], Any], calls: int) -> float:
    """Seconds of the middle one of `calls` calls, after a pause and a call that wakes the threads and does not count."""
    time.sleep(PAUSE)
    call()
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


class _Inference:
    """A side of inference: see sides.py."""

    def __init__(self, side: str, model: str, dtype: str, threads: int):
        from benchmarks.cpu import sides
        from bertfast.bench.cases import load_model

        torch.set_num_threads(threads)
        importlib.import_module("transformers.models.bert.modeling_bert")
        self.before = resident_memory()
        with tempfile.TemporaryDirectory() as folder:
            self.call: Callable[[Any], Any] = sides.SIDES[side](load_model(model), dtype, Path(folder))
        gc.collect()  # what an engine was exported from is not what it needs

    def batch(self, ids: np.ndarray, mask: np.ndarray) -> None:
        self.now = Batch(torch.from_numpy(ids.copy()), torch.from_numpy(mask.copy()))

    def turn(self, calls: int) -> float:
        return timed_turn(lambda: self.call(self.now), calls)

    def outputs(self) -> list[np.ndarray]:
        """Hidden states of real tokens [T, E] and the pooled output [B, E]."""
        hidden, *pooled = self.call(self.now)
        return [np.array(hidden[self.now.attention_mask.bool().numpy()]), *(np.array(p) for p in pooled)]

    def sentences(self) -> np.ndarray:
        """Mean-pooled embeddings [N, E] of the project's real sentences through the real checkpoint's tokenizer."""
        embeddings = []
        for batch in sentence_batches(minilm_folder()):
            mask = batch.attention_mask.numpy()[..., None]
            embeddings.append((self.call(batch)[0] * mask).sum(1) / mask.sum(1))
        return np.concatenate(embeddings).astype(np.float64)

    def memory(self) -> tuple[int | None, int | None]:
        """Bytes that a call needs above what was held before it, and those held: weights, their copies, arenas."""
        held = resident_memory()
        if held is not None and self.before is not None:
            held = max(0, held - self.before)
        return peak_memory(lambda: self.call(self.now)), held


class _Matrix:
    """The machine's own matrix rate: a turn returns FLOP/s."""

    def __init__(self, side: str, model: str, dtype: str, threads: int):
        from benchmarks.cpu import sides

        torch.set_num_threads(threads)
        self.measure = sides.matrix_rate(dtype)

    def turn(self, calls: int) -> float:
        time.sleep(PAUSE)
        return self.measure()


def _serve(pipe: Connection, side: str, model: str, dtype: str, threads: int) -> None:
    from benchmarks.cpu.training import Training

    warnings.simplefilter("ignore")  # exporters warn of much, and the table's progress line shares their terminal
    logging.disable(logging.WARNING)
    kind = Training if side.startswith("training") else _Matrix if side == "machine" else _Inference
    try:
        target = kind(side, model, dtype, threads)
    except (Exception, SystemExit) as error:
        pipe.send(("error", str(error) if isinstance(error, BenchError) else _line(error)))
        return
    pipe.send(("ok", None))
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("ok", getattr(target, name)(*arguments)))
        except Exception as error:
            pipe.send(("error", _line(error)))


def _line(error: BaseException) -> str:
    text = traceback.format_exception_only(error)[-1].strip().splitlines()
    return text[0] if text else type(error).__name__


class Worker:
    """A side's process. A failing request raises WorkerError and leaves the process as it is."""

    def __init__(self, side: str, model: str, dtype: str, threads: int):
        context = multiprocessing.get_context("spawn")
        self.ended: str | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, side, model, dtype, threads), daemon=True)
        # Ctrl-C reaches the whole group and only the parent acts on it: a process inherits what its parent ignores.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def _answer(self) -> Any:
        try:
            state, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            self.ended = f"its process ended with exit code {self.process.exitcode}"
            raise WorkerError(self.ended) from None
        if state == "error":
            raise WorkerError(value)
        return value

    def __call__(self, name: str, *arguments: Any) -> Any:
        if self.ended:
            raise WorkerError(self.ended)
        with contextlib.suppress(OSError):  # a process that is gone is found when its answer is read
            self.pipe.send((name, arguments))
        return self._answer()

    def close(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join(10)


def calls_for(seconds: float) -> int:
    """How many timed calls make a turn, given one call's time."""
    return max(1, min(MOST_CALLS, round(AIM / max(seconds, 1e-9))))
