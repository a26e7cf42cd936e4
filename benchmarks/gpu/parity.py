"""The stage parity: the op tests on the real device, with a fresh seed; one line for each op's test file and each candidate's.

What failed is run again with three other seeds, and the line says how each of them went: a fault fails with every seed, rounding
that a statistic does not bear with a few. A line with a failed test is no pass, whatever the other seeds say.
"""

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import bertfast.ops  # noqa: F401  defines the ops
from benchmarks.gpu import results
from bertfast import _library
from bertfast.triton import sources, verified

LIMIT_SECONDS = 330
GRACE_SECONDS = 30  # to write the report once interrupted
# The fused products own no op, so no test calls them by implementation.
TESTS = "triton or gluon or cutlass or (fused and not refused)"
# Test files of an op that has several. Those of the fused products are judged apart: nobody gets them unasked.
PARTS = {"tied_embedding": "embedding_sum_norm", "masked_lm_head": "masked_lm_loss"}
REPORTED = 20  # failed tests that a line names under `error`; `failures` has them all
# The options of pyproject.toml ask for a plugin that the machine may not have.
OPTIONS = ["-q", "-o", "addopts=", "-p", "no:cacheprovider"]
REPEATS = 3  # seeds with which failed tests run again
REPEAT_SECONDS = 30  # for each of them: what failed is compiled by then
REPEATED = 40  # failed tests at most; more than that is no luck


def workers() -> int:
    """Processes for the tests: most of the time goes into compiling, on one core a test, and one core feeds them."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def op_of(file: str) -> str:
    """The op that a test file without its `test_` belongs to: a folder of bertfast/ops or a candidate, where one owns it."""
    by_file = {candidate.replace(".", "_"): candidate for candidate in verified.candidates()}
    return by_file.get(file) or PARTS.get(file, file)


def expected(listing: str) -> Counter[str]:
    """How many tests each op has, from what `pytest --collect-only -q` prints."""
    return Counter(op_of(file) for file in re.findall(r"^tests/\w+/test_(\w+)\.py::", listing, re.MULTILINE))


class Ran(NamedTuple):
    """What a report says of its tests: node ids by op and outcome, and the message of each failure."""

    outcomes: dict[str, dict[str, list[str]]]  # op to "passed", "failed", "skipped" to names
    nodes: dict[str, dict[str, str]]  # op to the names of failed tests to what pytest calls them
    messages: dict[str, str]  # by what pytest calls them


def read_report(junit: str, ops: Iterable[str] = ()) -> Ran:
    """The tests of a JUnit report, with an empty entry for each of `ops` that none of them has."""
    outcomes: dict[str, dict[str, list[str]]] = {op: {"passed": [], "failed": [], "skipped": []} for op in ops}
    nodes: dict[str, dict[str, str]] = {}
    messages: dict[str, str] = {}
    for test in ElementTree.fromstring(junit).iter("testcase"):
        module, name = test.get("classname", ""), test.get("name", "")
        op = op_of(module.split(".")[-1].removeprefix("test_"))
        problems = [child for child in test if child.tag in ("failure", "error")]
        kind = "failed" if problems else "skipped" if any(child.tag == "skipped" for child in test) else "passed"
        outcomes.setdefault(op, {"passed": [], "failed": [], "skipped": []})[kind].append(name)
        if problems:
            node = f"{module.replace('.', '/')}.py::{name}"
            nodes.setdefault(op, {})[name] = node
            messages[node] = problems[0].get("message", "")[:300]
    return Ran(outcomes, nodes, messages)


def lines_of(
    junit: str,
    seed: int,
    expected_tests: Counter[str],
    only: str = "",
    repeats: dict[str, list[results.Line]] | None = None,
) -> Iterator[results.Line]:
    """One line for each op. One whose tests did not all run is not judged, unless one of them failed.

    repeats: how the failed tests went with other seeds, by what pytest calls them.
    """
    ran_tests = read_report(junit, expected_tests)
    for op, outcomes in ran_tests.outcomes.items():
        numbers = {kind: len(names) for kind, names in outcomes.items()}
        ran = sum(numbers.values())
        ok: bool | None = not outcomes["failed"] and bool(outcomes["passed"])
        text = "; ".join(outcomes["failed"][:REPORTED]) or ("" if outcomes["passed"] else "nothing ran")
        if not outcomes["failed"] and ran < expected_tests[op]:
            ok, text = None, f"{ran} of {expected_tests[op]} tests ran before the time was up"
        if (reason := _library.absence_of(op)) is not None and ok:
            ok, text = None, reason  # what passed did so without its kernels
        more: results.Line = {"sources": sources.here(op, results.environment()["arch"]) if sources.files(op) else ""}
        if op in ran_tests.nodes:
            more["failures"] = {name: ran_tests.messages[node] for name, node in ran_tests.nodes[op].items()}
            more["repeats"] = {name: (repeats or {}).get(node, []) for name, node in ran_tests.nodes[op].items()}
        yield results.line("parity", op, ok=ok, op=op, seed=seed, only=only, error=text, **numbers, **more)


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


def _environment(seed: int) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return environment | {"BERTFAST_SEED": str(seed), verified.ENVIRONMENT: "1"}


def _pytest(tests: list[str], seed: int, report: Path, seconds: float, parallel: bool) -> str | None:
    """The report of some tests with one seed, as far as they got within the time; None where pytest wrote none."""
    command = [sys.executable, "-c", INTERRUPTIBLE, *tests, *OPTIONS, f"--junitxml={report}", "--tb=short"]
    if parallel and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(workers())]
    process = subprocess.Popen(command, cwd=results.ROOT, env=_environment(seed))
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        _interrupt(process)
    return report.read_text() if report.exists() else None


def repeat(
    nodes: list[str], folder: Path, runner: Callable[..., str | None] = _pytest
) -> dict[str, list[results.Line]]:
    """How tests go with other seeds: {test: [{seed, ok, error}, ...]}; ok is None where a test did not run in time."""
    outcomes: dict[str, list[results.Line]] = {node: [] for node in nodes}
    for number in range(REPEATS if nodes else 0):
        seed = secrets.randbelow(2**31)
        print(f"parity: {len(nodes)} failed tests again, BERTFAST_SEED={seed}", flush=True)
        junit = runner(nodes, seed, folder / f"repeat{number}.xml", REPEAT_SECONDS, False)
        ran = read_report(junit) if junit else Ran({}, {}, {})
        passed = {name for kinds in ran.outcomes.values() for name in kinds["passed"]}
        for node in nodes:
            ok = False if node in ran.messages else True if node.split("::", 1)[1] in passed else None
            outcomes[node].append({"seed": seed, "ok": ok, "error": ran.messages.get(node, "")})
    return outcomes


def files_of(op: str) -> list[str]:
    """The test files of an op, a folder of bertfast/ops, or of a candidate, those that exist; see `op_of`."""
    names = [op.replace(".", "_"), *(part for part, whole in PARTS.items() if whole == op)]
    files = [f"tests/ops/test_{name}.py" for name in names]
    return [file for file in files if (results.ROOT / file).exists()]


def judged(tests: list[str], seconds: float, only: str = "") -> Iterator[results.Line]:
    """One line for each op of these files and folders, run with a fresh seed for so long at most.

    only: chooses among the tests; the lines are then no verdict.
    """
    seed = secrets.randbelow(2**31)
    print(f"parity: BERTFAST_SEED={seed}", flush=True)
    chosen = [*tests, "-k", f"({TESTS}) and {only}" if only else TESTS]
    listing = subprocess.run(
        [sys.executable, "-c", INTERRUPTIBLE, *chosen, *OPTIONS, "--collect-only"],
        cwd=results.ROOT,
        env=_environment(seed),
        capture_output=True,
        text=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        junit = _pytest(chosen, seed, Path(folder) / "junit.xml", seconds, True)
        if junit is None:
            yield results.line("parity", "pytest", ok=False, seed=seed, error="pytest wrote no report")
            return
        failed = list(read_report(junit).messages)
        repeats = repeat(failed[:REPEATED], Path(folder))
        yield from lines_of(junit, seed, expected(listing.stdout), only, repeats)


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    yield from judged(["tests/ops", "tests/triton"], LIMIT_SECONDS, only)
