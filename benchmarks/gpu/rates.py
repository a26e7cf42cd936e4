"""Writes bertfast/train/matrix_rates.json: the matrix rate of each GPU, from committed lines of the stage micro."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import results
from bertfast.train.rates import FILE


def table(lines: list[results.Line]) -> dict[str, dict[str, Any]]:
    """{name of the device: {"bf16", "fp32": FLOP/s, "date", "commit"}}, of the last line of each device that went well."""
    rows: dict[str, dict[str, Any]] = {}
    for one in results.latest(lines):
        if (one["stage"], one["case"]) == ("micro", "ceilings") and one["ok"] and one["arch"]:
            # Dense products of 8192 cubed; float32 without TF32, as training multiplies it.
            rate = {"bf16": round(1e12 * one["tflops"]), "fp32": round(1e12 * one["tflops32"])}
            commit = one["commit"] + "+dirty" * one["dirty"]
            rows[one["device"]] = rate | {"date": one["date"][:10], "commit": commit}
    return rows


def text(rows: dict[str, dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1, sort_keys=True) + "\n"


def write(file: Path = FILE) -> list[str]:
    """Write what the committed lines say; the devices that it names."""
    rows = table(results.read())
    file.write_text(text(rows), encoding="utf-8")
    return sorted(rows)
