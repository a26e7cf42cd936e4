"""python -m matrix.newest: tests/convert on the newest transformers, and what fails there and not on the pinned one.

The newest is laid beside the environment, in build/newest; nothing that is installed changes. Printed last, so that it is seen in a
long log. The exit status is 0 without --strict: a release from outside must stop no unrelated work.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from matrix import junit
from matrix.environment import ROOT, last_words

FOLDER = ROOT / "build" / "newest"
TESTS = "tests/convert"
_LINE = "=" * 100


@dataclass(frozen=True)
class Run:
    """Tests of one transformers: its version, pytest's exit status, the cases; None where pytest wrote no report."""

    version: str
    status: int
    cases: list[junit.Case] | None

    def failed(self) -> dict[str, str]:
        """Test to the first line of why. A run without a report, or one that fails without a test, counts as a failure itself."""
        wrong = {case.name: case.message for case in self.cases or [] if case.state == "failed"}
        if not wrong and self.status != 0:
            wrong["the whole run"] = f"pytest ended with {self.status}" + ("" if self.cases else " and wrote no report")
        return wrong


def judge(newest: Run, pinned: Run | None, strict: bool) -> tuple[str, int]:
    """What to print last, and the exit status. `pinned` holds the tests that failed on the newest; None where none did."""
    count = junit.counts(newest.cases or [])
    broken = newest.failed()
    if not broken:
        return f"transformers {newest.version}, the newest: {count} in {TESTS}", 0
    known = {} if pinned is None else pinned.failed()
    both = broken.keys() & known.keys()
    new = {name: why for name, why in broken.items() if name not in known}
    lines = [f"{len(both)} tests fail on the pinned transformers too: {', '.join(sorted(both))}"] if both else []
    if new:
        where = "" if pinned is None else f" and pass on {pinned.version}, the pin"
        lines += [
            _LINE,
            f"transformers {newest.version}, THE NEWEST, BREAKS {len(new)} TESTS of {TESTS} ({count}).",
            f"They fail on it{where}:",
        ]
        lines += [f"  {name}: {why}" for name, why in sorted(new.items())]
        lines += ["What to do: docs/versions.md, `When a new release breaks something`.", _LINE]
    return "\n".join(lines), int(bool(new) and strict)


def unreachable(why: str, strict: bool) -> tuple[str, int]:
    """What to print where the newest could not be installed, and the exit status."""
    return f"{_LINE}\nNOT TESTED on the newest transformers, which pip could not install: {why}\n{_LINE}", int(strict)


def install() -> str | None:
    """Lay the newest transformers into FOLDER, with the numpy of the pins. Why not, or None."""
    numpy = re.search(r"^numpy[^#\s]*", (ROOT / "requirements-dev.txt").read_text(encoding="utf-8"), re.MULTILINE)
    packages = ["transformers>=5,<6", numpy[0] if numpy else "numpy"]
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run([*command, "--target", str(FOLDER / "site"), *packages], capture_output=True, text=True)
    return None if done.returncode == 0 else last_words(done.stderr or done.stdout)


def _variables(newest: bool) -> dict[str, str]:
    variables = dict(os.environ) | {"HF_HUB_OFFLINE": "1"}
    if newest:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(FOLDER / "site"), os.environ.get("PYTHONPATH"))))
    return variables


def version(newest: bool) -> str:
    """transformers' version as a test would import it."""
    code = "import transformers; print(transformers.__version__)"
    done = subprocess.run([sys.executable, "-c", code], env=_variables(newest), capture_output=True, text=True)
    return done.stdout.strip() or f"(does not import: {last_words(done.stderr)})"


def run(newest: bool) -> Run:
    """The tests on the newest; on the pin only those that failed there."""
    report = FOLDER / ("newest.xml" if newest else "pinned.xml")
    command = [
        sys.executable,
        "-m",
        "pytest",
        TESTS,
        "-q",
        "-o",
        f"cache_dir={FOLDER / 'cache'}",
        f"--junitxml={report}",
    ]
    command += [] if newest else ["--last-failed"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(os.cpu_count() or 1)]
    done = subprocess.run(command, cwd=ROOT, env=_variables(newest))
    cases = junit.read(report) if report.exists() else None
    return Run(version(newest), done.returncode, cases)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m matrix.newest", description=__doc__)
    parser.add_argument(
        "--strict", action="store_true", help="fail where the newest breaks something, or cannot be had"
    )
    strict = parser.parse_args().strict
    why = install()
    if why is not None:
        said, status = unreachable(why, strict)
    elif (newest := version(True)) == version(False):
        said, status = f"the newest transformers is the pinned one, {newest}: nothing more to test", 0
    else:
        tried = run(newest=True)
        said, status = judge(tried, run(newest=False) if tried.failed() else None, strict)
    print(said, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
