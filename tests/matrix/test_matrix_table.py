"""The matrix's logic: cells as data, what pip is asked for, finding Pythons, outcomes, the table and its place in the docs."""

import json
import re
import subprocess
import sys
from datetime import date

import pytest

from matrix import cells, environment, interpreters, parts, table
from matrix.cells import Cell
from matrix.environment import ROOT, Environment, Failed
from matrix.parts import Outcome
from matrix.table import BEGIN, END, Result

CELL = Cell("small", "about", "3.11", {"torch": "2.13.0", "transformers": None, "numpy": "<2.4", "triton": "3.7.1"})


def outcomes(**states: str) -> dict[str, Outcome]:
    return {name: Outcome(states.get(name, "ok"), f"note of {name}", 1.0) for name in parts.NAMES}


def result(**states: str) -> Result:
    versions = {
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "transformers": "5.24.0",
        "numpy": "2.3.5",
        "triton": "3.7.1",
    }
    return Result(CELL, versions, outcomes(**states), commit="abc", date="2026-11-27")


def test_every_range_has_both_ends_in_a_cell():
    everything = cells.read()
    pythons = {cell.python for cell in everything}
    assert {"3.11", "3.12", "3.13"} <= pythons
    assert {cell.packages["torch"] for cell in everything} >= {"2.11.0", "2.13.0", None}
    assert {cell.packages["transformers"] for cell in everything} >= {"5.0.0", None}
    assert {cell.packages["triton"] for cell in everything} >= {"3.6.0", "3.7.1", None}
    oldest = next(cell for cell in everything if cell.name == "oldest")
    declared = (ROOT / "pyproject.toml").read_text()
    for name in ("torch", "numpy", "typer", "rich", "safetensors", "tokenizers", "transformers", "triton"):
        lower = re.search(rf'"{name}>=([\d.]+)', declared)
        assert lower is not None, name
        assert oldest.packages[name].startswith(lower[1]), (
            f"{name}: the cell `oldest` must try the lower end {lower[1]}"
        )
    assert f">={oldest.python}" in re.search(r'requires-python = "(.*)"', declared)[1]


def test_the_cell_of_the_pins_has_the_pins():
    words = (ROOT / "requirements-dev.txt").read_text().split() + (ROOT / "Makefile").read_text().split()
    pins = dict(word.split("==") for word in words if word.count("==") == 1)
    assert {"torch", "triton", "transformers"} <= pins.keys()
    cell = next(cell for cell in cells.read() if cell.name == "pins")
    for name, version in cell.packages.items():
        if name in pins and version is not None and version[0].isdigit():
            assert pins[name] == version, name


def test_requirements():
    assert CELL.requirements() == ["torch==2.13.0", "transformers", "numpy<2.4", "triton==3.7.1"]
    brought = Cell("a", "", "3.11", {"torch": None, "triton": None})
    assert brought.requirements() == ["torch"], "torch brings its own Triton"


def test_selection_names_what_there_is():
    everything = cells.read()
    assert cells.select(everything, []) == everything
    assert [cell.name for cell in cells.select(everything, ["oldest"])] == ["oldest"]
    with pytest.raises(ValueError, match=r"no cell oldesst; there are .*oldest"):
        cells.select(everything, ["oldesst"])


def test_two_cells_of_one_name(tmp_path):
    one = {"name": "a", "about": "", "python": "3.11", "packages": {}}
    (tmp_path / "cells.json").write_text(json.dumps({"always": {}, "cells": [one, one]}))
    with pytest.raises(ValueError, match="stands twice"):
        cells.read(tmp_path / "cells.json")


def test_pythons_are_found_by_version(monkeypatch, tmp_path):
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setenv("PYTHONS", f"/no/such/python {sys.executable}")
    assert interpreters.find(own) == sys.executable
    assert interpreters.find("3.99") is None
    monkeypatch.delenv("PYTHONS")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert interpreters.find(own) is None
    for version in (f"{own}.2", f"{own}.10"):
        (tmp_path / "versions" / version / "bin").mkdir(parents=True)
        (tmp_path / "versions" / version / "bin" / "python").symlink_to(sys.executable)
    assert f"{own}.10" in interpreters.find(own), "the newest patch release"


def test_a_command_that_fails_or_hangs(tmp_path):
    env = Environment(CELL, tmp_path)
    log = tmp_path / "log.txt"
    assert env.must([sys.executable, "-c", "print('said')"], tmp_path, log, 60) == "said\n"
    with pytest.raises(Failed, match="ERROR: why"):
        env.must([sys.executable, "-c", "print('ERROR: why'); raise SystemExit(3)"], tmp_path, log, 60)
    with pytest.raises(Failed, match="stopped after 1 seconds"):
        env.must([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, log, 1)
    assert "said" in log.read_text()


def test_the_cell_alone_decides_the_versions(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONSTRAINT", "/some/constraints.txt")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("BERTFAST_DISABLE_EXT", "1")
    variables = Environment(CELL, tmp_path).variables()
    assert variables["PIP_CONSTRAINT"] != "/some/constraints.txt"
    assert "PYTHONPATH" not in variables
    assert "BERTFAST_DISABLE_EXT" not in variables


def test_an_environment_is_installed_once(tmp_path, monkeypatch):
    env = Environment(CELL, tmp_path)
    commands = []

    def must(command, folder, log, seconds):
        commands.append(command)
        env.python.parent.mkdir(parents=True, exist_ok=True)
        env.python.touch()
        return ""

    monkeypatch.setattr(Environment, "must", lambda self, *arguments: must(*arguments))
    env.install("python3.11", tmp_path / "log", cache=False)
    packages, triton = commands[1:]
    assert "torch==2.13.0" in packages
    assert not [word for word in packages if word.startswith("triton")]
    assert triton[-2:] == ["--no-deps", "triton==3.7.1"], "the cell's Triton comes last, whatever torch wants"
    env.install("python3.11", tmp_path / "log", cache=False)
    assert len(commands) == 3
    Environment(Cell("small", "", "3.11", {"torch": None, "triton": "3.7.1"}), tmp_path).install(
        "p", tmp_path / "log", cache=True
    )
    assert len(commands) == 6, "other packages are another environment"
    stamp = json.loads((tmp_path / "installed.json").read_text())
    assert stamp["day"] == str(date.today()), "yesterday's newest may be old"
    (tmp_path / "installed.json").write_text(json.dumps(stamp | {"day": "2026-01-01"}))
    Environment(Cell("small", "", "3.11", {"torch": None, "triton": "3.7.1"}), tmp_path).install(
        "p", tmp_path / "log", cache=True
    )
    assert len(commands) == 9


def test_every_test_that_a_part_names_is_there():
    for arguments in parts.TESTS.values():
        files = [argument for argument in arguments if argument.endswith(".py")]
        assert files
        assert all((ROOT / file).is_file() for file in files), files


def test_copies_hold_no_build_of_the_checkout(tmp_path):
    env = Environment(CELL, tmp_path)
    env.copy_sources()
    assert (tmp_path / "source" / "bertfast" / "__init__.py").is_file()
    assert not (tmp_path / "tests" / "bertfast").exists(), "tests must meet the installed package"
    assert not list(tmp_path.rglob("*.so"))


def test_parts_need_what_comes_before():
    failed = outcomes(build="failed")
    assert parts.blocked("doctor", failed).state == "skipped"
    assert "build" in parts.blocked("doctor", failed).note
    assert parts.blocked("doctor", outcomes()) is None
    assert parts.blocked("install", {}) is None

    def fails() -> str:
        raise Failed("this is why")

    assert (parts.timed(fails).state, parts.timed(fails).note) == ("failed", "this is why")
    assert parts.timed(lambda: "3 passed").state == "ok"


@pytest.mark.parametrize(
    ("body", "state", "note"),
    [
        ("def test_a(): pass", "ok", "1 passed"),
        ("def test_a(): assert 1 == 2, 'two'", "failed", "1 failed; first: .*test_a.*two"),
        ("def test_b(): pass", "failed", "no tests"),
        ("import pytest\ndef test_a(): pytest.skip('none here')", "failed", "1 skipped"),
        ("import os\ndef test_a(): os.abort()", "failed", "pytest ended with -6"),
    ],
)
def test_a_part_of_tests(tmp_path, monkeypatch, body, state, note):
    env = Environment(CELL, tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_small.py").write_text(body)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    script = tmp_path / "venv" / "bin" / "pytest"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m pytest "$@"\n')
    script.chmod(0o755)
    monkeypatch.setitem(parts.TESTS, "parity", ["test_small.py", "-k", "test_a"])
    outcome = parts.timed(lambda: parts.RUN["parity"](env, tmp_path / "log.txt"))
    assert outcome.state == state
    assert re.search(note, outcome.note), outcome.note


def test_the_table_says_what_failed_and_why():
    lines = table.text([result(interpreter="failed"), Result(CELL, missing="no python3.11 here")]).splitlines()
    assert re.match(r"small +3\.11\.7 +2\.13\.0\+cpu +5\.24\.0 +2\.3\.5 +3\.7\.1 +ok", lines[1])
    assert "failed" in lines[1]
    assert "not run" in lines[2]
    assert lines[3:] == ["small, interpreter: failed: note of interpreter", "small: not run: no python3.11 here"]
    assert result().good
    assert Result(CELL, missing="no python").good
    assert not result(doctor="failed").good
    assert not result(doctor="skipped").good, "a part that was blocked is no success"


def test_results_survive_a_file():
    again = Result.from_dict(CELL, json.loads(json.dumps(result(build="failed").to_dict())))
    assert again == result(build="failed")


def test_the_table_goes_between_its_markers(tmp_path):
    document = tmp_path / "versions.md"
    document.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for _ in range(2):
        table.write([result(doctor="failed")], document)
        content = document.read_text()
        assert content.startswith(f"before\n\n{BEGIN}\n| cell | Python |")
        assert content.endswith(f"{END}\n\nafter\n")
        assert "old" not in content
        assert "- small, doctor: failed: note of doctor" in content
        assert "2026-11-27 on commit abc" in content
    document.write_text("no markers")
    with pytest.raises(ValueError, match="must stand there once"):
        table.write([], document)
    assert document.read_text() == "no markers"


def test_the_document_has_the_markers():
    content = (ROOT / "docs" / "versions.md").read_text()
    assert content.count(BEGIN) == content.count(END) == 1


def test_a_cell_whose_python_is_missing_is_said_and_fails_nothing(tmp_path):
    document = tmp_path / "versions.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    arguments = ["--cell", "python-3.14", "--folder", str(tmp_path / "run"), "--document", str(document)]
    if interpreters.find("3.14") is not None:
        pytest.skip("there is a Python 3.14 here, and the cell would be run")
    done = subprocess.run([sys.executable, "-m", "matrix", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[python-3.14] not run: no python3.14 here" in done.stdout
    assert "no python3.14 here" in document.read_text()
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content[0]["not_run"].startswith("no python3.14 here")


def test_an_unknown_cell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "matrix", "--cell", "x", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no cell x; there are pins" in done.stderr


def test_last_words():
    assert environment.last_words("WARNING: x\nfine\nERROR: no such version\n") == "ERROR: no such version"
    assert environment.last_words("") == "said nothing"
