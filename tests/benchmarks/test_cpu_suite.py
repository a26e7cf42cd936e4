"""The CPU suite on fake engines and a tiny model: turns, errors, targets, failing and missing peers, files, processes."""

import functools
import json
import os
import signal
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from typer.testing import CliRunner

import bertfast.bench.cases
from benchmarks.cpu import __main__ as suite
from benchmarks.cpu import plan, render, run, sides, training, worker
from bertfast.bench.cases import random_batch
from bertfast.bench.protocol import Spread

TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
VOCABULARY = 120


def _tiny():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(**TINY, vocab_size=VOCABULARY, attn_implementation="sdpa")).eval()


SECONDS = {"bertfast": 0.1, "stock": 0.3, "openvino": 0.2, "onnxruntime": 0.05, "int8": 0.05, "machine": 1e9,
           "stock compiled": 0.2, "bertfast compiled": 0.08, "training bertfast": 0.1, "training stock": 0.4}  # fmt: skip


class Fake:
    """A worker whose turns take the seconds of its side; BROKEN maps (side, request) to a reason."""

    BROKEN: ClassVar[dict[tuple[str, str], str]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []
    wrong: ClassVar[tuple[str, ...]] = ()

    def __init__(self, side, model, dtype, threads):
        self.side, self.threads = side, threads
        self._fail("load")

    def _fail(self, name):
        if (self.side, name) in Fake.BROKEN:
            raise worker.WorkerError(Fake.BROKEN[self.side, name])

    def __call__(self, name, *arguments):
        Fake.asked.append((self.side, name))
        self._fail(name)
        if name == "turn":
            return SECONDS[self.side] * (2 / self.threads if self.side == "bertfast" else 1)
        if name == "memory":
            return (100 if self.side.endswith("bertfast") else 300), 1000
        if name == "sentences":
            return np.array([[1.0, 0.0], [1.0, 0.0 if self.side == "exact" else 1.0]])
        if name == "outputs":
            error = 0.0 if self.side == "exact" else 0.1 if self.side in Fake.wrong else 0.01
            return [np.ones((3, 4)) + error, np.ones((2, 4))]
        return None

    def close(self):
        Fake.asked.append((self.side, "close"))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(run, "Worker", Fake)
    monkeypatch.setattr(run, "load_model", lambda name: _tiny())
    monkeypatch.setattr(Fake, "BROKEN", {})
    monkeypatch.setattr(Fake, "asked", [])
    monkeypatch.setattr(Fake, "wrong", ())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return Fake


def _inference(dtype="float32", rows=("1x16", "16x128"), turns=3, **options):
    results = run.Results()
    chosen = [row for row in plan.ROWS if row.name in rows]
    run.inference("bert-base", dtype, chosen, turns, results, lambda text: None, **options)
    return results


def _cli(tmp_path, *arguments):
    app = suite.typer.Typer()
    app.command()(suite.main)
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    return CliRunner().invoke(app, [*arguments, *files])


def test_ratios_are_the_others_time_over_ours(fake):
    first = _inference().inference[0]
    assert first.row == "1x16"
    assert first.sides["bertfast"].ratio.p50 == pytest.approx(1)
    assert first.sides["stock"].ratio.p50 == pytest.approx(3)
    assert first.sides["onnxruntime"].ratio.p50 == pytest.approx(0.5)
    assert first.share.p50 == pytest.approx(first.useful_flops / 0.1 / 1e9)


def test_int8_is_judged_by_real_sentences(fake):
    results = run.Results()
    run.inference("minilm", "bfloat16", [plan.ROWS[0]], 1, results, lambda text: None)
    found = results.sentences[0]
    assert (found.mean, found.worst) == (pytest.approx((1 + 0.5**0.5) / 2), pytest.approx(0.5**0.5))
    verdict = next(v for v in run.verdicts(results) if v.kind == "int8 mean cosine")
    assert not verdict.met
    assert "at worst" in render.sentence_lines(results)[0]
    assert not _inference("bfloat16").sentences  # only the checkpoint that was trained


def test_int8_is_compared_with_our_bfloat16(fake):
    results = _inference("bfloat16")
    assert results.inference[0].sides["int8"].ratio.p50 == pytest.approx(2)
    assert results.inference[0].sides["onnxruntime"].seconds is None
    assert results.problems == []


def test_sides_take_turns_in_rotating_order(fake):
    _inference(rows=("1x16",), turns=2)
    turns = [side for side, name in fake.asked if name == "turn"]
    names = ["bertfast", "stock", "openvino", "onnxruntime", "machine"]
    assert turns == [*names, *names, *names[1:], names[0]]


def test_errors_are_taken_against_the_exact_outputs(fake):
    side = _inference().inference[0].sides["openvino"]
    assert side.max_error == pytest.approx(0.01)
    assert side.rms_error == pytest.approx(0.01)
    assert side.cosine == pytest.approx(1)
    assert (side.memory, side.held) == (300, 1000)


@pytest.mark.parametrize("wrong", ["bertfast compiled", "bertfast"])
def test_ours_is_not_timed_where_it_is_wrong(fake, wrong):
    fake.wrong = (wrong, "openvino")
    results = _inference(compiled=True)
    measured = results.inference[0]
    assert measured.sides[wrong].seconds is None
    assert "root mean square error 1.0e-01, stock's 1.0e-02" in measured.sides[wrong].reason
    assert measured.sides["openvino"].seconds is not None  # others are shown, not judged
    assert any(wrong in problem for problem in results.problems)


def test_compiled_sides_where_they_are_asked_for(fake, tmp_path):
    assert not set(run.COMPILED) & set(_inference().inference[0].sides)
    measured = _inference(compiled=True).inference[0]
    assert [measured.sides[side].ratio.p50 for side in run.COMPILED] == pytest.approx([2, 0.8])
    done = _cli(tmp_path, "--brief", "--model", "minilm", "--compiled", "--no-training", "--no-threads")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert all(set(run.COMPILED) <= set(row["sides"]) for row in written["inference"])
    assert "bertfast compiled" in " ".join(render._peers(run.Results([measured])))
    assert (tmp_path / "out.png").exists()


def test_cosine_is_that_of_the_worst_vector():
    side = run.Side()
    exact = np.eye(2)
    run._errors(side, [np.array([[1.0, 0.0], [1.0, 1.0]])], [exact])
    assert side.cosine == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("request_", ["load", "batch", "turn", "memory", "outputs"])
def test_a_failing_peer_leaves_the_others_and_its_reason(fake, request_):
    fake.BROKEN = {("openvino", request_): "no such instruction"}
    results = _inference()
    assert len(results.inference) == 2
    for measured in results.inference:
        assert measured.sides["openvino"].reason == "no such instruction"
        assert measured.sides["stock"].ratio.p50 == pytest.approx(3)
    assert any("openvino: no such instruction" in problem for problem in results.problems)


def test_a_failing_reference_leaves_the_times(fake):
    fake.BROKEN = {("exact", "outputs"): "out of memory"}
    side = _inference().inference[0].sides["stock"]
    assert side.ratio is not None
    assert side.max_error is None


def test_our_own_failure_is_a_row_without_ratios(fake):
    fake.BROKEN = {("bertfast", "turn"): "broken"}
    measured = _inference().inference[0]
    assert measured.sides["bertfast"].reason == "broken"
    assert measured.sides["stock"].seconds.p50 == pytest.approx(0.3)
    assert measured.sides["stock"].ratio is None


def test_every_process_is_closed(fake):
    _inference()
    assert {side for side, name in fake.asked if name == "close"} == {
        "bertfast", "stock", "openvino", "onnxruntime", "machine", "exact",
    }  # fmt: skip


def test_training_and_threads_are_pairs(fake):
    results = run.Results()
    run.training("float32", list(plan.TRAINING_ROWS), 2, results, lambda text: None)
    run.threads("minilm", "float32", 2, results, lambda text: None)
    full, half, threads = results.pairs
    assert (full.row, half.row, threads.kind) == ("8x128", "8x128 half", "threads")
    assert full.ratio.p50 == pytest.approx(4)
    assert full.memory_ratio == pytest.approx(3)
    assert threads.ratio.p50 == pytest.approx(2)


def test_targets_by_row():
    assert plan.targets_of("speed", "openvino", "float32", "16x128 half") == 1.85
    assert plan.targets_of("speed", "stock", "bfloat16", "1x16") is None
    assert plan.targets_of("speed", "onnxruntime", "bfloat16", "16x128") is None
    known = {plan.SENTENCES, *(row.name for row in (*plan.ROWS, *plan.TRAINING_ROWS))}
    assert all(set(target.rows) <= known for target in plan.TARGETS)


@pytest.mark.parametrize(("ratio", "met"), [(1.84, False), (1.85, True), (2.5, True)])
def test_a_target_is_met_from_its_bound_on(ratio, met):
    measured = run.Measured("minilm", "float32", "16x128 half", 10, 0.5, 1.0)
    measured.sides["openvino"] = run.Side(ratio=Spread(ratio, ratio, ratio))
    results = run.Results([measured])
    (verdict,) = run.verdicts(results)
    assert verdict.met is met
    assert results.to_dict({})["targets"][0]["met"] is met
    assert len(render.target_lines(results)) == (1 if met else 2)


def test_useful_flops_counts_real_tokens_and_true_lengths():
    config = _tiny().config
    one, two = (plan.useful_flops(config, torch.tensor(lengths)) for lengths in ([5], [5, 5]))
    assert one == 2 * (2 * 5 * (4 * 64**2 + 2 * 64 * 128) + 4 * 25 * 64)
    assert two == 2 * one


def test_files_of_the_command(fake, tmp_path):
    done = _cli(tmp_path, "--brief", "--model", "minilm")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert {"torch", "processor", "threads", "commit", "peers", "turns"} <= set(written["environment"])
    assert [(m["dtype"], m["row"]) for m in written["inference"]] == [
        (dtype, row) for dtype in plan.DTYPES for row in plan.BRIEF
    ]
    assert {"seconds", "ratio", "memory", "held", "max_error", "rms_error", "cosine", "reason"} == set(
        written["inference"][0]["sides"]["stock"]
    )
    assert {p["kind"] for p in written["pairs"]} == {"training", "threads"}
    assert {t["met"] for t in written["targets"]} == {True, False}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "missed speed against onnxruntime, minilm fp32 1x16" in " ".join(done.output.split())


def test_an_interrupt_keeps_what_was_measured(fake, tmp_path, monkeypatch):
    rows = []

    def interrupted(model, dtype, chosen, turns, results, note, compiled):
        if rows:
            raise KeyboardInterrupt
        rows.append(dtype)
        measured = run.Measured(model, dtype, "1x16", 16, 0.0, 1.0)
        measured.sides = {"stock": run.Side(ratio=Spread(2.0, 3.0, 4.0)), "openvino": run.Side(reason="gone")}
        results.inference.append(measured)

    monkeypatch.setattr(run, "inference", interrupted)
    done = _cli(tmp_path)
    assert done.exit_code == 0, done.output
    assert "interrupted" in done.output
    assert "failed" in done.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["inference"]) == 1
    assert written["pairs"] == []


def test_an_unknown_row_is_named(tmp_path):
    done = _cli(tmp_path, "--row", "2x2")
    assert done.exit_code == 2
    assert "2x2" in done.output


@pytest.mark.parametrize("side", ["openvino", "onnxruntime"])
def test_a_missing_peer_says_how_to_get_it(side, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, side, None)
    with pytest.raises(sides.SideError, match="pip install"):
        sides.SIDES[side](_tiny(), "float32", tmp_path)


@pytest.mark.parametrize(
    ("side", "dtype", "bound"),
    [
        ("bertfast", "float32", 1e-5),
        ("bertfast", "bfloat16", 0.1),
        ("stock", "float32", 1e-5),
        ("stock compiled", "float32", 1e-5),
        ("bertfast compiled", "bfloat16", 0.1),
        ("openvino", "float32", 1e-4),
        ("onnxruntime", "float32", 1e-4),
    ],
)
def test_a_side_computes_the_model(side, dtype, bound, tmp_path, monkeypatch):
    # Code takes long to generate.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    if side in ("openvino", "onnxruntime"):
        pytest.importorskip(side, reason=f"{side} is not installed")
    if side == "onnxruntime":
        pytest.importorskip("onnx", reason="onnx is not installed")
    batch = random_batch(VOCABULARY, 3, 12, 0.4)
    exact = sides.exact(_tiny(), dtype, tmp_path)(batch)
    got = sides.SIDES[side](_tiny(), dtype, tmp_path)(batch)
    real = batch.attention_mask.bool().numpy()
    assert np.abs(np.asarray(got[0])[real] - exact[0][real]).max() < bound
    assert np.abs(np.asarray(got[1]) - exact[1]).max() < bound


@pytest.mark.parametrize("dtype", plan.DTYPES)
def test_the_matrix_rate_is_positive(dtype, monkeypatch):
    monkeypatch.setattr(sides, "_PRODUCT", (64, 32, 48))
    assert sides.matrix_rate(dtype)() > 0


@pytest.mark.parametrize("side", ["training stock", "training bertfast"])
def test_a_training_step(side, monkeypatch):
    monkeypatch.setitem(bertfast.bench.cases.PRESETS, "tiny", (64, 1, 2, 128))
    monkeypatch.setattr(worker, "PAUSE", 0.0)
    made = training.Training(side, "tiny", "bfloat16", torch.get_num_threads())
    batch = random_batch(30522, 4, 32, 0.5)
    made.batch(batch.input_ids.numpy(), batch.attention_mask.numpy())
    masked = made.inputs["labels"] != -100
    assert masked.any()
    assert not masked[~batch.attention_mask.bool()].any()
    assert made.turn(1) > 0
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_a_real_process_answers_fails_and_ends(tmp_path):
    _tiny().save_pretrained(tmp_path / "model")
    handler = signal.getsignal(signal.SIGINT)  # ignored in a job in the background
    process = worker.Worker("stock", str(tmp_path / "model"), "float32", 1)
    try:
        batch = random_batch(VOCABULARY, 2, 8, 0.0)
        process("batch", batch.input_ids.numpy(), batch.attention_mask.numpy())
        assert process("turn", 1) > 0
        assert [t.shape for t in process("outputs")] == [(16, 64), (2, 64)]
        with pytest.raises(worker.WorkerError, match="AttributeError"):
            process("nonsense")
        os.kill(process.process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches it too
        assert process("turn", 1) > 0
        assert signal.getsignal(signal.SIGINT) is handler
        process.process.kill()
        for _ in range(2):
            with pytest.raises(worker.WorkerError, match="exit code -9"):
                process("turn", 1)
    finally:
        process.close()


def test_a_process_that_cannot_load_says_why(tmp_path):
    with pytest.raises(worker.WorkerError, match="there is no folder"):
        worker.Worker("stock", str(tmp_path / "none"), "float32", 1)


def test_a_turn_takes_the_middle_of_its_calls(monkeypatch):
    monkeypatch.setattr(worker, "PAUSE", 0.0)
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    calls = []
    assert worker.timed_turn(lambda: calls.append(1), 3) == 3.0
    assert len(calls) == 4
    assert [worker.calls_for(s) for s in (0.001, 0.1, 2.0)] == [9, 2, 1]
