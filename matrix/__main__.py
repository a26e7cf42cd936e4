"""python -m matrix: run cells one after another, print a line for each part, end with the table."""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from matrix import interpreters, table
from matrix.cells import Cell, read, select
from matrix.environment import ROOT, Environment
from matrix.parts import NAMES, RUN, blocked, timed
from matrix.table import Result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m matrix", description=__doc__)
    parser.add_argument(
        "--cell", action="append", default=[], metavar="NAME", help="run this cell alone; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="print the cells and their Pythons, and run nothing")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "matrix", help="where environments, logs and results lie"
    )
    parser.add_argument("--keep", action="store_true", help="keep each environment (about 6 GB) for the next run")
    parser.add_argument("--resume", action="store_true", help="leave out cells that ran well on this commit already")
    parser.add_argument("--cache", action="store_true", help="let pip cache what it downloads (3 GB an environment)")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "versions.md", help="whose table is written")
    return parser.parse_args()


def commit() -> str:
    """The checkout's commit, "+" behind it where files were changed; "unknown" outside a repository."""
    try:
        short = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        # The table itself may differ: the cells before this one wrote it.
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", ".", ":!docs"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return short.stdout.strip() + ("+" if changed.stdout.strip() else "")


def run(cell: Cell, folder: Path, *, keep: bool, cache: bool) -> Result:
    """One cell from an empty folder to its outcomes, or from an environment that was kept."""
    result = Result(cell, commit=commit(), date=f"{datetime.now(UTC):%Y-%m-%d}")
    interpreter = interpreters.find(cell.python)
    if interpreter is None:
        result.missing = f"no python{cell.python} here (looked at PYTHONS, the path and pyenv's folder)"
        print(f"[{cell.name}] not run: {result.missing}", flush=True)
        return result
    env = Environment(cell, folder / cell.name)
    env.folder.mkdir(parents=True, exist_ok=True)
    log = env.folder / "log.txt"
    log.unlink(missing_ok=True)
    for name in NAMES:
        outcome = blocked(name, result.outcomes)
        if outcome is None:
            print(f"[{cell.name}] {name} ...", flush=True)
            if name == "install":
                outcome = timed(lambda: env.install(interpreter, log, cache) or "")
            else:
                outcome = timed(lambda part=name: RUN[part](env, log))
        result.outcomes[name] = outcome
        print(f"[{cell.name}] {name}: {outcome.state} {outcome.note} ({outcome.seconds:.0f} s)", flush=True)
    result.versions = env.versions()
    if not keep:
        env.remove()
    return result


def earlier(cell: Cell, path: Path) -> Result | None:
    """The cell's result of an earlier run; None where there is none, or it was of other packages."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Result.from_dict(cell, content) if content["packages"] == cell.packages else None


def main() -> int:
    """Exit status 1 where a part of a cell failed."""
    options = _arguments()
    try:
        cells = read()
        chosen = select(cells, options.cell)
    except ValueError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    if options.list:
        for cell in cells:
            print(f"{cell.name:20} {cell.about}; python{cell.python}: {interpreters.find(cell.python) or 'none here'}")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    now, results = commit(), []
    for cell in cells:
        path = options.folder / f"{cell.name}.json"
        result = earlier(cell, path)
        done = options.resume and result is not None and result.good and not result.missing and result.commit == now
        if cell in chosen and not done:
            result = run(cell, options.folder, keep=options.keep, cache=options.cache)
            path.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        if result is not None:
            results.append(result)
    table.write_json(results, options.folder / "results.json")
    table.write(results, options.document)
    print(table.text(results))
    return 0 if all(result.good for result in results if result.cell in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
