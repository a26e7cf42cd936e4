"""The stage parity: the op tests on the real device, with a fresh seed; one line for each op's test file."""

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu import results

LIMIT_SECONDS = 460
WORKERS = 8  # most of the time goes into compiling, on one core a test


def lines_of(junit: str, seed: int) -> Iterator[results.Line]:
    """One line for each test file of a JUnit report."""
    counts: dict[str, dict[str, list[str]]] = {}
    for test in ElementTree.fromstring(junit).iter("testcase"):
        op = test.get("classname", "").split(".")[-1].removeprefix("test_")
        kinds = {child.tag for child in test}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts.setdefault(op, {"passed": [], "failed": [], "skipped": []})[kind].append(test.get("name", ""))
    for op, found in counts.items():
        text = "; ".join(found["failed"][:20]) or ("" if found["passed"] else "nothing ran")
        ok = not found["failed"] and bool(found["passed"])
        numbers = {kind: len(names) for kind, names in found.items()}
        yield results.line("parity", op, ok=ok, op=op, seed=seed, error=text, **numbers)


def run(wanted: str = "") -> Iterator[results.Line]:
    seed = secrets.randbelow(2**31)
    print(f"parity: BERTFAST_SEED={seed}", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    chosen = f"triton and {wanted}" if wanted else "triton"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        # The options of pyproject.toml ask for a plugin that the machine may not have.
        command = [sys.executable, "-m", "pytest", "tests/ops", "-k", chosen, "-q", "-o", "addopts="]
        command += [f"--junitxml={report}", "-p", "no:cacheprovider", "--tb=short"]
        if importlib.util.find_spec("xdist") is not None:
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
        try:
            subprocess.run(
                command, cwd=results.ROOT, env=environment | {"BERTFAST_SEED": str(seed)}, timeout=LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            yield results.line("parity", "pytest", ok=False, seed=seed, error=f"stopped after {LIMIT_SECONDS} s")
            return
        if not report.exists():
            yield results.line("parity", "pytest", ok=False, seed=seed, error="pytest wrote no report")
            return
        yield from lines_of(report.read_text(), seed)
