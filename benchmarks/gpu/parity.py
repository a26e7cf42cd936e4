"""The stage parity: the op tests on the real device, with a fresh seed; one line for each op's test file."""

import importlib.util
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu import results

LIMIT_SECONDS = 430
GRACE_SECONDS = 30  # to write the report once interrupted
TESTS = "triton or fused"  # the fused products own no op, so no test calls them by implementation
# Test files of an op that has several. Those of the fused products are judged apart: nobody gets them unasked.
PARTS = {"tied_embedding": "embedding_sum_norm", "masked_lm_head": "masked_lm_loss"}
WORKERS = 8  # most of the time goes into compiling, on one core a test


def op_of(file: str) -> str:
    """The op that a test file without its `test_` belongs to, a folder of bertfast/ops where one owns it."""
    return PARTS.get(file, file)


def expected(listing: str) -> Counter[str]:
    """How many tests each op has, from what `pytest --collect-only -q` prints."""
    return Counter(op_of(file) for file in re.findall(r"^tests/\w+/test_(\w+)\.py::", listing, re.MULTILINE))


def lines_of(junit: str, seed: int, wanted: Counter[str], only: str = "") -> Iterator[results.Line]:
    """One line for each op. One whose tests did not all run is not judged, unless one of them failed."""
    counts: dict[str, dict[str, list[str]]] = {op: {"passed": [], "failed": [], "skipped": []} for op in wanted}
    for test in ElementTree.fromstring(junit).iter("testcase"):
        op = op_of(test.get("classname", "").split(".")[-1].removeprefix("test_"))
        kinds = {child.tag for child in test}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts.setdefault(op, {"passed": [], "failed": [], "skipped": []})[kind].append(test.get("name", ""))
    for op, found in counts.items():
        numbers = {kind: len(names) for kind, names in found.items()}
        ran = sum(numbers.values())
        ok: bool | None = not found["failed"] and bool(found["passed"])
        text = "; ".join(found["failed"][:20]) or ("" if found["passed"] else "nothing ran")
        if not found["failed"] and ran < wanted[op]:
            ok, text = None, f"{ran} of {wanted[op]} tests ran before the time was up"
        yield results.line("parity", op, ok=ok, op=op, seed=seed, only=only, error=text, **numbers)


# A shell starts what runs in its background with SIGINT ignored, and so would pytest ignore it.
INTERRUPTIBLE = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))
"""


def _interrupt(process: subprocess.Popen) -> None:
    """Ask pytest to stop: it still writes its report."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def run(wanted: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    seed = secrets.randbelow(2**31)
    print(f"parity: BERTFAST_SEED={seed}", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["BERTFAST_SEED"] = str(seed)
    chosen = f"({TESTS}) and {wanted}" if wanted else TESTS
    # The options of pyproject.toml ask for a plugin that the machine may not have.
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", INTERRUPTIBLE, "tests/ops", "tests/triton", "-k", chosen, *options]
    listing = subprocess.run(
        [*command, "--collect-only"], cwd=results.ROOT, env=environment, capture_output=True, text=True
    )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command += [f"--junitxml={report}", "--tb=short"]
        if importlib.util.find_spec("xdist") is not None:
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
        process = subprocess.Popen(command, cwd=results.ROOT, env=environment)
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            _interrupt(process)
        if not report.exists():
            yield results.line("parity", "pytest", ok=False, seed=seed, error="pytest wrote no report")
            return
        yield from lines_of(report.read_text(), seed, expected(listing.stdout), wanted)
