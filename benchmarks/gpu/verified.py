"""Writes bertfast/triton/verified.json: ops whose last parity run on an architecture passed, by committed result lines.

Three committed files speak: the lines (`DEVICE.jsonl`); `sources.json`, the digests of the ops' sources at the commits of lines
that do not hold them themselves (`python -m benchmarks.gpu.sources`); and `reviewed.json`, where a person answers for one line of
one op: why its failed tests are no fault of the kernels, or why sources that have changed since are still what passed. A review
names all it excuses, and what it says goes along as a note to whoever asks.

A candidate's entry holds its gains as well: for each of its ops the median over the op's cases of the owner's time over the
candidate's, by the last line of each case on the same device with the same sources and the same Triton. Owner and candidate
took turns in the run of each line. Cases that lost are named; they count in the median, and no more than that.
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu import results
from bertfast.triton.verified import FILE, Entry, candidates, folders

SOURCES = results.FOLDER / "sources.json"
REVIEWED = results.FOLDER / "reviewed.json"
Table = dict[str, dict[str, dict[str, Entry]]]
# {digest of the package: {architecture: {op: digest of its sources}}}
Recorded = dict[str, dict[str, dict[str, str]]]
TIMED = ("candidates", "micro")  # stages that time cases
OWNER = "op's owner"  # the peer that is the owner, in the cases of candidates


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
    """{arch: {op: {Triton's minor: {date, device, commit, sources, note and gains where there are any}}}}.

    A run that was cut short, chose among the tests or had no GPU neither gives nor takes.
    """
    rows: Table = {}
    for one in whole(lines):
        review = review_of(one, answers or [])
        if one["op"] not in ops or not (one["ok"] or review):
            continue
        arch, op = str(one["arch"]), one["op"]
        at_the_time = one.get("sources") or (recorded or {}).get(one["code"], {}).get(arch, {}).get(op, "")
        entry: Entry = {
            "date": one["date"],
            "device": one["device"],
            "commit": one["commit"] + ("+dirty" if one["dirty"] else ""),
            "sources": (review or {}).get("sources") or at_the_time,
        }
        if review:
            entry["note"] = review["note"]
        if faster := gains(entry, op, minor_of(one), lines):
            entry["gains"] = faster
        rows.setdefault(arch, {}).setdefault(op, {})[minor_of(one)] = entry
    return rows


def gains(entry: Entry, candidate: str, minor: str, lines: list[results.Line]) -> dict[str, Any]:
    """{op: {gain, cases, losing, owner}} of a candidate whose parity passed as `entry` says; see `bertfast.triton.verified.Entry`.

    Where the owner's sources differ between lines, those of the last line count alone.
    """
    timed = {
        one["case"]: one
        for one in lines
        if one["stage"] in TIMED
        and one.get("candidate") == candidate
        and (one["device"], minor_of(one), one.get("sources")) == (entry["device"], minor, entry["sources"])
        and one["ok"]
        and "ratio" in one["peers"].get(OWNER, {})
    }
    by_op: dict[str, list[results.Line]] = {}
    for one in timed.values():
        by_op.setdefault(one["op"], []).append(one)
    rows = {}
    for op, same in sorted(by_op.items()):
        owner = max(same, key=lambda one: one["date"])["owner_sources"]
        ratios = {one["case"]: one["peers"][OWNER]["ratio"] for one in same if one["owner_sources"] == owner}
        losing = {case: round(ratio, 3) for case, ratio in sorted(ratios.items()) if ratio < 1}
        rows[op] = {"gain": round(median(ratios.values()), 3), "cases": len(ratios), "losing": losing, "owner": owner}
    return rows


def _json(file: Path, absent: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else absent


def reviews() -> list[dict[str, Any]]:
    """The committed reviews."""
    return _json(REVIEWED, [])


def recorded_digests() -> Recorded:
    """The committed digests of lines that do not hold them themselves."""
    return _json(SOURCES, {})


def committed() -> Table:
    """The table of the committed files."""
    import bertfast.ops  # noqa: F401  defines the ops

    return table(results.read(), [*folders(), *candidates()], recorded_digests(), reviews())


def text(rows: Table) -> str:
    return json.dumps(rows, indent=1, sort_keys=True) + "\n"


def write(file: Path = FILE) -> Table:
    """Write what the committed files say."""
    rows = committed()
    file.write_text(text(rows), encoding="utf-8")
    return rows
