"""What lines say of candidates: parity of their own, times beside the owner, and the verdict by op."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from test_gpu_suite import _case, _line

from benchmarks.gpu import collect, docs, micro, parity, races, results, verified
from bertfast import _library
from bertfast.triton import verified as shipped


def _timed(case: str, ratio: float, date: str = "2026-01-02T00:00:00+00:00", **more) -> results.Line:
    about = {"op": "bias_gelu_fwd", "candidate": "linear_gelu.cheap_erf", "sources": "123", "owner_sources": "9"}
    return _line("candidates", case, True, date, peers={verified.OWNER: {"ratio": ratio}}) | about | more


def test_a_candidate_has_a_line_of_its_own():
    listing = "tests/ops/test_linear_gelu.py::test_a[triton]\ntests/ops/test_linear_gelu_cheap_erf.py::test_a[triton]\n"
    assert parity.expected(listing) == {"linear_gelu": 1, "linear_gelu.cheap_erf": 1}
    line = _line("parity", "linear_gelu.cheap_erf", True, op="linear_gelu.cheap_erf", sources="123")
    assert verified.table([line], ["linear_gelu.cheap_erf"])["90"]["linear_gelu.cheap_erf"]["3.6"]["sources"] == "123"
    cases = collect.all_cases()
    by_candidate = {(collect.candidate(case), case.op) for case in cases if collect.candidate(case) is not None}
    assert by_candidate == {(name, op) for name, ops in shipped.candidates().items() for op in ops}
    chosen = {(collect.candidate(case), case.op) for case in races.chosen(cases)}
    assert {(name, op) for name, op in chosen if name is not None} == by_candidate
    rows = [row for row in docs.candidates([line]).splitlines() if row.startswith("| linear_gelu.cheap_erf |")]
    assert rows[-1].endswith("| NVIDIA H200 | passed (2026-01-01, abc) | not timed |")
    assert "| passed (2026-01-01, abc) | bias_gelu_fwd 1.25x, loses 0 of 1 |" in docs.candidates(
        [line, _timed("a", 1.25)]
    )
    assert docs.candidates([]).splitlines()[-1].endswith("|  | never run |  |")


def test_an_absent_candidate_is_not_judged(monkeypatch):
    monkeypatch.setattr(_library, "absence_of", lambda name: "not built" if name.endswith("cutlass") else None)
    test = '<testcase classname="tests.ops.test_linear_gelu_{}" name="a" />'
    junit = f"<testsuite>{test.format('cutlass')}{test.format('gluon')}</testsuite>"
    counts = parity.expected("".join(f"tests/ops/test_linear_gelu_{name}.py::a\n" for name in ("cutlass", "gluon")))
    lines = {line["op"]: (line["ok"], line["error"]) for line in parity.lines_of(junit, 1, counts)}
    assert lines == {"linear_gelu.cutlass": (None, "not built"), "linear_gelu.gluon": (True, "")}
    case = next(case for case in collect.all_cases() if collect.candidate(case) == "linear_gelu.cutlass")
    for line in (
        micro.run_case(case, torch.device("cpu"), None, None, None),
        races.repeat_case(case, torch.device("cpu")),
    ):
        assert (line["ok"], line["error"]) == (None, "not built")


def test_gains_are_medians_by_op_of_lines_of_the_same_kernels():
    name = "linear_gelu.cheap_erf"
    passed = _line("parity", name, True, op=name, sources="123")
    lines = [
        passed,
        _timed("a", 0.5, "2026-01-01T00:00:00+00:00"),  # there is a later line of this case
        _timed("a", 1.5),
        _timed("b", 0.9),
        _timed("c", 1.25, stage="micro"),
        _timed("d", 9.0, sources="another"),
        _timed("e", 9.0, device="NVIDIA H100"),
        _timed("f", 9.0, triton="3.7.0"),
        _timed("g", 9.0, candidate="linear_gelu.another"),
        _timed("h", 9.0, ok=False),
        _timed("i", 9.0, peers={}),
        _timed("j", 9.0, "2026-01-01T00:00:00+00:00", owner_sources="8"),
        _timed("k", 0.8, op="bias_gelu_bwd"),
    ]
    entry = verified.table(lines, [name])["90"][name]["3.6"]
    assert entry["gains"] == {
        "bias_gelu_bwd": {"gain": 0.8, "cases": 1, "losing": {"k": 0.8}, "owner": "9"},
        "bias_gelu_fwd": {"gain": 1.25, "cases": 3, "losing": {"b": 0.9}, "owner": "9"},
    }
    assert "gains" not in verified.table([passed], [name])["90"][name]["3.6"]


def test_a_candidates_line_has_its_owner_and_both_digests():
    (case,) = [one for one in collect.all_cases("linear_bwd 128x2304 column sum") if collect.candidate(one)]
    bare = replace(case, peers={})
    assert list(micro.peers_of(bare)) == [verified.OWNER]
    assert micro.peers_of(case) == case.peers
    assert micro.peers_of(_case()) == {}
    about = micro.about(case, 90)
    assert about["candidate"] == "linear.ending_sums"
    assert about["sources"] == shipped.sources.here("linear.ending_sums", 90)
    assert about["owner_sources"] == shipped.sources.here("linear", 90)
    assert micro.about(_case(), 90)["sources"] == shipped.sources.here("packing", 90)
