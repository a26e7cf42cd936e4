"""What stops a run of the toy: bad numbers, signals, a full disk, a kill, no memory. Nothing is lost but steps."""

import errno
import json
import os
import signal

import pytest
import torch
from faults import FAULTS, Fault
from safetensors.torch import load_file
from toy import ToyTask, assert_same, batch_of, config

from bertfast.train import journal
from bertfast.train.errors import (
    DiskFullError,
    NotFiniteError,
    OutOfMemoryError,
    StoppedError,
)
from bertfast.train.files import TEMPORARY, Files, check_folder
from bertfast.train.loop import train

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_not_finite_stops_before_the_update(tmp_path, straight):
    run = tmp_path / "run"
    task = ToyTask(poison=13)  # a batch of step 7
    with pytest.raises(NotFiniteError, match=r"step 7: .*word_loss is nan.*last checkpoint is of step 4") as caught:
        train(task, config(), run)
    assert caught.value.exit_status == 3
    assert task.made.closed, "workers of a loader that is left open keep the process from ending"
    assert '"batch": 13' in str(caught.value)
    assert all(torch.isfinite(p).all() for p in task.model.parameters())
    kept = load_file(run / "bad-batch-step-7.safetensors")
    assert torch.equal(kept["1.input_ids"], batch_of(0, 13).input_ids)
    positions = json.loads((run / "bad-batch-step-7.json").read_text())
    assert [each["position"] for each in positions] == [{"batch": 12}, {"batch": 13}]
    train(ToyTask(), config(), run, resume=True)  # the bad batch is gone
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


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path):
    with pytest.raises(NotFiniteError, match=r"step 1: the losses are finite .* but the gradient norm is (nan|inf)"):
        train(ToyTask(poison=1, gradient=True), config(), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("kind", ["kill", "full"])
def test_any_step_on_the_disk_may_fail(tmp_path, straight, kind):
    """Every sixth of the 56 steps of a whole run, checkpoints, retention and the final model: resumed to the same bits."""
    counted = Fault()
    train(ToyTask(), config(), tmp_path / "counted", files=counted)
    for at in range(1 if kind == "kill" else 4, counted.count + 1, 6):
        run = tmp_path / str(at)
        child = os.fork()
        if not child:
            try:
                train(ToyTask(), config(), run, files=Fault(at, FAULTS[kind]))
            except DiskFullError as error:
                os._exit(error.exit_status)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == {"kill": -signal.SIGKILL, "full": 4}[kind]
        assert not (run / "model").exists() or check_folder(run / "model") is None
        train(ToyTask(), config(), run, resume=True)
        assert_same(straight, run)
        assert check_folder(run / "model") is None
        assert not list(run.rglob(f"{TEMPORARY}*"))
