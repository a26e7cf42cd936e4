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


class RunFolder:
    """Opens RUN for one process group; a context that keeps others out.

    Raises ConfigError: it exists and `resume` is off, it was begun with other options, or it is in use.
    """

    def __init__(self, path: Path, record: Any, resume: bool, ranks: Ranks) -> None:
        self.path = path
        self._held: IO[str] | None = None
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: this is a file; name a folder for the run")
        if ranks.agree(path.exists() and not resume and any(path.iterdir())):
            raise ConfigError(
                f"{path}: the run's folder is not empty; resume it with --resume, or choose another --out"
            )
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
        kept = self.path / "config.yaml"
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
