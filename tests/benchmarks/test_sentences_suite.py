"""The suite of sentence-transformers on fake backends and a tiny model: texts, turns, errors, targets, what is missing, files."""

import json
import sys
from typing import ClassVar

import numpy as np
import pytest
from sentence_models import save, texts
from typer.testing import CliRunner

from benchmarks.sentences import __main__ as suite
from benchmarks.sentences import inputs, render, run, worker
from bertfast.bench.cases import BenchError

SECONDS = {"bertfast": 1.0, "torch": 3.0, "onnx": 1.4, "openvino": 2.0}


class Fake:
    """A worker whose turns take the seconds of its backend; BROKEN maps (backend, request) to a reason."""

    BROKEN: ClassVar[dict[tuple[str, str], str]] = {}
    started: ClassVar[list[str]] = []

    def __init__(self, python, own):
        self.backend = ""
        self.process = self
        Fake.started.append(python)

    def poll(self):
        return None

    def close(self):
        pass

    def __call__(self, name, **arguments):
        self.backend = arguments.get("backend", self.backend)
        if (self.backend, name) in Fake.BROKEN:
            raise run.WorkerError(Fake.BROKEN[self.backend, name])
        if name == "vectors":
            error = {"exact": 0.0, "torch": 1e-7}.get(self.backend, 1.5e-7)
            np.save(arguments["path"], np.ones((3, 4)) + error)
        return {
            "load": {"torch": "2"},
            "padding": {"tokens": 80, "padding": 0.25},
            "turn": SECONDS.get(self.backend),
        }.get(name)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "Worker", Fake)
    monkeypatch.setattr(Fake, "BROKEN", {})
    monkeypatch.setattr(Fake, "started", [])
    monkeypatch.setattr(inputs, "checkpoints", lambda folder: {"encode": "a", "predict": "b"})
    return Fake


def called(tmp_path, *arguments):
    text = tmp_path / "text.txt"
    text.write_text("One sentence. Another one!\n = Title = \nA third. And a fourth, longer than all.\n")
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    from typer import Typer

    app = Typer()
    app.command()(suite.main)
    result = CliRunner().invoke(app, [str(text), *files, *arguments])
    written = json.loads((tmp_path / "out.json").read_text()) if (tmp_path / "out.json").exists() else {}
    return result, written


def test_rows_and_targets(fake, tmp_path):
    result, written = called(tmp_path, "--onnx-python", "theirs")
    assert result.exit_code == 0, result.output
    assert [(row["task"], row["dtype"]) for row in written["rows"]] == [
        ("encode", "float32"), ("encode", "bfloat16"), ("encode", "int8"), ("predict", "float32"), ("predict", "bfloat16"),
    ]  # fmt: skip
    row = written["rows"][0]
    assert row["inputs"] == 4
    assert (row["tokens"], row["padding"], row["parity"]) == (80, 0.25, True)
    assert row["sides"]["openvino"]["ratio"]["p50"] == 2.0
    assert written["rows"][2]["parity"] is None  # int8 has no budget
    met = {(t["dtype"], t["peer"]): t["met"] for t in written["targets"] if t["task"] == "encode"}
    assert met == {
        ("float32", "torch"): True, ("float32", "fastest"): False,
        ("bfloat16", "torch"): True, ("bfloat16", "fastest"): False,
    }  # fmt: skip
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert "MISSED" in result.output
    assert sorted(fake.started) == sorted(["theirs", *[sys.executable] * 4])  # one for each side, kept through all rows


def test_what_is_missing_is_said(fake, tmp_path):
    fake.BROKEN["onnx", "load"] = "no optimum"
    fake.BROKEN["openvino", "turn"] = "out of memory"
    result, written = called(tmp_path, "--dtype", "float32")
    assert result.exit_code == 0
    assert "onnx is missing: no optimum" in result.output
    sides = written["rows"][0]["sides"]
    assert sides["openvino"]["seconds"] is None
    assert sides["torch"]["ratio"]["p50"] == 3.0


def test_numbers_outside_the_budget_fail(fake, tmp_path, monkeypatch):
    row = run.Row("encode", "float32", "text", 4, sides={"bertfast": run.Side(), "torch": run.Side()})
    exact = np.ones((3, 4))
    run.errors(row.sides["torch"], exact + 1e-7, exact)
    run.errors(row.sides["bertfast"], exact + 3e-7, exact)
    assert run.parity(row, exact) is False
    monkeypatch.setattr(run, "parity", lambda row, exact: False)
    result, _ = called(tmp_path, "--dtype", "float32")
    assert result.exit_code == 1
    assert "NO" in result.output


def test_errors_of_the_command(fake, tmp_path):
    assert "there is no dtype" in called(tmp_path, "--dtype", "float8")[0].output
    with pytest.raises(BenchError, match="there is no file"):
        inputs.sentences(tmp_path / "absent.txt", 3)
    (tmp_path / "empty.txt").write_text("\n = Title = \n")
    with pytest.raises(BenchError, match="holds no sentences"):
        inputs.sentences(tmp_path / "empty.txt", 3)


def test_texts_of_each_kind_of_file(tmp_path):
    table = tmp_path / "a.tsv"
    table.write_text("".join(f"sentence {number} . It goes on .\t1\n" for number in range(10)))
    assert inputs.sentences(table, 2) == ["sentence 0 . It goes on .", "sentence 9 . It goes on ."]
    squad = tmp_path / "b.json"
    paragraph = {"context": "A first one. A second one.", "qas": [{"question": "Which one?"}, {"question": "Why?"}]}
    squad.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    assert inputs.sentences(squad, 9) == ["Which one?", "A first one.", "A second one.", "Why?"]
    assert inputs.pairs(squad, 9) == [(q["question"], paragraph["context"]) for q in paragraph["qas"]]
    assert inputs.pairs(table, 1) == [("sentence 0 . It goes on .", "sentence 1 . It goes on .")]


def test_the_worker_itself(tmp_path):
    """A process of each side on a tiny model: the same scores from ours, stock and float64; an error is an answer."""
    folder, file = save(tmp_path / "model", labels=1), tmp_path / "pairs.json"
    file.write_text(json.dumps(list(zip(texts(6, 9), texts(6, 9, seed=2), strict=True))))
    common = {"task": "predict", "dtype": "float32", "folder": folder, "exports": str(tmp_path), "threads": 1}
    sides = {}
    for backend in ("bertfast", "torch", "exact"):
        side = sides[backend] = worker.Worker()
        assert "sentence-transformers" in side.load(backend, **common)
        side.read(str(file))
        side.vectors(2, str(tmp_path / f"{backend}.npy"))
        assert side.turn() > 0
    ours, stock, exact = (np.load(tmp_path / f"{backend}.npy") for backend in sides)
    np.testing.assert_allclose(ours, exact, atol=1e-5)
    np.testing.assert_allclose(stock, exact, atol=1e-5)
    assert ours.shape == (3,)
    facts = sides["bertfast"].padding()
    assert facts["tokens"] > 6
    assert facts["padding"] >= 0
    with pytest.raises(ValueError, match="no bfloat16"):
        worker.Worker().load("onnx", **{**common, "dtype": "bfloat16"})


def test_tables_of_nothing():
    results = run.Results(problems=["interrupted"])
    assert results.failed
    assert render.notes(results) == ["interrupted"]
    assert render.speed_table(results).row_count == 0
