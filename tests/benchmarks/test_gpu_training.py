"""The GPU suite's training stage, run on a CPU with a tiny model: its lines are whole, and people can read them."""

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import results, training
from benchmarks.pretraining import measure


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(measure.SIZES, "1x32", (32, 1, 2))
    monkeypatch.setattr(training, "ROWS", (measure.Row("1x32", 128, 512),))
    monkeypatch.setattr(training, "DOCUMENTS", 20)


def test_lines(monkeypatch):
    small = training.cases(torch.device("cpu"), steps=2, turns=1, size="1x32")
    monkeypatch.setattr(training, "cases", lambda device: small)
    lines = list(training.run())
    assert [line["ok"] for line in lines] == [True, True, True]
    assert {line["stage"] for line in lines} == {"training"}
    assert "of the band" in suite.summary(lines[0])
    assert "x stock (stock" in suite.summary(lines[2])
    again = training.run(done=frozenset(line["case"] for line in lines))
    assert list(again) == []


def test_a_failing_case_is_a_line(monkeypatch):
    def fail():
        raise RuntimeError("no memory")

    monkeypatch.setattr(training, "cases", lambda device: {"bad": fail})
    (line,) = training.run()
    assert (line["ok"], line["error"]) == (False, "RuntimeError: no memory")
    assert "no memory" in suite.summary(results.line("training", "bad", ok=False, error=line["error"]))
