"""`make newest`: from pytest's reports to what is printed last and the exit status, and an index that is out of reach."""

import subprocess

import pytest

from matrix import junit, newest
from matrix.newest import Run, judge, unreachable

PASS = '<testcase classname="tests.convert.test_model" name="test_a[1]" time="1"/>'
FAIL = (
    '<testcase classname="tests.convert.test_model" name="test_b">'
    '<failure message="TypeError: cache_length&#10;more">...</failure></testcase>'
)
ERROR = (
    '<testcase classname="tests.convert.test_model" name="test_c"><error message="fixture fell">...</error></testcase>'
)
SKIP = '<testcase classname="tests.convert.test_model" name="test_d"><skipped message="no GPU"/></testcase>'
B = "tests.convert.test_model::test_b"


def run(tmp_path, version: str, *cases: str, status: int | None = None) -> Run:
    path = tmp_path / f"{version}.xml"
    path.write_text(
        f'<?xml version="1.0"?><testsuites><testsuite name="pytest">{"".join(cases)}</testsuite></testsuites>'
    )
    found = junit.read(path)
    failed = any(case.state == "failed" for case in found)
    return Run(version, int(failed) if status is None else status, found)


def test_all_passed(tmp_path):
    said, status = judge(run(tmp_path, "5.24.0", PASS, SKIP), None, strict=True)
    assert status == 0
    assert said == "transformers 5.24.0, the newest: 1 passed, 1 skipped in tests/convert"


def test_what_fails_on_the_newest_alone_is_loud(tmp_path):
    tried, pinned = run(tmp_path, "5.24.0", PASS, FAIL, ERROR), run(tmp_path, "5.23.0", ERROR)
    said, status = judge(tried, pinned, strict=False)
    assert status == 0, "CI goes on"
    assert judge(tried, pinned, strict=True) == (said, 1)
    first, *rest = said.splitlines()
    assert first == "1 tests fail on the pinned transformers too: tests.convert.test_model::test_c"
    assert "5.24.0, THE NEWEST, BREAKS 1 TESTS" in rest[1]
    assert rest[2] == "They fail on it and pass on 5.23.0, the pin:"
    assert f"  {B}: TypeError: cache_length" in rest
    assert rest[-1] == newest._LINE


def test_what_fails_on_both_is_no_news(tmp_path):
    said, status = judge(run(tmp_path, "5.24.0", PASS, FAIL), run(tmp_path, "5.23.0", FAIL), strict=True)
    assert status == 0
    assert "BREAKS" not in said


@pytest.mark.parametrize("cases", [None, []])
def test_a_run_that_dies_is_a_failure(tmp_path, cases):
    said, status = judge(Run("5.24.0", -11, cases), run(tmp_path, "5.23.0", PASS), strict=True)
    assert status == 1
    assert "the whole run: pytest ended with -11" in said


def test_an_index_out_of_reach(monkeypatch, capsys):
    monkeypatch.setattr(newest.sys, "argv", ["newest"])
    monkeypatch.setattr(newest, "install", lambda: "ERROR: Could not find a version that satisfies the requirement")
    assert newest.main() == 0
    assert "NOT TESTED on the newest transformers" in capsys.readouterr().out
    assert unreachable("why", strict=True)[1] == 1
    monkeypatch.setattr(newest.sys, "argv", ["newest", "--strict"])
    assert newest.main() == 1


def test_the_pin_is_the_newest(monkeypatch, capsys):
    monkeypatch.setattr(newest.sys, "argv", ["newest", "--strict"])
    monkeypatch.setattr(newest, "install", lambda: None)
    monkeypatch.setattr(newest, "version", lambda newest: "5.23.0")
    monkeypatch.setattr(newest, "run", lambda newest: pytest.fail("nothing is to be run"))
    assert newest.main() == 0
    assert "5.23.0: nothing more to test" in capsys.readouterr().out


def test_pip_says_why(monkeypatch, tmp_path):
    commands = []

    def pip(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(newest, "FOLDER", tmp_path / "newest")
    monkeypatch.setattr(newest.subprocess, "run", pip)
    assert newest.install() == "ERROR: No matching distribution"
    assert commands[0][-2:] == ["transformers>=5,<6", "numpy>=2,<2.4"]


def test_the_pin_runs_only_what_failed(monkeypatch, tmp_path):
    commands = []

    def pytest_run(command, **options):
        commands.append((command, options["env"]))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(newest, "FOLDER", tmp_path)
    monkeypatch.setattr(newest.subprocess, "run", pytest_run)
    monkeypatch.setattr(newest, "version", lambda newest: "5")
    assert newest.run(newest=True).failed() == {"the whole run": "pytest ended with 1 and wrote no report"}
    newest.run(newest=False)
    (first, with_newest), (second, pinned) = commands
    assert str(tmp_path / "site") in with_newest["PYTHONPATH"]
    assert str(tmp_path / "site") not in pinned.get("PYTHONPATH", "")
    assert "--last-failed" in second
    assert "--last-failed" not in first


def test_a_report_cut_short(tmp_path):
    (tmp_path / "cut.xml").write_text("<testsuites><testsuite>")
    with pytest.raises(ValueError, match="no JUnit report"):
        junit.read(tmp_path / "cut.xml")


def test_a_teardown_that_fails_counts(tmp_path):
    broken = PASS.replace("/>", '><error message="teardown"/></testcase>')
    cases = run(tmp_path, "5", PASS, broken).cases
    assert [(case.state, case.message) for case in cases] == [("failed", "teardown")]
