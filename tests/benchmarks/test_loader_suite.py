"""The loader's benchmark on little text: rows of both implementations, the ratio to the need, JSON, mistakes."""

import json

import typer
from typer.testing import CliRunner

from benchmarks import loader
from bertfast import _ext


def invoke(*arguments):
    app = typer.Typer()
    app.command()(loader.main)
    return CliRunner().invoke(app, arguments)


def test_rows_and_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_CASES", ((32, 256, True),))
    monkeypatch.setattr(loader, "NEED", 1.0)
    extension = _ext.load()
    result = invoke("--documents", "60", "--workers", "0", "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 0, result.output
    assert _ext.load() is extension, "the NumPy rows must leave the extension as it was"
    written = json.loads((tmp_path / "out.json").read_text())
    names = [row["implementation"] for row in written["results"]]
    assert names == (["NumPy"] if extension is None else ["C++", "NumPy"])
    for row in written["results"]:
        assert row["times_need"] == row["tokens_per_second"] > 0
        assert 0.5 < row["fill"] <= 1
        assert row["tokens"] > 256
    assert "times the need" in result.output


def test_too_slow_is_exit_status_1(monkeypatch):
    monkeypatch.setattr(loader, "NEED", 1e15)
    monkeypatch.setattr(loader, "cases", lambda *_: [loader.Result("C++", 32, 256, False, 1000, 1.0, 0.1, 0.1, 0.1)])
    assert invoke("--documents", "5", "--workers", "0").exit_code == 1


def test_a_folder_that_is_no_corpus_is_one_line(tmp_path):
    result = invoke("--corpus", str(tmp_path))
    assert result.exit_code == 2
    assert "no manifest.json" in result.output


def test_batches_come_out_of_workers(monkeypatch):
    monkeypatch.setattr(loader, "_CASES", ((32, 256, False),))
    assert loader.handed_out(loader.synthetic(30), loader.synthetic_vocabulary(), workers=1, batches=5) > 0
