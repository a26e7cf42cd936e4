"""Writes docs/tools.md: how each tool fares with an optimised model, and the test that says so.

    python tests/tools/tools_table.py

The rows are the tests with the mark `tool(library, use, state)`, wherever they stand. State is "fast", where the test shows that
the fast path ran with stock's numbers; "falls back", where stock's code ran and the report says why; "refused", where an error
says so.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tools.md"
STATES = ("fast", "falls back", "refused")
_HEAD = """# Tools

How each tool of the ecosystem fares with an optimised model, and the test that says so. *Fast*: the fast path runs, with stock's
numbers. *Falls back*: stock's code runs, and `bertfast.report(model)` says why. *Refused*: an error says why and what to do.

`python tests/tools/tools_table.py` writes this page from the tests' marks.
"""


class Row(NamedTuple):
    library: str
    use: str
    state: str
    test: str


def rows(items: Iterable[pytest.Item]) -> list[Row]:
    """One for each mark of the collected tests, a parametrised test counting once; by library, then by state, then by use."""
    collected = set()
    for item in items:
        for mark in item.iter_markers("tool"):
            library, use, state = mark.args
            if state not in STATES:
                raise ValueError(f"{item.nodeid}: the state of a tool is one of {STATES}, not {state!r}")
            collected.add(Row(library, use, state, item.nodeid.partition("[")[0]))
    return sorted(collected, key=lambda row: (row.library.lower(), STATES.index(row.state), row.use.lower(), row.test))


def page(collected: list[Row]) -> str:
    """The whole of docs/tools.md."""
    by_library = defaultdict(list)
    for row in collected:
        by_library[row.library].append(row)
    parts = [_HEAD]
    for library, own in by_library.items():
        parts.append(f"\n## {library}\n\n| use | state | test |\n|---|---|---|\n")
        parts += [f"| {row.use} | {row.state} | `{row.test}` |\n" for row in own]
    return "".join(parts)


class _Collector:
    """A plugin that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def main() -> None:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # as `python -m pytest` has it
    collector = _Collector()
    status = pytest.main(["--collect-only", "-qq", "-p", "no:xdist", str(ROOT / "tests")], plugins=[collector])
    if status != pytest.ExitCode.OK:
        sys.exit(f"the tests could not be collected (pytest's status {status}): nothing was written")
    PAGE.write_text(page(rows(collector.items)))


if __name__ == "__main__":
    main()
