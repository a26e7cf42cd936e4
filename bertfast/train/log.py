"""What a run says while it runs: RUN/log.jsonl, a progress bar or plain lines, RUN/curves.png, optional TensorBoard.

The main rank alone says anything.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bertfast._extras import install
from bertfast.train import curves, journal, rates
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.progress import Progress
from bertfast.train.task import Task


def _event_writer(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(f"tensorboard is on, but not installed: {install('tensorboard')}") from None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)


class RunLog:
    """The log of one run, a context. `step` is where it begins: later lines of a run that was stopped are dropped."""

    def __init__(self, run: Path, config: TrainConfig, task: Task, ranks: Ranks, step: int, total: int) -> None:
        self.run, self.path, self.config, self.task, self.ranks = run, run / "log.jsonl", config, task, ranks
        self.step, self.total = step, total
        self.events: Any = None
        self.progress = Progress(step, total, visible=ranks.main)
        self._started = self._begun = time.perf_counter()
        self._pause = 0.0
        self._named = False  # whether the log says what MFU is a share of
        self._counted = step  # the step of the last log line in this process

    def __enter__(self) -> "RunLog":
        if self.ranks.main:
            dropped = journal.trim(self.path, self.step)
            self.events = _event_writer(self.run, self.step) if self.config.tensorboard else None
            self.progress.start()
            if dropped:
                self.note(f"{dropped} log lines after step {self.step} were dropped, these steps are done again")
        self._started = self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.events is not None:
            self.events.close()
        if self.ranks.main:
            self._draw()

    def _draw(self) -> None:
        # The log has it all: a disk too full for the picture must not hide what ended the run.
        with suppress(OSError):
            curves.draw(journal.read(self.path), self.run / "curves.png", self.task.name)

    def _write(self, line: dict[str, Any]) -> None:
        journal.append(self.path, line | {"seconds": round(time.perf_counter() - self._started, 3)})

    def note(self, text: str) -> None:
        """Something the reader should know; it does not repeat itself when a run is resumed."""
        if self.ranks.main:
            self._write({"event": "note", "step": self.step, "text": text})
            self.progress.say(text)

    def advance(self, step: int) -> None:
        self.step = step
        self.progress.advance(step)

    def paused(self, seconds: float) -> None:
        """Time in which nothing was trained, to be left out of rates."""
        self._pause += seconds

    def train(self, step: int, sums: dict[str, Any], norm: float, rate: float, epoch: float, peak: float) -> None:
        """A line of training from `Window.totals`; rates are over this process's steps since its last line.

        peak: GiB of the process's peak memory.
        """
        now = time.perf_counter()
        seconds = max(1e-9, now - self._begun - self._pause)
        share = (step - self._counted) / max(1, sums["steps"])  # a resumed window holds steps of the process before
        self._begun, self._pause, self._counted = now, 0.0, step
        if not self.ranks.main:
            return
        tokens = sums["tokens"] * share
        figures = {key: value for key, value in sums.items() if key.endswith(("loss", "accuracy"))}
        figures |= {"grad_norm": norm, "learning_rate": rate, "epoch": epoch}
        figures |= {"tokens_per_second": tokens / seconds, "memory_gib": peak}
        flops = self.task.train_flops(int(sums["tokens"]), int(sums["squares"]), sums["targets"])
        best = self._peak() if flops else None
        if flops and best:
            figures["mfu"] = flops * share / seconds / (best * self.ranks.size)
        self._write({"event": "train", "step": step, **figures})
        self.progress.train(step, figures)
        self._scalars("train", step, figures)

    def _peak(self) -> float | None:
        """FLOP/s of one rank's device at its best; the log names what that is ahead of the first share of it."""
        best = rates.peak(self.ranks.device, self.config.precision)
        if not self._named:
            self._named = True
            ranks = f", for each of {self.ranks.size} ranks" if self.ranks.size > 1 else ""
            self.note(f"no MFU: {best.words}" if best.flops is None else f"MFU: of {best.words}{ranks}")
        return best.flops

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """A line of figures on held-out data; the curves are drawn again."""
        if self.ranks.main:
            self._write({"event": "eval", "step": step, **figures})
            self.progress.evaluation(step, figures)
            self._scalars("eval", step, figures)
            self._draw()

    def _scalars(self, group: str, step: int, figures: dict[str, float]) -> None:
        if self.events is not None:
            for name, value in figures.items():
                self.events.add_scalar(f"{group}/{name}", value, step)
