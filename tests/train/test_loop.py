"""The loop on a toy: normalisation, bit-exact resume, and everything that stops a run."""

import errno
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from toy import ToyTask, batch_of

from bertfast.train import journal, settings
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    NotFiniteError,
    OutOfMemoryError,
    StoppedError,
)
from bertfast.train.files import Files
from bertfast.train.loop import train
from bertfast.train.run_folder import RunFolder
from bertfast.train.step import gradients

OPTIONS = {"steps": 12, "batches_per_step": 2, "log_every": 5, "save_every": 4, "learning_rate": 1e-2, "device": "cpu"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("bertfast.train.curves.draw", lambda *_: None)


def config(**options):
    return TrainConfig(**OPTIONS | options)


def losses(run):
    keys = ("step", "loss", "word_loss", "pair_loss", "word_accuracy", "pair_accuracy", "grad_norm", "learning_rate")
    return [tuple(line[k] for k in keys) for line in journal.read(run / "log.jsonl") if line["event"] == "train"]


def assert_same(one, other, step=12):
    """Weights, optimizer state, random states and logged losses, bit for bit."""
    for name in ("model", "optimizer", "rng"):
        a, b = (load_file(run / f"checkpoints/step-{step:08d}/{name}.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key}"
    assert losses(one) == losses(other)
    assert len(losses(one)) == 3


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    outcome = train(ToyTask(), config(), run)
    assert outcome.finished
    assert "word_loss" in outcome.evaluation
    return run


def test_terms_are_normalised_over_the_whole_step():
    task = ToyTask(dropout=0.0)
    batches = [batch_of(0, i) for i in range(4)]
    counts = [batch.counts["word"] for batch in batches]
    assert len(set(counts)) > 1, "equal counts would hide a mean of means"
    found = gradients(task, task.model, batches, config(), Ranks(0, 1, torch.device("cpu")), lambda: [False])
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
    assert found.sums[1] / sum(counts) == pytest.approx(word_loss.item(), rel=1e-6)
    assert found.sums[5] == sum(counts)
    assert found.finite


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
    assert settings.resolve(TrainConfig, run / "config.yaml") == config(stop_at=4)
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


def test_not_finite_stops_before_the_update(tmp_path, straight):
    run = tmp_path / "run"
    task = ToyTask(poison=13)  # a batch of step 7
    with pytest.raises(NotFiniteError, match=r"step 7: .*word_loss is nan.*last checkpoint is of step 4") as caught:
        train(task, config(), run)
    assert caught.value.exit_status == 3
    assert '"batch": 13' in str(caught.value)
    assert all(torch.isfinite(p).all() for p in task.model.parameters())
    kept = load_file(run / "bad-batch-step-7.safetensors")
    assert torch.equal(kept["1.input_ids"], batch_of(0, 13).input_ids)
    positions = json.loads((run / "bad-batch-step-7.json").read_text())
    assert [each["position"] for each in positions] == [{"batch": 12}, {"batch": 13}]
    train(ToyTask(), config(), run, resume=True)  # mended
    assert_same(straight, run)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, straight, number, status):
    class Signalled(ToyTask):
        def terms(self, model, batch):
            if batch.position["batch"] == 10:  # in the middle of step 6
                os.kill(os.getpid(), number)
            return super().terms(model, batch)

    run = tmp_path / "run"
    with pytest.raises(StoppedError, match=r"after step 6 of 12; its checkpoint is saved") as caught:
        train(Signalled(), config(), run)
    assert caught.value.exit_status == status
    assert (run / "checkpoints/step-00000006").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handler is given back"
    train(ToyTask(), config(), run, resume=True)
    assert_same(straight, run)


def test_a_second_signal_ends_at_once(tmp_path):
    class Stubborn(ToyTask):
        def terms(self, model, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().terms(model, batch)

    child = os.fork()
    if not child:
        train(Stubborn(), config(), tmp_path / "run")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


class FullDisk(Files):
    """No space from the second checkpoint on."""

    def write_tensors(self, path, tensors):
        if "step-00000008" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write_tensors(path, tensors)


def test_a_full_disk_stops_and_keeps_the_last_checkpoint(tmp_path, straight):
    run = tmp_path / "run"
    with pytest.raises(DiskFullError, match="step-00000008: no space left"):
        train(ToyTask(), config(), run, files=FullDisk())
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    train(ToyTask(), config(), run, resume=True)
    assert_same(straight, run)


def test_killed_in_the_middle_loses_steps_alone(tmp_path, straight):
    class Deadly(Files):
        count = 0

        def sync(self, path):
            self.count += 1
            if self.count == 12:  # in the second checkpoint
                os.kill(os.getpid(), signal.SIGKILL)
            super().sync(path)

    run = tmp_path / "run"
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        train(ToyTask(), config(), run, files=Deadly())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with (run / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')
    train(ToyTask(), config(), run, resume=True)
    assert_same(straight, run)
    notes = [line["text"] for line in journal.read(run / "log.jsonl") if line["event"] == "note"]
    assert any("step-00000008, which a stopped run left half-written" in note for note in notes)
    assert any("2 log lines after step 4 were dropped" in note for note in notes)


def test_out_of_memory_says_what_would_fit(tmp_path):
    class Huge(ToyTask):
        def terms(self, model, batch):
            if batch.position["batch"] == 9:
                torch.empty(2**60)
            return super().terms(model, batch)

    with pytest.raises(
        OutOfMemoryError, match=r"step 5: out of memory on a micro-batch of 18 tokens.*about 9"
    ) as caught:
        train(Huge(), config(), tmp_path / "run")
    assert caught.value.exit_status == 5


@pytest.mark.parametrize("options", [{"optimizer": "lamb"}, {"precision": "bf16"}, {"epochs": 2.4, "steps": None}])
def test_other_options_resume_bit_exactly_too(tmp_path, options):
    train(ToyTask(), config(**options), tmp_path / "a")
    train(ToyTask(), config(stop_at=6, **options), tmp_path / "b")
    train(ToyTask(), config(**options), tmp_path / "b", resume=True)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_step_must_share_out_evenly():
    with pytest.raises(ConfigError, match="3, which 2 ranks cannot share evenly; choose a multiple of 2"):
        config(batches_per_step=3).micro_batches(2)
