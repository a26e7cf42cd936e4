"""Result lines: one JSON object a line in benchmarks/results/DEVICE.jsonl, each saying what ran, where, and at which commit.

Lines are appended, never changed; where the same case ran twice, readers take the later one.
"""

import hashlib
import json
import re
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results"
Line = dict[str, Any]
# What the stage `verified` writes, which is no code.
WRITTEN = ("bertfast/triton/verified.json", "bertfast/triton/faster.json", "bertfast/train/matrix_rates.json")
_NO_CODE = frozenset({Path(name).name for name in WRITTEN} | {"_build_info.py"})


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def code(root: Path = ROOT) -> str:
    """Twelve digits that stand for the kernels' source, in a checkout with or without git. Written results change none of it."""
    digest = hashlib.sha256()
    for file in sorted([*root.glob("bertfast/**/*.py"), *root.glob("bertfast/**/*.json"), *root.glob("csrc/**/*.*")]):
        if file.name not in _NO_CODE:
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def environment() -> Line:
    """What every line of this process shares."""
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = ""
    facts = {
        "commit": _output("git", "rev-parse", "--short", "HEAD") or "unknown",
        "dirty": _output("git", "status", "--porcelain", "--", "bertfast", "csrc", *[f":!{name}" for name in WRITTEN])
        != "",
        "code": code(),
        "torch": torch.__version__,
        "triton": triton_version,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "device": "cpu",
        "arch": 0,
    }
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        facts |= {"device": torch.cuda.get_device_name(), "arch": 10 * major + minor}
    return facts


def clocks() -> str:
    """Multiprocessor and memory clock now, and what throttles them."""
    query = "--query-gpu=clocks.sm,clocks.mem,clocks_event_reasons.active"
    return _output("nvidia-smi", query, "--format=csv,noheader")


def line(stage: str, case: str, *, ok: bool | None, **more: Any) -> Line:
    """One result. ok: False where it failed, None where it could not be judged."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"stage": stage, "case": case, "ok": ok, "date": date, **environment(), **more}


def append(new: Line, folder: Path = FOLDER) -> Line:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{slug(new['device'])}.jsonl").open("a") as file:
        file.write(json.dumps(new) + "\n")
    return new


def read(folder: Path = FOLDER) -> list[Line]:
    """Every line of every device, oldest first."""
    lines = [json.loads(text) for path in sorted(folder.glob("*.jsonl")) for text in path.read_text().splitlines()]
    return sorted(lines, key=lambda one: one["date"])


def latest(lines: list[Line]) -> list[Line]:
    """The last line of each stage, case and device."""
    return list({(one["stage"], one["case"], one["device"]): one for one in lines}.values())


def done(stage: str, lines: list[Line]) -> frozenset[str]:
    """Cases of a stage that went well on this device with this code: what a stage that ran out of time need not do again."""
    here = environment()
    same = [one for one in latest(lines) if (one["stage"], one["device"]) == (stage, here["device"])]
    return frozenset(one["case"] for one in same if one["ok"] and one.get("code") == here["code"])
