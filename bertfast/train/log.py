"""The log of a run: RUN/log.jsonl."""

import json
from pathlib import Path
from typing import Any

from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.task import Task


class RunLog:
    """Lines of training, evaluation and notes; the main rank alone writes."""

    def __init__(self, run: Path, config: TrainConfig, task: Task, ranks: Ranks, step: int, total: int) -> None:
        self.path, self.main = run / "log.jsonl", ranks.main

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _write(self, line: dict[str, Any]) -> None:
        if self.main:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def advance(self, step: int) -> None:
        pass

    def paused(self, seconds: float) -> None:
        pass

    def evaluation(self, step: int, found: dict[str, float]) -> None:
        self._write({"event": "eval", "step": step, **found})

    def train(self, step: int, totals: dict[str, Any], norm: float, rate: float, epoch: float, peak: float) -> None:
        self._write(
            {"event": "train", "step": step, **totals, "grad_norm": norm, "learning_rate": rate, "epoch": epoch}
        )
