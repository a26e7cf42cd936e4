"""Progress on the screen: a bar with the latest figures on a terminal, plain lines elsewhere. Both on standard error."""

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# How a figure is written; others are left to the log file.
_SHOWN = {
    "loss": "loss {:.3f}",
    "mlm_loss": "mlm {:.3f}",
    "accuracy": "acc {:.1%}",
    "mlm_accuracy": "mlm acc {:.1%}",
    "nsp_accuracy": "nsp acc {:.1%}",
    "tokens_per_second": "{:,.0f} tok/s",
    "mfu": "MFU {:.0%}",
    "grad_norm": "norm {:.2f}",
    "learning_rate": "lr {:.1e}",
    "memory_gib": "{:.1f} GiB",
}


def _line(figures: Mapping[str, float]) -> str:
    return " ".join(text.format(figures[name]) for name, text in _SHOWN.items() if name in figures)


class Progress:
    """`total` steps from `step` on. Shows nothing where `visible` is false."""

    def __init__(self, step: int, total: int, visible: bool = True, console: Console | None = None) -> None:
        self.step, self.total, self.visible = step, total, visible
        self.console = console or Console(stderr=True, highlight=False)
        self._first, self._begun = step, time.monotonic()
        self._bar: Bar | None = None

    def start(self) -> None:
        self._begun = time.monotonic()
        if self.visible and self.console.is_terminal:
            columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=self.console)
            self._task = self._bar.add_task("", total=self.total, completed=self.step)
            self._bar.start()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, step: int) -> None:
        self.step = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        if self.visible:
            (self._bar.console if self._bar else self.console).print(text, markup=False, soft_wrap=True)

    def train(self, step: int, figures: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=_line(figures))
        else:
            self.say(f"step {step}/{self.total} {_line(figures)} ETA {self.remaining()}")

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        self.say(f"step {step} eval " + " ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def remaining(self) -> str:
        """Time to the last step at the pace so far, evaluations and checkpoints included, as h:mm:ss."""
        pace = (time.monotonic() - self._begun) / max(1, self.step - self._first)
        return str(timedelta(seconds=round(pace * (self.total - self.step))))
