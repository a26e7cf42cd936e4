"""What a run says: the journal, plain lines and the bar, rates, curves, event files."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toy import ToyTask

from bertfast.train import curves, journal, rates
from bertfast.train.config import TrainConfig
from bertfast.train.errors import DiskFullError
from bertfast.train.loop import train
from bertfast.train.progress import Progress

FIGURES = {
    "loss": 2.5,
    "mlm_accuracy": 0.25,
    "tokens_per_second": 12345.6,
    "mfu": 0.5,
    "learning_rate": 1e-4,
    "epoch": 1.0,
}


def test_journal_drops_what_is_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    assert journal.read(path) == []
    assert journal.trim(path, 3) == 0
    for step in range(1, 6):
        journal.append(path, {"event": "train", "step": step, "loss": float("nan") if step == 2 else 0.1 * step})
    with path.open("a") as file:
        file.write('{"event": "tr')
    assert len(journal.read(path)) == 5
    assert journal.trim(path, 3) == 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["loss"] for line in lines] == [0.1, None, 0.1 * 3]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named():
    with pytest.raises(DiskFullError, match="no space left"):
        journal.append(Path("/dev/full"), {"event": "train", "step": 1})


def test_plain_lines_without_a_terminal():
    console = Console(file=io.StringIO(), highlight=False, width=200)
    progress = Progress(2, 10, console=console)
    progress.start()
    progress.advance(5)
    progress.train(5, FIGURES)
    progress.evaluation(5, {"mlm_loss": 3.21})
    progress.stop()
    first, second = console.file.getvalue().splitlines()
    assert first.startswith("step 5/10 loss 2.500 mlm acc 25.0% 12,346 tok/s MFU 50% lr 1.0e-04 ETA 0:00:0")
    assert second == "step 5 eval mlm_loss 3.21"


def test_a_bar_on_a_terminal_and_silence_on_other_ranks():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    progress = Progress(0, 4, console=console)
    progress.start()
    progress.advance(3)
    progress.train(3, FIGURES)
    progress.say("a note")
    progress.stop()
    shown = console.file.getvalue()
    assert "3/4" in shown
    assert "MFU 50%" in shown
    assert "a note" in shown
    silent = Console(file=io.StringIO(), force_terminal=True)
    other = Progress(0, 4, visible=False, console=silent)
    other.start()
    other.train(1, FIGURES)
    other.stop()
    assert silent.file.getvalue() == ""


def test_rates():
    one, words = rates.peak(torch.device("cpu"), "fp32")
    assert 1e8 < one < 1e14
    assert words == f"{one / 1e12:.3g} TFLOP/s, the matrix rate measured here on {torch.get_num_threads()} thread(s)"
    assert rates.peak(torch.device("cpu"), "bf16").flops >= one


@pytest.mark.parametrize(("name", "precision", "flops"), [
    ("NVIDIA H100 80GB HBM3", "bf16", 989e12), ("NVIDIA H100 PCIe", "bf16", 756e12), ("NVIDIA A100-SXM4", "fp32", 19.5e12),
    ("NVIDIA L40S", "bf16", 362e12), ("NVIDIA L4", "bf16", 121e12), ("Some other GPU", "bf16", None),
])  # fmt: skip
def test_peaks_of_gpus_that_were_not_measured(monkeypatch, name, precision, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = rates.peak(torch.device("cuda", 0), precision)
    assert peak.flops == flops
    assert ("data sheet of" if flops else f"no matrix rate known for {name}") in peak.words


@pytest.mark.parametrize(("precision", "flops", "sheet"), [("bf16", 790e12, "989"), ("fp32", 50e12, "67")])
def test_a_measured_rate_comes_before_the_data_sheet(monkeypatch, precision, flops, sheet):
    line = {"bf16": 790e12, "fp32": 50e12, "date": "2026-01-02", "commit": "abc"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(rates, "_measured_gpus", lambda: {"NVIDIA H200": line})
    peak = rates.peak(torch.device("cuda", 0), precision)
    assert peak.flops == flops
    assert peak.words == (
        f"{flops / 1e12:.3g} TFLOP/s, {precision} products measured on NVIDIA H200 (2026-01-02, abc); "
        f"its data sheet says {sheet} TFLOP/s"
    )


def test_curves(tmp_path):
    lines = [{"event": "train", "step": s, "loss": 3.0 / s, "mlm_accuracy": s / 10} for s in range(1, 6)]
    lines += [{"event": "eval", "step": 5, "mlm_loss": 1.0, "mlm_accuracy": None}, {"event": "note", "step": 5}]
    curves.draw(lines, tmp_path / "curves.png", "pretrain")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    curves.draw([], tmp_path / "none.png", "pretrain")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figure = pytest.importorskip("matplotlib.figure")
    seen = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **_: (seen.append(self), path.touch()))
    return seen


def test_a_figure_has_one_colour_and_each_loss_an_axis_of_its_own(tmp_path, drawn):
    figures = {"mlm_loss": 7.0, "nsp_loss": 0.7, "mlm_accuracy": 0.1, "nsp_accuracy": 0.5}
    lines = [{"event": "train", "step": 1, "loss": 7.7, **figures}, {"event": "eval", "step": 1, **figures}]
    curves.draw(lines, tmp_path / "curves.png", "pretrain")
    mlm, nsp, scores = ([(line.get_label(), line.get_color()) for line in axes.lines] for axes in drawn[0].axes)
    blue, red, grey = mlm[0][1], nsp[0][1], nsp[2][1]
    assert len({blue, red, grey}) == 3
    assert mlm == [("MLM loss, training", blue), ("MLM loss, held out", blue)]
    assert [line.get_marker() for line in drawn[0].axes[0].lines] == ["o", "o"], "a single step is to be seen"
    assert nsp == [("NSP loss, training", red), ("NSP loss, held out", red), ("NSP loss by chance", grey)]
    assert [colour for _, colour in scores] == [blue, red, blue, red, grey]


def test_every_series_has_its_colour_and_percentages_an_axis_of_their_own(tmp_path, drawn):
    scores = {"accuracy": 0.8, "f1": 0.7, "macro_f1": 0.7, "matthews": 0.5}
    curves.draw([{"event": "train", "step": 1, "accuracy": 0.5}, {"event": "eval", "step": 1, **scores}],
                tmp_path / "a.png", "pair")  # fmt: skip
    curves.draw([{"event": "eval", "step": 1, "exact": 40.0, "f1": 50.0}], tmp_path / "b.png", "qa")
    (shares,), (percentages,) = (figure.axes for figure in drawn)
    assert [line.get_label() for line in shares.lines][:2] == ["accuracy, training", "accuracy, held out"]
    assert len({line.get_color() for line in shares.lines}) == len(shares.lines) - 1 == 4
    assert (shares.get_ylabel(), percentages.get_ylabel()) == ("score (1: all right)", "score (100: all right)")


def test_a_run_writes_all_of_it(tmp_path):
    pytest.importorskip("tensorboard")
    torch.manual_seed(0)

    class Counted(ToyTask):
        def train_flops(self, tokens, squared_lengths, targets):
            assert set(targets) == {"pair", "word"}
            assert squared_lengths == 6 * tokens
            return 1e6

    options = {"steps": 4, "log_every": 2, "eval_every": 2, "tensorboard": True, "device": "cpu"}
    train(Counted(), TrainConfig(**options), tmp_path / "run")
    kept = journal.read(tmp_path / "run/log.jsonl")
    assert [(line["event"], line["step"]) for line in kept] == [
        ("note", 2), ("train", 2), ("eval", 2), ("train", 4), ("eval", 4)
    ]  # fmt: skip
    denominator, *kept = kept
    assert denominator["text"] == f"MFU: of {rates.peak(torch.device('cpu'), 'fp32').words}"
    assert {"mfu", "tokens_per_second", "memory_gib", "grad_norm", "learning_rate", "epoch"} <= kept[0].keys()
    assert kept[0]["epoch"] == 0.2
    times = [line["seconds"] for line in kept]
    assert 0 < times[0] < 60
    assert times == sorted(times)
    assert kept[0]["mfu"] > 0
    assert (tmp_path / "run/curves.png").exists()
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_a_run_says_once_that_it_knows_no_matrix_rate(tmp_path, monkeypatch):
    class Counted(ToyTask):
        def train_flops(self, tokens, squared_lengths, targets):
            return 1e6

    monkeypatch.setattr(rates, "peak", lambda device, precision: rates.Peak(None, "no matrix rate known for X"))
    train(Counted(), TrainConfig(steps=2, log_every=1, device="cpu"), tmp_path)
    kept = journal.read(tmp_path / "log.jsonl")
    assert [line["text"] for line in kept if line["event"] == "note"] == ["no MFU: no matrix rate known for X"]
    assert not any("mfu" in line for line in kept)
