"""The folder of a run: who may write to it, and the configuration that it was begun with.

RUN/config.yaml, log.jsonl, curves.png, checkpoints/, model/ (at the end), tensorboard/, bad-batch-step-N.* (if ever).
"""

import fcntl
from pathlib import Path
from typing import IO, Any

from bertfast.train import settings
from bertfast.train.distributed import Ranks
from bertfast.train.errors import ConfigError
from bertfast.train.files import explained

CONFIG = "config.yaml"


def check_out(path: Path, resume: bool) -> None:
    """ConfigError where a run cannot begin in the folder `path`, or be resumed there."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: this is a file; name a folder for the run")
    if resume and not path.exists():
        raise ConfigError(f"{path}: there is no such folder, so nothing to resume; begin the run without --resume")
    if not resume and path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path}: the run's folder is not empty; resume it with --resume, or choose another --out")


def recorded(path: Path) -> Path | None:
    """The configuration that the run in `path` was begun with; None where it has none yet. ConfigError: as `check_out`."""
    check_out(path, resume=True)
    return path / CONFIG if (path / CONFIG).is_file() else None


class RunFolder:
    """Opens RUN for one process group; a context that keeps others out.

    Raises ConfigError: as `check_out`, or it was begun with other options, or it is in use.
    """

    def __init__(self, path: Path, record: Any, resume: bool, ranks: Ranks) -> None:
        self.path = path
        self._held: IO[str] | None = None
        wrong: ConfigError | None = None
        try:
            check_out(path, resume)
        except ConfigError as error:
            wrong = error
        # All ranks have looked before one of them makes the folder.
        if ranks.agree(wrong is not None):
            raise wrong or ConfigError(f"{path}: another rank cannot use this folder; its message says why")
        with explained(str(path)):
            path.mkdir(parents=True, exist_ok=True)
        if ranks.main:
            self._lock()
        self._check_options(record, ranks)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            self._held.close()

    def _lock(self) -> None:
        # The kernel gives it back with the process, whatever ends that.
        self._held = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.path}: another process is training in this folder; wait for it to end") from None

    def _check_options(self, record: Any, ranks: Ranks) -> None:
        kept = self.path / CONFIG
        differs = settings.changes(settings.resolve(type(record), kept), record) if kept.exists() else []
        if ranks.agree(bool(differs)):
            raise ConfigError(
                f"{self.path}: resumed with other options than it was begun with: {'; '.join(differs)}. "
                f"Leave them as in {kept}, or begin a new run"
            )
        if ranks.main:
            with explained(str(kept)):
                temporary = kept.with_name(".config.yaml.tmp")
                temporary.write_text(settings.to_yaml(record), encoding="utf-8")
                temporary.replace(kept)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"
