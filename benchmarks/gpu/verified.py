"""Writes bertfast/triton/verified.json: ops whose last parity run on an architecture passed, by committed result lines.

Three committed files speak: the lines (`DEVICE.jsonl`); `sources.json`, the digests of the ops' sources at the commits of lines
that do not hold them themselves (`python -m benchmarks.gpu.sources`); and `reviewed.json`, where a person answers for one line of
one op: why its failed tests are no fault of the kernels, or why sources that have changed since are still what passed. A review
names all it excuses, and what it says goes along as a note to whoever asks.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import results
from bertfast.triton.verified import FILE, Entry, candidates, folders

SOURCES = results.FOLDER / "sources.json"
REVIEWED = results.FOLDER / "reviewed.json"
Table = dict[str, dict[str, dict[str, Entry]]]
# {digest of the package: {architecture: {op: digest of its sources}}}
Recorded = dict[str, dict[str, dict[str, str]]]


def minor_of(line: results.Line) -> str:
    """The minor release of Triton of a line, such as "3.6"."""
    return ".".join(line["triton"].split("+")[0].split(".")[:2])


def failed(line: results.Line) -> list[str]:
    """The tests of a parity line that failed."""
    if line["ok"] is not False:
        return []
    return list(line.get("failures") or line["error"].split("; "))


def review_of(line: results.Line, answers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The review of this very line, or None.

    Raises:
        ValueError: where a review excuses other tests than those that failed.
    """
    same = [one for one in answers if all(one[name] == line[name] for name in ("op", "device", "date"))]
    if not same:
        return None
    if sorted(same[0]["failed"]) != sorted(failed(line)):
        raise ValueError(f"{REVIEWED.name}: the review of {line['op']}, {line['date']}, must name {failed(line)}")
    return same[0]


def whole(lines: list[results.Line]) -> list[results.Line]:
    """The last line of each architecture, op and minor of Triton whose run was neither cut short nor of chosen tests."""
    judged = [
        one
        for one in lines
        if one["stage"] == "parity" and "op" in one and one["ok"] is not None and not one.get("only") and one["arch"]
    ]
    last = {(one["arch"], one["op"], minor_of(one)): one for one in judged}
    return list(last.values())


def table(
    lines: list[results.Line],
    ops: list[str],
    recorded: Recorded | None = None,
    answers: list[dict[str, Any]] | None = None,
) -> Table:
    """{arch: {op: {Triton's minor: {date, device, commit, sources, note where there is one}}}}.

    A run that was cut short, chose among the tests or had no GPU neither gives nor takes.
    """
    rows: Table = {}
    for one in whole(lines):
        review = review_of(one, answers or [])
        if one["op"] not in ops or not (one["ok"] or review):
            continue
        arch, op = str(one["arch"]), one["op"]
        at_the_time = one.get("sources") or (recorded or {}).get(one["code"], {}).get(arch, {}).get(op, "")
        entry = {
            "date": one["date"],
            "device": one["device"],
            "commit": one["commit"] + ("+dirty" if one["dirty"] else ""),
            "sources": (review or {}).get("sources") or at_the_time,
        }
        if review:
            entry["note"] = review["note"]
        rows.setdefault(arch, {}).setdefault(op, {})[minor_of(one)] = entry
    return rows


def _json(file: Path, absent: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else absent


def reviews() -> list[dict[str, Any]]:
    """The committed reviews."""
    return _json(REVIEWED, [])


def committed() -> Table:
    """The table of the committed files."""
    import bertfast.ops  # noqa: F401  defines the ops

    return table(results.read(), [*folders(), *candidates()], _json(SOURCES, {}), reviews())


def text(rows: Table) -> str:
    return json.dumps(rows, indent=1, sort_keys=True) + "\n"


def write(file: Path = FILE) -> Table:
    """Write what the committed files say."""
    rows = committed()
    file.write_text(text(rows), encoding="utf-8")
    return rows
