"""The programs in examples/ run, offline, and print what they show."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from bertfast.bench.cases import BenchError, minilm_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def minilm():
    try:
        return minilm_folder()
    except BenchError as error:
        pytest.skip(str(error))


def difference(output: str) -> float:
    return float(re.search(r"largest difference.*: (\S+)", output)[1])


def test_all_are_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        name.removeprefix("test_") for name in globals() if name.startswith("test_") and name != "test_all_are_here"
    }


def test_swap_in(run, minilm):
    output = run("swap_in")
    assert "9 of 9 modules of BertModel take the fast path" in output
    assert difference(output) < 1e-5


def test_sentence_vectors(run, minilm):
    output = run("sentence_vectors", "12")
    assert difference(output) < 1e-5
    assert "The harbour freezes in most winters." in output


def test_reranker(run, minilm):
    output = run("reranker")
    assert re.search(r"(\d+) of \1 modules of CrossEncoder take the fast path", output)
    assert difference(output) < 1e-5


def test_japanese_qa(run):
    for package in ("fugashi", "unidic_lite", "yaml"):
        pytest.importorskip(package)
    output = run("japanese_qa", "60")
    assert re.search(r"exact .*\b100\b", output)  # of texts that it has not seen
    assert output.splitlines()[-1] == "札幌"


def test_tiny_pretraining(run):
    pytest.importorskip("yaml")
    output = run("tiny_pretraining", "3")
    assert "done after 3 steps" in output
    assert "transformers loads it as BertForMaskedLM" in output
