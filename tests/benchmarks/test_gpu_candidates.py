"""The stage candidates without a GPU: what is still to be run and in which order, how it goes on, and what it says at its end."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import candidates, collect, measure, micro, parity, results, verified, whole_steps
from bertfast.graphs import backend
from bertfast.nn import device
from bertfast.triton import sources
from bertfast.triton import verified as shipped

DEVICE, ARCH = candidates.ASSUMED
CHEAP, ENDING = "linear_gelu.cheap_erf", "linear.ending_sums"
NOW = "2027-01-01T00:00:00+00:00"


def line(stage, case, *, ok=True, **more):
    shared = {"device": DEVICE, "arch": ARCH, "commit": "abc", "dirty": False, "date": NOW, "code": "c"}
    return {"stage": stage, "case": case, "ok": ok, **shared, "triton": f"{shipped.triton_minor()}.0", **more}


def parity_line(op, **more):
    return line("parity", op, op=op, **({"sources": sources.here(op, ARCH)} | more))


def time_line(case, p50=1e-4, ratio=1.25, **more):
    what = micro.about(case, ARCH)
    peers = {verified.OWNER: {"p50": p50 * ratio, "ratio": ratio}} if "candidate" in what else {}
    return line(candidates.STAGE, case.name, **(what | {"p50": p50, "share_of_ceiling": 0.5, "peers": peers} | more))


def cases_of(name):
    return [case for case in collect.all_cases() if collect.candidate(case) == name]


def test_the_most_valuable_come_first_and_what_has_a_verdict_never():
    todo = candidates.plan(frozenset())
    places = [candidates.value(name) for name in todo.parity]
    assert places == sorted(places)
    assert set(todo.parity) == {*shipped.folders(), *shipped.candidates()}
    assert [candidates.value(candidates.kernels_of(case)) for case in todo.cases] == sorted(
        candidates.value(candidates.kernels_of(case)) for case in todo.cases
    )
    assert candidates.value("linear.gluon") < candidates.value("fp8_cast") < candidates.value("optimizer")
    assert candidates.value("optimizer") < candidates.value("linear.cutlass") < candidates.value(CHEAP)
    assert candidates.groups(["linear.gluon", "linear_gelu.gluon", "fp8_cast", CHEAP])
    assert list(candidates.groups(["linear.gluon", "linear_gelu.gluon", "fp8_cast", CHEAP])) == [
        ["linear.gluon", "linear_gelu.gluon"],
        ["fp8_cast"],
        [CHEAP],
    ]
    decided = candidates.plan(frozenset({CHEAP, todo.cases[0].name, todo.rows[0].name}))
    assert CHEAP not in decided.parity
    assert [case.name for case in decided.cases] == [case.name for case in todo.cases[1:]]
    assert decided.rows == todo.rows[1:]
    assert candidates.plan(frozenset(), CHEAP).parity == [CHEAP]


def test_a_verdict_is_of_this_device_and_these_sources():
    case = cases_of(CHEAP)[0]
    assert candidates.decided([parity_line(CHEAP), time_line(case)], DEVICE, ARCH) == {CHEAP, case.name}
    for other in (
        {"ok": False, "error": "test_a"},
        {"device": "NVIDIA H100"},
        {"sources": "another"},
        {"triton": "3.99.0"},
        {"only": "bfloat16"},
    ):
        assert CHEAP not in candidates.decided([parity_line(CHEAP) | other], DEVICE, ARCH)
    for other in ({"ok": False}, {"device": "NVIDIA H100"}, {"sources": "another"}, {"owner_sources": "another"}):
        assert case.name not in candidates.decided([time_line(case) | other], DEVICE, ARCH)


def test_lines_of_owners_from_before_lines_had_digests_count():
    case = next(case for case in collect.all_cases() if case.op == "unpad")
    old = line("micro", case.name, op=case.op, p50=1e-4)
    assert case.name in candidates.decided([old], DEVICE, ARCH)
    candidate = cases_of(CHEAP)[0]
    assert candidates.decided([line("micro", candidate.name, op=candidate.op, p50=1e-4)], DEVICE, ARCH) == frozenset()


def test_a_row_of_whole_steps_is_done_with_this_code_alone():
    here = results.environment()
    row = whole_steps.ROWS[0].name
    lines = [line(candidates.STAGE, row, sides={}) | {"device": here["device"], "code": here["code"]}]
    assert row in candidates.decided(lines, here["device"], ARCH)
    assert row not in candidates.decided([lines[0] | {"code": "another"}], here["device"], ARCH)


@pytest.fixture
def fake(monkeypatch):
    """Every part of the stage notes what it was asked to do; `fake.failing` are ops whose tests fail."""

    class Fake:
        def __init__(self):
            self.tested, self.timed, self.stepped, self.failing = [], [], [], set()

        def judged(self, files, seconds, only=""):
            self.tested.append(files)
            for op in Counter(parity.op_of(file.split("test_")[1].removesuffix(".py")) for file in files):
                yield parity_line(op, ok=op not in self.failing, error="test_a" * (op in self.failing))

        def run_case(self, case, device, clock, ceilings, synchronize, stage, budget):
            self.timed.append(case)
            return time_line(case)

        def run_row(self, stage, row, order, device, clock):
            self.stepped.append(row)
            sides = {whole_steps.OWNERS: {"p50": 1.0, "rate": 1.0}, whole_steps.FP8: {"error": "no such module"}}
            return line(stage, row.name, sides=sides, unit=row.unit)

    fake = Fake()
    monkeypatch.setattr(parity, "judged", fake.judged)
    monkeypatch.setattr(micro, "run_case", fake.run_case)
    monkeypatch.setattr(whole_steps, "run_row", fake.run_row)
    monkeypatch.setattr(measure, "CudaClock", lambda flush=True: None)
    monkeypatch.setattr(measure, "ceilings", lambda clock: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(results, "read", list)
    monkeypatch.setattr(results, "environment", lambda: {"device": DEVICE, "arch": ARCH, "code": "c"})
    return fake


def everything_but(*names):
    todo = candidates.plan(frozenset())
    kept = [case.name for case in todo.cases if candidates.kernels_of(case) not in names]
    return frozenset({*(name for name in todo.parity if name not in names), *kept})


def test_tests_first_then_times_then_whole_steps(fake, capsys):
    lines = list(candidates.run("", everything_but(CHEAP, ENDING)))
    assert fake.tested == [parity.files_of(ENDING) + parity.files_of(CHEAP)]
    assert {candidates.kernels_of(case) for case in fake.timed} == {CHEAP, ENDING}
    assert fake.stepped == list(whole_steps.ROWS)
    stages = [one["stage"] for one in lines]
    assert stages == ["parity"] * 2 + [candidates.STAGE] * (len(fake.timed) + len(fake.stepped))
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == " ".join(candidates.HEAD).split()
    rows = [text for text in said if text.startswith("bias_gelu_fwd")]
    assert len(rows) == sum(case.op == "bias_gelu_fwd" for case in cases_of(CHEAP))
    assert "50.0" in rows[0]  # the floor: half of 100 us
    assert "125.0" in rows[0]
    assert "50 %" in rows[0]
    assert "takes over (1.25x, loses 0 of " in rows[0]
    assert f"{whole_steps.ROWS[0].name}, fp8: no such module" in said
    assert said[-1].startswith(
        "targets missed: BERT-large training step, packed <= 512, 16,384 tokens, bf16: 1 of 245,000 tokens/s; "
    )
    assert "fp8: not measured, goal 320,000 tokens/s" in said[-1]


def test_what_fails_its_tests_is_not_timed(fake, capsys):
    fake.failing = {CHEAP}
    lines = list(candidates.run("", everything_but(CHEAP, ENDING)))
    assert {candidates.kernels_of(case) for case in fake.timed} == {ENDING}
    skipped = [one for one in lines if one["ok"] is None]
    assert {one["error"] for one in skipped} == {"its parity tests failed"}
    assert len(skipped) == len(cases_of(CHEAP))


def test_what_did_not_get_its_turn_is_left_for_the_next_run(fake, monkeypatch, capsys):
    monkeypatch.setattr(candidates, "PARITY_SECONDS", -1)
    monkeypatch.setattr(candidates, "STAGE_SECONDS", -1)
    monkeypatch.setattr(candidates, "CASES_SECONDS", 0)
    lines = list(candidates.run("", everything_but(CHEAP)))
    assert (fake.tested, fake.timed, fake.stepped) == ([], [], [])
    assert {one["ok"] for one in lines} == {None}
    assert all("run it again" in one["error"] for one in lines)
    assert candidates.decided(lines, DEVICE, ARCH) == frozenset()


def test_whole_steps_keep_their_time():
    whole = measure.Deadline(candidates.STAGE_SECONDS, lambda: 0.0)
    left = candidates.STAGE_SECONDS - candidates.PARITY_SECONDS - candidates.CASES_SECONDS
    assert left >= 100
    assert candidates.share(whole).seconds == candidates.STAGE_SECONDS - left
    assert candidates.share(measure.Deadline(0, lambda: 0.0)).seconds == 0


def test_verdicts():
    case = cases_of(CHEAP)[0]

    def words(*lines):
        (row,) = [row for row in candidates.table([*lines], DEVICE, ARCH) if row[0] == case.op]
        return row[-1]

    assert words(time_line(case)) == "parity has not passed"
    assert words(parity_line(CHEAP), time_line(case, ratio=1.5)) == "takes over (1.50x, loses 0 of 1)"
    assert words(parity_line(CHEAP), time_line(case, ratio=0.5)) == "stays out (0.50x, loses 1 of 1)"
    assert candidates.table([time_line(case, sources="another")], DEVICE, ARCH) == []


def test_reached_targets_are_no_news():
    sides = {whole_steps.CANDIDATES: {"rate": 1e9}, whole_steps.FP8: {"rate": 1e9}}
    lines = [line(candidates.STAGE, row.name, sides=sides) for row in whole_steps.ROWS]
    ((op, shape),) = candidates.CASE_TARGETS
    lines.append(line(candidates.STAGE, f"{op} {shape} bfloat16", p50=224e-6))
    assert candidates.missed(lines, DEVICE) == []
    lines[-1]["p50"] = 226e-6
    assert candidates.missed(lines, DEVICE) == [f"{op} {shape}: 226.0 of 225 us"]
    assert len(candidates.missed([], DEVICE)) == 2 * len(whole_steps.ROWS) + 1


def test_without_a_gpu_it_says_what_it_would_run(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no GPU is visible"):
        suite.main(["candidates"])
    said = capsys.readouterr().out
    assert f"parity of {CHEAP}: tests/ops/test_linear_gelu_cheap_erf.py" in said
    assert f"times of {ENDING}: {len(cases_of(ENDING))} cases" in said
    assert whole_steps.ROWS[0].name in said
    assert "parity of attention" not in said  # it has a verdict


def test_test_files_of_ops():
    assert parity.files_of(CHEAP) == ["tests/ops/test_linear_gelu_cheap_erf.py"]
    assert parity.files_of("masked_lm_loss") == ["tests/ops/test_masked_lm_loss.py", "tests/ops/test_masked_lm_head.py"]
    assert parity.files_of("nothing") == []


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("pretended", [True, False])
def test_whole_steps_run(train, pretended, triton_ops, monkeypatch):
    """On a CPU with a stand-in for graphs: what runs, not how fast. pretended: as on a GPU, by the kernels' interpreter."""
    if pretended and torch.cuda.is_available():
        pytest.skip("there is a GPU: kernels are compiled for it")
    monkeypatch.setitem(whole_steps.SIZES, "tiny", (64, 2, 2))
    monkeypatch.setattr(whole_steps, "VOCABULARY", 1200)
    row = replace(
        next(row for row in whole_steps.ROWS if row.train == train), name="tiny", model="tiny", lengths=(20, 12)
    )
    calls = []

    class Ticks:
        def start(self, thunk):
            thunk()
            calls.append(1)

        def seconds(self, token):
            return 1e-3

    with backend.installed(backend.StandIn()), device.on_cpu() if pretended else nullcontext():
        got = whole_steps.run_row("candidates", row, candidates.preferred(), torch.device("cpu"), Ticks(), 0.0)
    assert got["ok"], got["error"]
    assert list(got["sides"]) == [whole_steps.OWNERS, whole_steps.CANDIDATES, whole_steps.FP8]
    assert got["sides"][whole_steps.OWNERS]["rate"] == (32 if train else 2) / 1e-3
    if pretended:
        assert all("rate" in side for side in got["sides"].values())
    else:
        assert got["sides"][whole_steps.FP8] == {"error": "its products did not run in FP8"}
    assert len(calls) >= 2 * 7  # two rounds of warm-up and five turns, of two sides at least
    assert suite.summary(got)


def test_batches_of_whole_steps_are_full():
    for row in whole_steps.ROWS:
        tokens = sum(row.lengths)
        assert 16384 - 8 <= tokens <= 65536
        assert max(row.lengths) <= row.longest
    batch = whole_steps.batch_of(whole_steps.ROWS[0])
    assert batch.labels["masked_positions"].unique().numel() == batch.counts["mlm"]
    assert int(batch.cu_seqlens[-1]) == batch.real_tokens == batch.input_ids.numel()
