"""The GPU suite without a GPU: turns, medians, result lines, what is judged, and the status that is written from them."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import collect, docs, kernels, measure, micro, parity, races, results, verified
from benchmarks.gpu import sources as sources_at
from benchmarks.gpu.case import Case, Ceilings
from bertfast.bench.protocol import Spread
from bertfast.triton import private
from bertfast.triton import verified as shipped


class FakeClock:
    """Each run takes the next of the seconds that a thunk gives."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def start(self, thunk):
        name, seconds = thunk()
        self.order.append(name)
        return seconds

    def seconds(self, token):
        return token


class Ticks:
    """A clock for real thunks, one millisecond each."""

    def start(self, thunk):
        thunk()

    def seconds(self, token):
        return 1e-3


def _case(op: str = "unpad", size: int = 4096, **more) -> Case:
    def make(device):
        return torch.randn(4, 3, device=device), torch.tensor([2, 0], device=device)

    return replace(Case(op, f"4x3 {size}", torch.float32, make, bytes=size), **more)


def _line(stage: str, case: str, ok: bool | None, date: str = "2026-01-01T00:00:00+00:00", **more) -> results.Line:
    shared = {
        "device": "NVIDIA H200",
        "arch": 90,
        "commit": "abc",
        "dirty": False,
        "date": date,
        "triton": "3.6.0",
        "code": "c",
    }
    return {"stage": stage, "case": case, "ok": ok, **shared, **more}


def test_turns_alternate_and_the_median_is_taken():
    clock = FakeClock()
    seconds = iter([9.0, 9.0, 1.0, 5.0, 2.0])
    found = measure.take_turns({"a": lambda: ("a", next(seconds)), "b": lambda: ("b", 4.0)}, clock, 0.0, 3, 3)
    assert clock.order == ["a", "a", "b", "b", *"ababab"]  # warm-up, then turns
    assert found["a"].p50 == 2.0
    assert found["b"] == Spread(4.0, 4.0, 4.0)


def test_a_failing_peer_does_not_stop_the_others():
    def fail():
        raise ValueError("no such backend")

    found = measure.take_turns({"bad": fail, "good": lambda: ("good", 1.0)}, FakeClock())
    assert found["bad"] == "ValueError: no such backend"
    assert found["good"].p50 == 1.0


def test_host_time_is_the_mean_of_the_calls_alone():
    times = iter([10.0, 12.0])
    calls: list[str] = []
    got = measure.host_seconds(lambda: calls.append("f"), lambda: calls.append("sync"), 4, lambda: next(times))
    assert got == 0.5
    assert calls == ["f", "sync", "f", "f", "f", "f", "sync"]


def test_a_case_becomes_a_line():
    reference = torch.ops.bertfast_reference.unpad
    peers = {"torch": lambda a: lambda: a[0].index_select(0, a[1]), "broken": lambda a: a.nothing}
    case = _case(run=reference, peers=peers, size=2_000_000)
    line = micro.run_case(case, torch.device("cpu"), Ticks(), Ceilings(4e9, 1e12, 1e12), lambda: None)
    assert line["ok"] is True
    assert (line["p50"], line["gbps"], line["share_of_ceiling"]) == (1e-3, 2.0, 0.5)
    assert line["peers"]["torch"]["ratio"] == 1.0
    assert "AttributeError" in line["peers"]["broken"]["error"]
    assert "host" in suite.summary(line)
    json.dumps(line)


def test_a_failing_case_is_a_line_too():
    def run(x, indices):
        raise RuntimeError("misaligned address")

    line = micro.run_case(_case(run=run), torch.device("cpu"), Ticks(), Ceilings(1e9, 1e9, 1e9), lambda: None)
    assert line["ok"] is False
    assert "misaligned address" in line["error"]


def test_error_against_float64_sees_a_wrong_number(monkeypatch):
    def wrong(x, indices):
        return x.index_select(0, indices) + 0.25

    case = _case()
    monkeypatch.setattr(collect, "function", lambda case: wrong)
    assert micro.error(case, case.make(torch.device("cpu"))) == pytest.approx(0.25, abs=1e-6)


def test_races_count_calls_that_differ():
    calls = iter(range(100))

    def unsteady(x, indices):
        return x + (1.0 if next(calls) == 3 else 0.0)

    assert races.different(_case(run=unsteady), torch.device("cpu"), 5) == 1
    assert races.different(_case(run=lambda x, i: x), torch.device("cpu"), 5) == 0
    line = races.repeat_case(_case(run=lambda x, i: x / torch.rand(())), torch.device("cpu"), 5)
    assert line["ok"] is False


def test_races_choose_the_smallest_and_the_median():
    sizes = [case.bytes for case in races.chosen([_case(size=s) for s in (9, 1, 5)] + [_case("repad", size=7)])]
    assert sizes == [1, 5, 7]


def test_lines_are_appended_and_the_last_counts(tmp_path):
    results.append(_line("micro", "a", True), tmp_path)
    results.append(_line("micro", "a", False, "2026-01-02T00:00:00+00:00"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia-h200.jsonl"]
    assert len(results.read(tmp_path)) == 2
    assert [one["ok"] for one in results.latest(results.read(tmp_path))] == [False]


def test_what_went_well_with_this_code_is_done():
    here = results.environment()
    lines = [
        _line("micro", "a", True, device=here["device"], code=here["code"]),
        _line("micro", "b", True, device=here["device"], code="other"),
        _line("micro", "c", False, device=here["device"], code=here["code"]),
        _line("races", "d", True, device=here["device"], code=here["code"]),
        _line("micro", "e", True, device="another", code=here["code"]),
    ]
    assert results.done("micro", lines) == {"a"}


def test_the_code_of_a_result_is_that_of_the_kernels(tmp_path):
    (tmp_path / "bertfast").mkdir()
    source = tmp_path / "bertfast" / "kernel.py"
    source.write_text("a")
    before = results.code(tmp_path)
    for name in results.WRITTEN:
        (tmp_path / "bertfast" / Path(name).name).write_text("{}")
    assert results.code(tmp_path) == before
    source.write_text("b")
    assert results.code(tmp_path) != before


def test_deadlines_pass():
    now = iter([0.0, 3.0, 11.0, 12.0])
    deadline = measure.Deadline(10, lambda: next(now))
    assert deadline.left == 7
    assert deadline.passed
    assert deadline.left == -2


def test_junit_becomes_one_line_an_op():
    report = """<testsuites><testsuite>
      <testcase classname="tests.ops.test_packing" name="a"/>
      <testcase classname="tests.ops.test_packing" name="b"><skipped/></testcase>
      <testcase classname="tests.ops.test_linear" name="c"><failure/></testcase>
      <testcase classname="tests.ops.test_isa" name="d"><skipped/></testcase></testsuite></testsuites>"""
    listing = "tests/ops/test_packing.py::a\ntests/ops/test_packing.py::b[x-1]\ntests/triton/test_rng.py::e\n\n2 tests collected"
    wanted = parity.expected(listing)
    assert wanted == Counter(packing=2, rng=1)
    assert parity.expected("tests/ops/test_tied_embedding.py::f") == Counter(embedding_sum_norm=1)
    found = {line["op"]: line for line in parity.lines_of(report, 7, wanted)}
    judged = {"packing": True, "linear": False, "isa": False, "rng": None}
    assert {op: line["ok"] for op, line in found.items()} == judged
    assert (found["packing"]["passed"], found["packing"]["skipped"], found["packing"]["seed"]) == (1, 1, 7)
    assert found["linear"]["error"] == "c"
    cut = {line["op"]: line for line in parity.lines_of(report, 7, Counter(packing=3, linear=3))}
    assert (cut["packing"]["ok"], cut["linear"]["ok"]) == (None, False)
    assert cut["packing"]["error"] == "2 of 3 tests ran before the time was up"


def _report(**tests: str) -> str:
    """JUnit of tests in tests/ops/test_packing.py: "" passed, else the message of the failure."""
    cases = [
        f'<testcase classname="tests.ops.test_packing" name="{name}">{f"<failure message={text!r}/>" if text else ""}</testcase>'
        for name, text in tests.items()
    ]
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def test_failed_tests_run_again_with_other_seeds(tmp_path):
    reports = iter([_report(test_a="", test_b="1e-3 over"), None, _report(test_a="2e-7 over")])
    asked = []

    def runner(nodes, seed, report, seconds, parallel):
        asked.append((tuple(nodes), seed))
        return next(reports)

    a, b = "tests/ops/test_packing.py::test_a", "tests/ops/test_packing.py::test_b"
    repeats = parity.repeat([a, b], tmp_path, runner)
    seeds = [seed for _, seed in asked]
    assert len(set(seeds)) == 3
    assert {nodes for nodes, _ in asked} == {(a, b)}
    assert [one["ok"] for one in repeats[a]] == [True, None, False]
    assert [one["ok"] for one in repeats[b]] == [False, None, None]
    assert [one["error"] for one in repeats[a]] == ["", "", "2e-7 over"]
    assert [one["seed"] for one in repeats[b]] == seeds
    assert parity.repeat([], tmp_path, runner) == {}
    first = _report(test_a="3e-7 over", test_b="", test_c="")
    (line,) = parity.lines_of(first, 7, Counter(packing=3), "", repeats)
    assert line["ok"] is False  # whatever the other seeds say
    assert line["failures"] == {"test_a": "3e-7 over"}
    assert line["repeats"] == {"test_a": repeats[a]}
    assert line["sources"] == shipped.sources.here("packing", results.environment()["arch"])


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (16, 15)])
def test_parity_leaves_one_core_to_feed_the_others(monkeypatch, cores, workers):
    monkeypatch.setattr(parity.os, "sched_getaffinity", lambda process: set(range(cores)))
    assert parity.workers() == workers


def test_what_is_refused_is_no_fused_product():
    files = ["tests/ops/test_products.py", "tests/ops/test_linear_gelu_fused.py"]
    command = [sys.executable, "-m", "pytest", *files, "-k", parity.TESTS, *parity.OPTIONS, "--collect-only"]
    listing = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True).stdout
    assert set(parity.expected(listing)) == {"linear_gelu_fused"}


def test_an_interrupted_pytest_still_reports(tmp_path):
    body = "import time\ndef test_a():\n    pass\ndef test_b():\n    open('began', 'w').close()\n    time.sleep(60)\n"
    (tmp_path / "test_slow.py").write_text(body)
    command = [
        sys.executable,
        "-c",
        parity.INTERRUPTIBLE,
        "-q",
        "-p",
        "no:cacheprovider",
        "--junitxml=r.xml",
        "test_slow.py",
    ]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]  # as a job in the background
    process = subprocess.Popen(ignoring, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (tmp_path / "began").exists():
        assert process.poll() is None
    parity._interrupt(process)
    assert 'name="test_a"' in (tmp_path / "r.xml").read_text()


def test_status_is_never_run_until_a_line_says_otherwise():
    lines = [
        _line("parity", "packing", True, op="packing"),
        _line("micro", "unpad x", True, op="unpad", share_of_ceiling=0.5),
        _line("micro", "unpad y", True, op="unpad", share_of_ceiling=0.9),
    ]
    text = docs.status(["unpad", "attention_fwd"], lines, {"unpad": "packing", "attention_fwd": "attention"}.get)
    assert "| unpad | NVIDIA H200 | verified (2026-01-01, abc) | 50 to 90 % |" in text
    assert "| attention_fwd |  | never run | not measured |" in text
    failed = docs.status(["unpad"], [_line("parity", "packing", False, op="packing")], lambda op: "packing")
    assert "FAILED" in failed


def test_notes_go_into_the_status():
    line = _line("parity", "packing", False, op="packing", error="test_a")
    review = {name: line[name] for name in ("op", "device", "date")} | {"failed": ["test_a"], "note": "rounding"}
    text = docs.status(["unpad"], [line], lambda op: "packing", [review])
    assert "verified, see the note (2026-01-01, abc)" in text
    text = docs.notes(verified.table([line], ["packing"], {}, [review]))
    assert "- packing on sm_90 with Triton 3.6: rounding." in text
    assert docs.notes({}) == ""


def test_only_the_last_passing_run_on_a_gpu_verifies():
    lines = [
        _line("parity", "packing", True, op="packing", sources="123"),
        _line("parity", "attention", True, op="attention", error=""),
        _line("parity", "attention", False, "2026-01-02T00:00:00+00:00", op="attention", error="test_a"),
        _line("parity", "linear", True, op="linear") | {"arch": 0},
        _line("parity", "rng", True, op="rng"),
        _line("parity", "packing", None, "2026-01-03T00:00:00+00:00", op="packing"),
        _line("parity", "attention", True, "2026-01-04T00:00:00+00:00", op="attention", only="bfloat16"),
    ]
    entry = {"date": "2026-01-01T00:00:00+00:00", "device": "NVIDIA H200", "commit": "abc", "sources": "123"}
    ops = ["packing", "attention", "linear"]
    assert verified.table(lines, ops) == {"90": {"packing": {"3.6": entry}}}
    later = _line("parity", "packing", False, "2026-01-05T00:00:00+00:00", op="packing", error="test_a")
    assert verified.table([*lines, later | {"triton": "3.7.1"}], ops) == {"90": {"packing": {"3.6": entry}}}
    assert verified.table([*lines, later], ops) == {}


def test_lines_without_digests_take_those_of_their_commit():
    line = _line("parity", "packing", True, op="packing")
    recorded = {"c": {"90": {"packing": "456"}}}
    assert verified.table([line], ["packing"], recorded)["90"]["packing"]["3.6"]["sources"] == "456"
    assert verified.table([line], ["packing"])["90"]["packing"]["3.6"]["sources"] == ""  # no package has that


def test_no_peer_takes_the_place_of_what_a_case_times():
    # The suite keeps what a case runs beside its peers, as "owner".
    assert [case.name for case in collect.all_cases() if "owner" in case.peers] == []


def test_a_review_answers_for_one_line_and_leaves_a_note():
    line = _line("parity", "packing", False, op="packing", sources="123", error="test_a; test_b")
    about = {name: line[name] for name in ("op", "device", "date")}
    review = about | {"failed": ["test_b", "test_a"], "note": "rounding"}
    (entry,) = verified.table([line], ["packing"], {}, [review])["90"]["packing"].values()
    assert (entry["note"], entry["sources"]) == ("rounding", "123")
    (entry,) = verified.table([line], ["packing"], {}, [review | {"sources": "789"}])["90"]["packing"].values()
    assert entry["sources"] == "789"
    later = line | {"date": "2026-01-02T00:00:00+00:00"}
    assert verified.table([line, later], ["packing"], {}, [review]) == {}
    with pytest.raises(ValueError, match="test_b"):
        verified.table([line], ["packing"], {}, [review | {"failed": ["test_a"]}])


def test_shipped_table_is_what_the_command_writes(tmp_path):
    verified.write(tmp_path / "verified.json")
    assert shipped.FILE.read_text() == (tmp_path / "verified.json").read_text(), (
        "run: python -m benchmarks.gpu verified"
    )
    assert not shipped.verified("no such op", 90)


def test_what_is_shipped_as_verified_is_what_passed():
    """A kernel that was changed since is not, and the gate sends it to torch's functions: `make gpu` verifies it again."""
    changed = [
        f"{op} on sm_{arch}"
        for arch, ops in shipped._table().items()
        for op, minors in ops.items()
        for entry in minors.values()
        if entry["sources"] != shipped.sources.here(op, int(arch))
    ]
    assert not changed, f"the kernels of {changed} changed since they passed: `make gpu`, or a review in reviewed.json"


def test_digests_at_a_commit_are_those_of_its_lines():
    recorded = json.loads(verified.SOURCES.read_text())
    for code in recorded:
        commits = {line["commit"] for line in results.read() if line["code"] == code}
        for commit in commits:
            try:
                assert sources_at.at(commit) == (code, recorded[code])
            except subprocess.CalledProcessError:
                pytest.skip(f"git does not have {commit} here")


def _row(**more) -> kernels.Row:
    good = {"registers": 32, "stack": 0, "shared": 0, "moved": 128, "wide": 1.0, "sass": {}}
    return kernels.Row("k", 90, {}, {}, 4, 2, cases=[_case().name], ops=["unpad"], resources=good | more)


@pytest.mark.parametrize(
    ("case", "row", "text"),
    [
        ({}, {"sass": {"LDL": 1}, "stack": 8}, "spills"),
        ({}, {"shared": 300_000}, "shared memory"),
        ({"dot": True}, {"sass": {"HMMA": 4}}, "no HGMMA or QGMMA"),
        ({"tma": True}, {}, "no bulk"),
        ({"dot": True}, {"sass": {"HGMMA": 16}, "waits": 16}, "wait for one another"),
        ({}, {"wide": 0.2}, "0.20 of its bytes"),
    ],
)
def test_what_a_case_asks_of_its_code(case, row, text):
    assert kernels.judge(_case(), 90, [_row()]) == []
    (wrong,) = kernels.judge(_case(**case), 90, [_row(**row)])
    assert text in wrong


def test_what_another_triton_compiles_worse_is_excused_there_alone(monkeypatch):
    row = replace(_row(sass={"LDL": 2}, stack=24), kernel="attention_bwd_dkv_kernel")
    narrow = _case("embedding_sum_norm_fwd", wide=0.45)
    narrow = replace(narrow, shape="1024x2048 p0.1")
    thin = replace(_row(wide=0.421), cases=[narrow.name])
    for minor, right in (("3.6", False), ("3.9", True), ("3.10", False)):
        monkeypatch.setattr(private, "minor", lambda minor=minor: minor)
        assert (kernels.judge(_case(), 90, [row]) == []) is right
        assert (kernels.judge(narrow, 90, [thin]) == []) is right
    monkeypatch.setattr(private, "minor", lambda: "3.9")
    assert kernels.judge(_case(), 90, [replace(row, resources=row.resources | {"stack": 32})]) != []
    assert kernels.judge(_case(), 90, [_row(sass={"LDL": 2}, stack=24)]) != []  # another kernel
    assert kernels.judge(narrow, 90, [replace(thin, resources=thin.resources | {"wide": 0.41})]) != []


def test_reasons_excuse_spills_and_nothing_launched_is_wrong():
    assert kernels.judge(_case(spills={("k", 90): "a reason"}), 90, [_row(sass={"STL": 1})]) == []
    assert kernels.judge(_case(spills={("k", 80): "a reason"}), 90, [_row(sass={"STL": 1})]) != []
    assert kernels.judge(_case(), 100, [_row()]) == ["launches nothing"]


def test_a_case_is_judged_where_its_kernels_are_for():
    case = _case(architectures=(90,))
    assert kernels.judge(case, 90, []) == ["launches nothing"]
    assert kernels.judge(case, 80, []) == kernels.judge(case, 100, []) == []
    rows, failures = kernels.record([replace(case, run=lambda *_: 1 / 0)], [80, 90])
    assert rows == []
    assert list(failures) == [(case.name, 90)]


def test_warpgroups_of_gluon_kernels_share_registers_by_their_needs():
    row = replace(_row(), launch=SimpleNamespace(is_gluon=True))
    row.resources["ptx"] = {"setmaxnreg": 10}
    assert kernels.judge(_case(), 90, [row]) == []
    row.resources["ptx"] = {}
    (wrong,) = kernels.judge(_case(), 90, [row])
    assert "share registers evenly" in wrong


def test_excuses_for_spills_are_needed():
    case = _case(spills={("k", 90): "a reason"})
    assert kernels.stale([case], [_row(sass={"LDL": 1})]) == []
    assert kernels.stale([case], []) == []  # not compiled for this architecture
    (text,) = kernels.stale([case], [_row()])
    assert "a reason" in text


def test_docs_name_every_op_of_the_cases():
    text = (results.ROOT / "docs" / "kernels.md").read_text()
    status = text.split("## Run on a GPU")[1].split("##")[0]
    named = dict.fromkeys(re.findall(r"^\| (\w+) \|", status, re.MULTILINE))
    assert [op for op in named if op != "op"] == docs.ops_of(collect.all_cases()), "run: make kernels"


def test_rendering_is_deterministic():
    lines = [_line("parity", "packing", True, op="packing")]
    first, again = (docs.render([_case()], [_row()], lines) for _ in range(2))
    assert first == again


def test_stages_need_a_gpu_and_a_known_name():
    with pytest.raises(SystemExit, match="no stage fast"):
        suite.main(["fast"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no GPU"):
            suite.main(["micro"])
