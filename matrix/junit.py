"""Reads what pytest writes with --junitxml."""

import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One test: its name "file::test[parameters]", "passed", "failed" or "skipped", the first line of why."""

    name: str
    state: str
    message: str = ""


def read(path: Path) -> list[Case]:
    """Every test of a report. Raises ValueError where it is none, such as one cut short."""
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f"{path} is no JUnit report: {error}") from error
    cases: dict[str, Case] = {}
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("::")
        state, message = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                state, message = "failed", (child.get("message") or child.text or "").strip().split("\n")[0]
            elif child.tag == "skipped" and state == "passed":
                state, message = "skipped", (child.get("message") or "").strip().split("\n")[0]
        # A test that passed and whose teardown failed stands twice.
        if name not in cases or state == "failed":
            cases[name] = Case(name, state, message[:200])
    return list(cases.values())


def counts(cases: list[Case]) -> str:
    """ "3 failed, 70 passed, 2 skipped"; states without a test are left out."""
    number = Counter(case.state for case in cases)
    return (
        ", ".join(f"{number[state]} {state}" for state in ("failed", "passed", "skipped") if number[state])
        or "no tests"
    )
