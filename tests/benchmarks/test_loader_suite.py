"""The loader's benchmark on little text: rows of both implementations, what the queue delivers, ratios, JSON, mistakes."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import delivery, loader
from benchmarks.gpu import loader as stage
from benchmarks.gpu.__main__ import summary
from bertfast import _ext
from bertfast.data.loader import PretrainLoader
from bertfast.data.pairs import PairOptions
from bertfast.data.plan import PretrainDataOptions

ENOUGH = delivery.Delivery(128, 16384, 1, "plain", 100, 1_500_000, 1.0, 2.0, 0.1)


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


def tensors(batch):
    kept = []
    batch.map(lambda tensor: kept.append(tensor) or tensor)
    return kept


def batches(workers=0):
    options = PretrainDataOptions(0, 256, PairOptions(32))
    return iter(PretrainLoader(loader.synthetic(60), loader.synthetic_vocabulary(), options, workers=workers))


def test_a_ring_holds_the_last_batches_each_in_one_buffer():
    ring, drawn = delivery.Ring(slots=2), list(islice(batches(), 5))
    assert ring.pinned is torch.cuda.is_available()
    before = None
    for batch in drawn:
        copy = ring.gather(batch)
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors(copy)}) == 1
        for kept, own in ((copy, batch), *([before] if before else [])):
            for a, b in zip(tensors(kept), tensors(own), strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
        assert (copy.real_tokens, copy.counts) == (batch.real_tokens, batch.counts)
        before = copy, batch


@pytest.mark.parametrize("workers", [0, 2])
def test_the_queue_delivers_what_the_loader_makes(monkeypatch, workers):
    expected = sum(batch.real_tokens for batch in islice(batches(), 8 * max(1, workers), 8 * max(1, workers) + 30))
    one = delivery.measure(loader.synthetic(60), loader.synthetic_vocabulary(), 32, 256, workers, batches=30)
    assert (one.tokens, one.batches, one.workers) == (expected, 30, workers)
    assert one.memory == ("pinned" if torch.cuda.is_available() else "plain")
    assert one.thread_seconds > 0
    assert one.processor_seconds > 0
    assert one.row()["tokens_per_second"] == one.tokens / one.seconds


def test_processor_time_of_workers_counts():
    source = batches(workers=1)
    next(source)
    before = delivery._processor_seconds()
    assert len(before) == 2
    for _ in islice(source, 400):
        pass
    after = delivery._processor_seconds()
    source.close()
    assert all(after[process] > before[process] for process in before), "a worker that made 400 batches took no time"


def test_enough_is_the_target_from_at_most_so_many_cores():
    assert ENOUGH.is_enough
    assert ENOUGH.cores == 2.0
    assert ENOUGH.cores_at_target == 1.6
    assert not replace(ENOUGH, seconds=2.0).is_enough, "750,000 tokens a second"
    assert not replace(ENOUGH, processor_seconds=6.0).is_enough, "4.8 cores at the target"


@pytest.mark.parametrize(("seconds", "status"), [(1.0, 0), (2.0, 1)])
def test_one_number_of_workers_must_be_enough(monkeypatch, tmp_path, seconds, status):
    monkeypatch.setattr(loader, "cases", lambda *_: [loader.Result("C++", 32, 256, False, 10**9, 1.0, 0.1, 0.1, 0.1)])
    slow = replace(ENOUGH, seconds=2.0)
    monkeypatch.setattr(
        delivery, "measure", lambda _c, _v, s, t, w: slow if w == 1 else replace(ENOUGH, seconds=seconds)
    )
    monkeypatch.setattr(delivery, "cases", lambda c, v, counts: [delivery.measure(c, v, 128, 16384, w) for w in counts])
    out = tmp_path / "out.json"
    result = invoke("--documents", "5", "--workers", "1", "--workers", "2", "--json", str(out))
    assert result.exit_code == status, result.output
    assert "at target" in result.output
    rows = json.loads(out.read_text())["delivered"]
    assert [row["tokens_per_second"] for row in rows] == [750_000, 1_500_000 / seconds]


def test_the_stage_has_a_line_for_each_length_and_number_of_workers(monkeypatch):
    monkeypatch.setattr(delivery, "CASES", ((32, 256),))
    monkeypatch.setattr(stage, "WORKERS", (1,))
    monkeypatch.setattr(stage, "DOCUMENTS", 60)
    monkeypatch.setattr(stage, "BATCHES", 5)
    monkeypatch.setattr(delivery, "TARGET", 1.0)
    lines = list(stage.run())
    assert [line["case"] for line in lines] == ["up to 32, 256 tokens, workers: 1"]
    assert lines[0]["ok"] is True
    assert "tokens/s into" in summary(lines[0])
    assert not list(stage.run("", frozenset(line["case"] for line in lines)))
    assert not list(stage.run("no such case"))


def test_the_stage_goes_on_past_a_failure(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no worker")

    monkeypatch.setattr(delivery, "measure", fail)
    monkeypatch.setattr(stage, "DOCUMENTS", 5)
    lines = list(stage.run())
    assert len(lines) == len(delivery.CASES) * len(stage.WORKERS)
    assert all(line["ok"] is False and "no worker" in line["error"] for line in lines)
