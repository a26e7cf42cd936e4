"""The GPU suite's training stage, run on a CPU with a tiny model: the real trainer beside a stock loop, a step each in turn."""

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import results, training
from benchmarks.pretraining import measure
from bertfast.train.loop import train


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(measure.SIZES, "1x32", (32, 1, 2))
    monkeypatch.setattr(training, "ROWS", (measure.Row("1x32", 128, 512),))
    monkeypatch.setattr(training, "DOCUMENTS", 20)
    monkeypatch.setattr(training, "WORKERS", 0)
    monkeypatch.setattr(training, "WARM_STEPS", 2)
    monkeypatch.setattr(training, "EAGER_TURNS", 1)


def test_lines(monkeypatch):
    small = training.cases(torch.device("cpu"), steps=2, turns=1, size="1x32")
    monkeypatch.setattr(training, "cases", lambda device: small)
    lines = list(training.run())
    assert [line["ok"] for line in lines] == [True, True, True]
    assert {line["stage"] for line in lines} == {"training"}
    assert "of the band" in suite.summary(lines[0])
    assert "x stock (stock" in suite.summary(lines[2])
    assert (lines[2]["path"], lines[2]["trainer"], lines[2]["train"]) == ("eager", "bertfast.train", True)
    assert lines[2]["ratio"]["p50"] > 0
    assert lines[2]["said"] == []
    assert set(lines[2]["tokens_per_second"]) == {"stock", "ours", "ours, eagerly"}
    assert 0 < lines[2]["padding"] < 1
    again = training.run(done=frozenset(line["case"] for line in lines))
    assert list(again) == []


def test_a_failing_case_is_a_line(monkeypatch):
    def fail():
        raise RuntimeError("no memory")

    monkeypatch.setattr(training, "cases", lambda device: {"bad": fail})
    (line,) = training.run()
    assert (line["ok"], line["error"]) == (False, "RuntimeError: no memory")
    assert "no memory" in suite.summary(results.line("training", "bad", ok=False, error=line["error"]))


CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", measure.DTYPES)
def test_the_trainer_follows_stock(dtype):
    line = training.curve(dtype, CPU, 8, "1x32", 256)
    assert line["ok"], {name: line[name] for name in ("loss_of_band", "weights_of_band")}
    assert len(line["ours"]) == len(line["stock"]) == 8
    assert line["loss_of_band"] > 0  # two implementations, not one twice


def test_a_wrong_update_leaves_the_band(monkeypatch):
    plain = training.InMemory.terms

    def skewed(self, model, batch):
        found = plain(self, model, batch)
        found["nsp"].mean = found["nsp"].mean * 1.5
        return found

    monkeypatch.setattr(training.InMemory, "terms", skewed)
    assert not training.curve(measure.FLOAT32, CPU, 8, "1x32", 256)["ok"]


def test_steps_alternate_and_only_the_trainers_own_time_counts(monkeypatch):
    order, now = [], [0.0]

    class Loader:
        state_dict = dict

        def __iter__(self):
            for number in range(9):
                now[0] += 1  # drawing a batch
                yield type("Batch", (), {"real_tokens": number})()

    def before(batch):
        order.append(f"stock {batch.real_tokens}")
        now[0] += 100

    loader = training.Alternating(Loader(), 2, before, lambda: None)
    assert loader.state_dict() == {}

    def trainer():
        for batch in loader:
            order.append(f"ours {batch.real_tokens}")
            now[0] += 10

    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    with pytest.raises(training.Enough):
        trainer()
    assert order == ["stock 0", "ours 0", "stock 1", "ours 1"]
    assert loader.seconds == [11.0, 11.0]
    assert loader.tokens == [0, 1]


def test_no_checkpoint_is_written(monkeypatch):
    from bertfast.train.loop import Trainer

    monkeypatch.setattr(Trainer, "_save", lambda self: pytest.fail("a checkpoint was written"))
    row = training.speed(training.ROWS[0], CPU, 2)
    assert row["ok"] is True


def test_the_path_of_captured_steps(monkeypatch):
    """On a tape: what counts replays of CUDA graphs counts those of the tape."""
    from stepping import stepping

    with stepping() as tape:
        replays = training.clocks.Replays
        monkeypatch.setattr(training.clocks, "Replays", lambda: replays(type(tape)))
        monkeypatch.setattr(type(tape), "replay", lambda self: None, raising=False)
        monkeypatch.setattr(training, "train", lambda *args, **options: train(*args, **options, read_every=4))
        counted = tape.capture

        def capture(function, pool=None):
            graph = counted(function, pool)
            replay = graph.replay

            def counting(function):
                tape.replay()
                replay(function)

            graph.replay = counting
            return graph

        monkeypatch.setattr(tape, "capture", capture)
        line = training.speed(training.ROWS[0], CPU, 2)
    assert line["path"] == "captured"
    assert line["said"] == ["steps are captured in CUDA graphs: 2 graphs, 0.0 GiB"]
