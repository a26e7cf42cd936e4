"""One line a cell: versions, every part's outcome, seconds; on the terminal, in docs/versions.md and as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix.cells import COLUMNS, Cell
from matrix.parts import NAMES, Outcome

BEGIN, END = "<!-- written by make matrix -->", "<!-- end of what make matrix wrote -->"
_GOOD = ("ok", "not run")


@dataclass
class Result:
    """What became of a cell; `missing` says why it was not run at all."""

    cell: Cell
    versions: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    missing: str | None = None
    commit: str = ""
    date: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing failed: a cell that could not be run here says so, and fails nothing."""
        return all(outcome.state in _GOOD for outcome in self.outcomes.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "cell": self.cell.name,
            "python": self.cell.python,
            "packages": self.cell.packages,
            "versions": self.versions,
            "parts": {name: outcome.to_dict() for name, outcome in self.outcomes.items()},
            "not_run": self.missing,
            "good": self.good,
            "commit": self.commit,
            "date": self.date,
        }

    @classmethod
    def from_dict(cls, cell: Cell, content: dict[str, Any]) -> "Result":
        """The result of an earlier run of this cell."""
        outcomes = {name: Outcome(**outcome) for name, outcome in content["parts"].items()}
        return cls(cell, content["versions"], outcomes, content["not_run"], content["commit"], content["date"])


def _states(result: Result) -> list[str]:
    if result.missing is not None:
        return ["not run"] * len(NAMES)
    return [result.outcomes[name].state if name in result.outcomes else "not run" for name in NAMES]


def rows(results: list[Result]) -> list[list[str]]:
    """The table's rows, the headings first."""
    table = [["cell", "Python", *COLUMNS, *NAMES, "seconds"]]
    for result in results:
        versions = [result.versions.get(name, result.cell.packages.get(name) or "newest") for name in COLUMNS]
        seconds = sum(outcome.seconds for outcome in result.outcomes.values())
        python = result.versions.get("python", result.cell.python)
        table.append([result.cell.name, python, *versions, *_states(result), f"{seconds:.0f}" if seconds else ""])
    return table


def notes(results: list[Result]) -> list[str]:
    """A line for every part that is not simply ok, with its reason."""
    lines = []
    for result in results:
        if result.missing is not None:
            lines.append(f"{result.cell.name}: not run: {result.missing}")
        lines += [
            f"{result.cell.name}, {name}: {outcome.state}: {outcome.note}"
            for name, outcome in result.outcomes.items()
            if outcome.state != "ok"
        ]
    return lines


def text(results: list[Result]) -> str:
    """For a terminal."""
    table = rows(results)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(lines + notes(results))


def markdown(results: list[Result]) -> str:
    """For docs/versions.md: the table, where it comes from, and the reasons below it."""
    head, *body = rows(results)
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    runs = sorted({f"{result.date} on commit {result.commit}" for result in results if result.date})
    lines += ["", f"Run: {', '.join(runs) or 'nothing'}."]
    what = notes(results)
    return "\n".join(lines + ([""] if what else []) + [f"- {line.replace('|', '/')}" for line in what])


def write(results: list[Result], document: Path) -> None:
    """Put the table between the document's markers. Raises ValueError where it has none."""
    content = document.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise ValueError(f"{document}: the lines {BEGIN!r} and {END!r} must stand there once, in this order")
    before, after = content[: content.index(BEGIN)], content[content.index(END) :]
    document.write_text(f"{before}{BEGIN}\n{markdown(results)}\n{after}", encoding="utf-8")


def write_json(results: list[Result], path: Path) -> None:
    path.write_text(json.dumps([result.to_dict() for result in results], indent=1) + "\n", encoding="utf-8")
