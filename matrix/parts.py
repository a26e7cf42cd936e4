"""The parts of a cell's suite, in order, and how each is run."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matrix.environment import Environment, Failed
from matrix.junit import counts, read

# Part -> pytest's arguments, paths from the checkout's root. Short on purpose: `make test` is the whole suite.
TESTS: dict[str, list[str]] = {
    "parity": ["tests/matrix/test_every_op.py", "tests/ops/test_products.py", "-k", "cpu or products"],
    "interpreter": ["tests/matrix/test_every_op.py", "-k", "triton"],
    "drop-in": [
        "tests/convert/test_model.py",
        "tests/convert/test_heads.py",
        "tests/convert/test_training.py",
        "-k",
        "not triton and not compile and not has_the_mean",
    ],
    "training": [
        "tests/matrix/test_one_step.py",
        "tests/models/test_models_training.py",
        "-k",
        "one_step or one_seed or initial",
    ],
}
NAMES = ("install", "build", "import", "doctor", *TESTS)


@dataclass(frozen=True)
class Outcome:
    """What became of a part: state "ok", "failed", "skipped" or "not run", one line of why or how much, seconds."""

    state: str
    note: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _import(env: Environment, log: Path) -> str:
    code = (
        "import bertfast, bertfast.models, bertfast.train.loop, transformers, torch; from bertfast import _ext;"
        "assert _ext.load() is not None, _ext.why_absent(); assert 'site-packages' in bertfast.__file__, bertfast.__file__;"
        "print(bertfast.__version__)"
    )
    return env.must([str(env.python), "-c", code], env.folder, log, 300).strip().splitlines()[-1]


def _build(env: Environment, log: Path) -> str:
    env.copy_sources()
    pip = [
        str(env.python),
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--force-reinstall",
        "--no-cache-dir",
        "-v",
        ".",
    ]
    env.must(pip, env.folder / "source", log, 2400)
    return ""


def _doctor(env: Environment, log: Path) -> str:
    said = env.must([str(env.python.parent / "bertfast"), "doctor"], env.folder, log, 300)
    found = re.search(r"^C\+\+ kernels\s+(\w+)", said, re.MULTILINE)
    return found[1] if found else "no C++ kernels"


def _pytest(name: str) -> Callable[[Environment, Path], str]:
    def run(env: Environment, log: Path) -> str:
        report = env.folder / f"{name}.xml"
        report.unlink(missing_ok=True)
        # The script, not `python -m`: the checkout's own folder must not come before the installed package.
        command = [
            str(env.python.parent / "pytest"),
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *TESTS[name],
        ]
        done = env.run(command, env.folder / "tests", log, 1800)
        if not report.exists():
            raise Failed(f"pytest ended with {done.returncode}: {done.stdout.strip()[-300:]}")
        cases = read(report)
        if done.returncode != 0 or not any(case.state == "passed" for case in cases):
            wrong = [case for case in cases if case.state == "failed"]
            first = f"; first: {wrong[0].name}: {wrong[0].message}" if wrong else ""
            raise Failed(f"{counts(cases)}{first}")
        return counts(cases)

    return run


RUN: dict[str, Callable[[Environment, Path], str]] = {
    "build": _build,
    "import": _import,
    "doctor": _doctor,
    **{name: _pytest(name) for name in TESTS},
}
# What a part cannot do without.
NEEDS = {
    "build": ("install",),
    **dict.fromkeys(("doctor", *TESTS), ("install", "build", "import")),
    "import": ("install", "build"),
}


def timed(action: Callable[[], str]) -> Outcome:
    """What `action` gives as its note, or why it failed."""
    begin = time.monotonic()
    try:
        state, note = "ok", action()
    except Failed as error:
        state, note = "failed", str(error)
    return Outcome(state, note, round(time.monotonic() - begin, 1))


def blocked(name: str, outcomes: dict[str, Outcome]) -> Outcome | None:
    """The outcome of a part whose needs were not met."""
    missing = [need for need in NEEDS.get(name, ()) if outcomes[need].state != "ok"]
    return Outcome("skipped", f"{missing[0]} did not succeed", 0.0) if missing else None
