"""Writes bertfast/triton/faster.json: what committed lines say of captured calls of the drop-in beside stock.

Only lines that name their path "captured" count, of inference or of training, the last of each stage, case and
device. The path is what the measured call did, not what it was asked to do (`measure.Replays`).
"""

import json
from pathlib import Path

from benchmarks.gpu import results
from bertfast.triton.faster import FILE, Line

SHAPE = ("dtype", "hidden", "layers", "tokens", "seqlen", "train")
ORIGIN = ("case", "device", "date")


def ratio_to_stock(line: results.Line) -> float | None:
    """Stock's time over ours: of a line whose peers are times, or None."""
    return line.get("peers", {}).get("stock", {}).get("ratio")


def table(lines: list[results.Line]) -> dict[str, list[Line]]:
    """{architecture: rows of ORIGIN, SHAPE, commit and ratio}, in the order of their text."""
    rows: dict[str, list[Line]] = {}
    for one in results.latest(lines):
        ratio = ratio_to_stock(one)
        if one.get("path") != "captured" or not one["ok"] or not one["arch"] or ratio is None:
            continue
        row = {name: one[name] for name in ORIGIN + SHAPE}
        row |= {"commit": one["commit"] + "+dirty" * one["dirty"], "ratio": round(ratio, 4)}
        rows.setdefault(str(one["arch"]), []).append(row)
    return {arch: sorted(lines, key=lambda row: (row["case"], row["device"])) for arch, lines in sorted(rows.items())}


def text(rows: dict[str, list[Line]]) -> str:
    return json.dumps(rows, indent=1, sort_keys=True) + "\n"


def write(file: Path = FILE) -> dict[str, list[Line]]:
    """Write what the committed lines say."""
    rows = table(results.read())
    file.write_text(text(rows), encoding="utf-8")
    return rows
