"""The checkpoints of a run: RUN/checkpoints/step-00000200/, each loadable by transformers as it lies.

model.safetensors, config.json and the tokenizer's files; optimizer.safetensors by parameter name; rng.safetensors; under precision
fp8 scales.safetensors; state.json (step, loader, log window); manifest.json with size and sha256 of every file, written last.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bertfast.train.errors import CheckpointError
from bertfast.train.files import TEMPORARY, Files, check_folder, explained, write_folder

FORMAT = {"format": "bertfast-checkpoint", "version": 1}


@dataclass
class Checkpoint:
    """What a checkpoint holds. Tensors are on the CPU; `state` is plain JSON."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    state: dict[str, Any]
    scales: dict[str, Tensor] = field(default_factory=dict)  # of tensors that are cast to FP8


class Store:
    """Saves, finds and prunes the checkpoints in one folder. `extra` writes config.json and the tokenizer's files."""

    def __init__(self, folder: Path, keep: int, files: Files | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.files = files or Files()

    def save(self, checkpoint: Checkpoint, extra: Callable[[Path], None]) -> Path:
        """Write a checkpoint, whole or not at all, then remove those past retention. DiskFullError, CheckpointError."""
        target = self.folder / f"step-{checkpoint.step:08d}"

        def fill(folder: Path) -> None:
            self.files.write_tensors(folder / "model.safetensors", checkpoint.model)
            self.files.write_tensors(folder / "optimizer.safetensors", checkpoint.optimizer)
            self.files.write_tensors(folder / "rng.safetensors", checkpoint.rng)
            if checkpoint.scales:
                self.files.write_tensors(folder / "scales.safetensors", checkpoint.scales)
            state = {"step": checkpoint.step, **checkpoint.state}
            self.files.write_text(folder / "state.json", json.dumps(state, indent=1) + "\n")
            extra(folder)

        self.folder.mkdir(parents=True, exist_ok=True)
        write_folder(target, fill, {**FORMAT, "step": checkpoint.step}, self.files)
        self._prune(target)
        return target

    def _names(self) -> list[Path]:
        """Folders that look like checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True) if self.folder.is_dir() else []

    def _prune(self, newest: Path) -> None:
        """Remove older checkpoints but for the newest `keep`; `newest` was just verified by having been written."""
        with explained(f"{self.folder}: old checkpoints"):
            for path in [path for path in self._names() if path.name <= newest.name][self.keep :]:
                # A folder that is being removed must not look like a checkpoint that lost a file.
                aside = path.with_name(f"{TEMPORARY}old-{path.name}")
                self.files.rename(path, aside)
                self.files.remove_folder(aside)

    def clean(self) -> list[str]:
        """Remove what a killed run left half-written; their names."""
        stale = sorted(self.folder.glob(f"{TEMPORARY}*")) if self.folder.is_dir() else []
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in stale]

    def latest(self) -> tuple[Path | None, list[str]]:
        """The newest complete checkpoint with right checksums, and why each newer one was passed over."""
        passed_over: list[str] = []
        for path in self._names():
            fault = check_folder(path)
            if fault is None:
                return path, passed_over
            passed_over.append(f"{path.name} was passed over: {fault}")
        return None, passed_over


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint whose checksums `Store.latest` has verified. CheckpointError: not of this format."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer", "rng")}
        scales = load_file(path) if (path := folder / "scales.safetensors").is_file() else {}
        return Checkpoint(step=state["step"], state=state, scales=scales, **tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a checkpoint of a training run ({error})") from None
