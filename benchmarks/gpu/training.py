"""The stage training: pre-training on the device beside stock transformers, loss curves first, then real tokens a second.

Text is synthetic, so that nothing but torch and transformers is needed; ids are random, lengths as English Wikipedia's.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu import measure as clocks
from benchmarks.gpu import results
from benchmarks.loader import synthetic, synthetic_vocabulary
from benchmarks.pretraining import measure

STAGE_SECONDS = 400
DOCUMENTS = 4000
ROWS = (
    measure.Row("12x768", 128, 32768),
    measure.Row("12x768", 512, 32768),
    measure.Row("24x1024", 128, 16384),
    measure.Row("24x1024", 512, 16384),
)


def _curve(dtype: str, device: torch.device, steps: int, size: str) -> results.Line:
    found = measure.convergence(synthetic(64), synthetic_vocabulary(), dtype, steps, size, device=device)
    return {**found, "ok": found["passed"]}


def _speed(row: measure.Row, device: torch.device, turns: int) -> results.Line:
    return {
        **measure.speed(synthetic(DOCUMENTS), synthetic_vocabulary(), row, measure.BFLOAT16, turns, device),
        "ok": True,
    }


def cases(device: torch.device, steps: int = 100, turns: int = 15, size: str = "4x256") -> dict[str, Callable[[], Any]]:
    """Name to what runs it."""
    found: dict[str, Callable[[], Any]] = {
        f"loss curve {size} {dtype}": lambda dtype=dtype: _curve(dtype, device, steps, size) for dtype in measure.DTYPES
    }
    return found | {
        f"pre-training {row.size} {row.length}, {row.tokens} tokens": lambda row=row: _speed(row, device, turns)
        for row in ROWS
    }


def run(wanted: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    device, deadline = torch.device("cuda"), clocks.Deadline(STAGE_SECONDS)
    for name, case in cases(device).items():
        if wanted not in name or name in done:
            continue
        if deadline.passed:
            yield results.line("training", name, ok=None, error=deadline.text)
            continue
        try:
            yield results.line("training", name, clocks=results.clocks(), **case())
        except Exception as problem:
            yield results.line("training", name, ok=False, error=clocks.explain(problem))
        finally:
            torch.cuda.empty_cache()
