"""RUN/log.jsonl: a line of JSON for each thing that happened, in the order of steps.

{"event": "train" | "eval" | "note", "step": ..., "seconds": ..., ...}. `seconds` is the wall-clock time since this process began
to train, evaluation and checkpoints included; a resumed run begins at 0 again. When a run is resumed, lines of later steps, and a
last line that was cut off, are dropped: the resumed run writes them again.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from bertfast.train.files import explained


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none where there is no file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # a killed run's last line
    return found


def trim(path: Path, step: int) -> int:
    """Drop the lines of steps after `step`; how many were dropped, cut-off ones among them. Whole or not at all."""
    if not path.exists():
        return 0
    kept = [line for line in read(path) if line["step"] <= step]
    before = len(path.read_text(encoding="utf-8").splitlines())
    with explained(str(path)):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
    return before - len(kept)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line. Numbers that JSON has not become null. DiskFullError, CheckpointError."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with explained(str(path)), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain, allow_nan=False) + "\n")
