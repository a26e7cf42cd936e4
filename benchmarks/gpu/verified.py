"""Writes bertfast/triton/verified.json: ops whose last parity run on an architecture passed, by committed result lines."""

import json
from pathlib import Path

from benchmarks.gpu import results
from bertfast.triton.verified import FILE, folders


def table(lines: list[results.Line], ops: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    """{arch: {op: {date, device, commit}}} of ops whose last run of all tests there passed.

    A run that was cut short, chose among the tests or had no GPU neither gives nor takes.
    """
    whole = [
        one
        for one in lines
        if one["stage"] == "parity" and "op" in one and one["ok"] is not None and not one.get("only")
    ]
    last = {(str(one["arch"]), one["op"]): one for one in whole}
    found: dict[str, dict[str, dict[str, str]]] = {}
    for (arch, op), one in sorted(last.items()):
        if one["ok"] and arch != "0" and op in ops:
            commit = one["commit"] + ("+dirty" if one["dirty"] else "")
            found.setdefault(arch, {})[op] = {"date": one["date"], "device": one["device"], "commit": commit}
    return found


def write(lines: list[results.Line], file: Path = FILE) -> dict[str, dict[str, dict[str, str]]]:
    import bertfast.ops  # noqa: F401  defines the ops

    found = table(lines, folders())
    file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found
