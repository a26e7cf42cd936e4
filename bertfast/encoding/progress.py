"""How far an encoding is, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from bertfast.encoding.run import Status

_EVERY = 10.0  # seconds between two lines
_PACE = 0.2  # and between two looks of the bar


class Progress:
    """Shows what `encode_files` reports."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Bar | None = None
        self._begun_at: float | None = None  # of the input, where this process began to encode
        self._shown = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            columns = (BarColumn(30), TaskProgressColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=self.console)
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, status: Status) -> None:
        if not status.texts:  # shards that were there already
            self._begun_at = status.fraction
        now = time.monotonic()
        ended = status.fraction >= 1.0 and self._bar is not None
        if not ended and now - self._shown < (_EVERY if self._bar is None else _PACE):
            return
        self._shown = now
        text = f"{status.resumed + status.texts:,} texts {rates(status)} {self._remaining(status)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=status.fraction, description=text)
        else:
            self.console.print(f"{status.fraction:.0%} {text}", markup=False, soft_wrap=True)

    def _remaining(self, status: Status) -> str:
        """Time left at the pace so far, as h:mm:ss."""
        done = status.fraction - (self._begun_at or 0.0)
        if done <= 0.0:
            return ""
        return f"ETA {timedelta(seconds=round(status.seconds * (1.0 - status.fraction) / done))}"


def rates(status: Status) -> str:
    """Texts and tokens a second of what this process encoded, in words."""
    seconds = max(status.seconds, 1e-9)
    return f"{status.texts / seconds:,.0f} texts/s {status.tokens / seconds:,.0f} tokens/s"
