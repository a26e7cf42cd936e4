"""The loop on a toy: normalisation, bit-exact resume, and the run's folder."""

import json

import pytest
import torch
from torch.nn import functional as F
from toy import ToyTask, assert_same, batch_of, config

from bertfast.train import journal, loop, settings
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.errors import (
    CheckpointError,
    ConfigError,
)
from bertfast.train.loop import train
from bertfast.train.optim import build_optimizer
from bertfast.train.run_folder import RunFolder
from bertfast.train.step import Step
from bertfast.train.window import Window
from bertfast.triton import verified

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_terms_are_normalised_over_the_whole_step():
    task = ToyTask(dropout=0.0)
    batches = [batch_of(0, i) for i in range(4)]
    counts = [batch.counts["word"] for batch in batches]
    assert len(set(counts)) > 1, "equal counts would hide a mean of means"
    ranks = Ranks(0, 1, torch.device("cpu"))
    step = Step(
        task,
        task.model,
        build_optimizer(config(), task.model),
        config(),
        ranks,
        Window(["pair", "word"], ranks.device),
        4,
    )
    step.prepare(batches, rate=0.0)
    step.first(batches[0])
    for batch in batches[1:]:
        step.further(batch)
    step.judge()
    sums = step.read().sums
    got = {name: p.grad.clone() for name, p in task.model.named_parameters()}
    task.model.zero_grad()
    ids = torch.cat([b.input_ids for b in batches])
    words, pair = task.model(ids)
    labels = torch.cat([b.labels["word"] for b in batches]).flatten()
    word_loss = F.cross_entropy(words.flatten(0, 1), labels, ignore_index=-100)
    pair_loss = F.cross_entropy(pair, torch.cat([b.labels["pair"] for b in batches]))
    (word_loss + pair_loss).backward()
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-5, atol=1e-7)
    assert sums[1] / sum(counts) == pytest.approx(word_loss.item(), rel=1e-6)
    assert sums[5] == sum(counts)
    assert step.read().bad == 0


@pytest.mark.parametrize("stops", [[4], [7], [1, 5, 11]])
def test_resume_is_bit_exact(tmp_path, straight, stops):
    for i, stop in enumerate([*stops, None]):
        outcome = train(ToyTask(), config(stop_at=stop), tmp_path / "run", resume=i > 0)
        assert outcome.finished == (stop is None)
    assert_same(straight, tmp_path / "run")


def test_evaluation_and_logging_change_nothing(tmp_path, straight):
    train(ToyTask(), config(eval_every=1, save_every=None, save_minutes=0), tmp_path / "run")
    assert_same(straight, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000011", "step-00000012"]


def test_a_finished_run_is_left_as_it_is(tmp_path, straight):
    before = (straight / "model/model.safetensors").read_bytes()
    assert train(ToyTask(), config(), straight, resume=True).finished
    assert (straight / "model/model.safetensors").read_bytes() == before
    assert json.loads((straight / "model/config.json").read_text()) == {"width": 8}


def test_the_folder_is_refused_or_resumed(tmp_path):
    run = tmp_path / "run"
    train(ToyTask(), config(stop_at=4), run)
    with pytest.raises(ConfigError, match="not empty; resume it with --resume"):
        train(ToyTask(), config(), run)
    with pytest.raises(ConfigError, match=r"other options.*learning_rate: 0\.01 -> 0\.02"):
        train(ToyTask(), config(learning_rate=0.02), run, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="this is a file"):
        train(ToyTask(), config(), tmp_path / "file")
    assert settings.resolve(TrainConfig, run / "config.yaml") == config()  # when to stop is not the run's
    for path in (run / "checkpoints").glob("*/state.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no complete checkpoint; step-00000004 was passed over: state\.json"):
        train(ToyTask(), config(), run, resume=True)


def test_a_folder_has_one_writer(tmp_path):
    ranks = Ranks(0, 1, torch.device("cpu"))
    with RunFolder(tmp_path / "run", config(), False, ranks):  # noqa: SIM117
        with pytest.raises(ConfigError, match="another process is training"):
            RunFolder(tmp_path / "run", config(), True, ranks)
    with RunFolder(tmp_path / "run", config(), True, ranks):
        pass


@pytest.mark.parametrize("options", [{"optimizer": "lamb"}, {"precision": "bf16"}, {"epochs": 2.4, "steps": None}])
def test_other_options_resume_bit_exactly_too(tmp_path, options):
    train(ToyTask(), config(**options), tmp_path / "a")
    train(ToyTask(), config(stop_at=6, **options), tmp_path / "b")
    train(ToyTask(), config(**options), tmp_path / "b", resume=True)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_step_must_share_out_evenly():
    with pytest.raises(ConfigError, match="3, which 2 ranks cannot share evenly; choose a multiple of 2"):
        config(batches_per_step=3).micro_batches(2)


def test_ops_that_run_torchs_functions_on_a_gpu_are_noted(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(verified, "_noticed", set())
    monkeypatch.setattr(verified, "_allowed", 0)
    for _ in range(2):  # in the log of every run
        (note,) = loop.kernel_notes(device)
        assert "attention" in note
        assert "sm_80" in note
    assert verified.notice(80) is None  # a warning beside it would say the same
    assert loop.kernel_notes(torch.device("cpu")) == []


def test_kernels_are_switched_off_for_one_run(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(verified, "_allowed", 0)
    monkeypatch.setattr(loop, "kernel_notes", lambda device: seen.append(verified.gate(90)) or [])
    train(ToyTask(), config(gpu_kernels=False), tmp_path / "a")
    train(ToyTask(), config(), tmp_path / "b")
    assert set(seen[0]) == set(verified.folders())
    assert "switched off" in seen[0]["attention"]
    assert "switched off" not in str(seen[1])


def test_other_threads_are_noted_when_resumed(tmp_path, monkeypatch):
    train(ToyTask(), config(stop_at=4), tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    train(ToyTask(), config(), tmp_path, resume=True)
    notes = [line["text"] for line in journal.read(tmp_path / "log.jsonl") if line["event"] == "note"]
    assert any("now has 77: results may differ in their last bits" in text for text in notes)


def test_a_mistake_leaves_no_folder(tmp_path, monkeypatch):
    def refused(config, ranks):
        raise ConfigError("not even")

    monkeypatch.setattr(loop.TrainConfig, "micro_batches", refused)
    with pytest.raises(ConfigError, match="not even"):
        train(ToyTask(), config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
