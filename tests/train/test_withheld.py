"""Steps that are read late, as on a GPU: updates from a bad one on are withheld, the error names it, and its batch is saved."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from toy import ToyTask, assert_same, batch_of, config, losses

from bertfast.train import loop
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.errors import NotFiniteError
from bertfast.train.loop import train
from bertfast.train.optim import Lamb, build_optimizer
from bertfast.train.run_folder import RunFolder
from bertfast.train.signals import Stop
from bertfast.train.step import Step
from bertfast.train.window import Window

pytestmark = pytest.mark.usefixtures("no_pictures")
ALONE = Ranks(0, 1, torch.device("cpu"))
BAD = 7  # of toy's batch 13, with two micro-batches a step


def trained(task, options, run, read_every):
    """A trainer after its run, and what ended that."""
    with Stop() as stop, RunFolder(run, options, False, ALONE) as folder:
        trainer = loop.Trainer(task, options, folder, False, ALONE, stop, None, read_every)
        try:
            trainer.fit()
        except NotFiniteError as error:
            return trainer, error
    return trainer, None


def state_of(trainer):
    states = {name: trainer.optimizer.state[p] for name, p in trainer.task.model.named_parameters()}
    moments = {f"{key}/{name}": value for name, each in states.items() for key, value in each.items()}
    return {name: p.detach() for name, p in trainer.task.model.named_parameters()} | moments


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("options", [{}, {"optimizer": "lamb"}, {"precision": "bf16"}, {"max_grad_norm": 0.0}], ids=str)
def test_updates_are_withheld_from_the_bad_step_on(tmp_path, options, gradient):
    chosen = config(steps=40, log_every=40, save_every=None, **options)
    task = ToyTask(poison=13, gradient=gradient)
    trainer, error = trained(task, chosen, tmp_path / "late", read_every=32)
    assert str(error).startswith(f"step {BAD}: ")
    assert ("word_loss is nan" in str(error)) != gradient
    assert "there is no checkpoint yet" in str(error)
    assert trainer.step == 32, "the steps after it were made, and did nothing"
    assert task.made.closed
    before, none = trained(ToyTask(), config(**vars(chosen) | {"stop_at": BAD - 1}), tmp_path / "before", read_every=1)
    assert none is None
    ours, theirs = state_of(trainer), state_of(before)
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("exp_avg_sq/") for key in ours)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    kept = load_file(tmp_path / f"late/bad-batch-step-{BAD}.safetensors")
    assert torch.equal(kept["1.input_ids"], batch_of(0, 13).input_ids)
    positions = json.loads((tmp_path / f"late/bad-batch-step-{BAD}.json").read_text())
    assert [each["position"] for each in positions] == [{"batch": 12}, {"batch": 13}]
    assert not list((tmp_path / "late").glob("bad-batch-step-8*"))


@pytest.mark.parametrize("options", [{}, {"optimizer": "lamb"}], ids=str)
def test_a_bad_first_step_changes_nothing(tmp_path, options):
    trainer, error = trained(ToyTask(poison=0), config(**options), tmp_path / "run", read_every=32)
    assert "step 1: " in str(error)
    untouched = dict(ToyTask().model.named_parameters())
    for name, parameter in trainer.task.model.named_parameters():
        assert torch.equal(parameter, untouched[name])
    for each in trainer.optimizer.state.values():
        assert not any(value.any() for value in each.values())


@pytest.mark.parametrize(
    ("options", "read_at"),
    [
        ({"log_every": 9}, 9),
        ({"eval_every": 8}, 8),
        ({"save_every": 10}, 10),
        ({"stop_at": 11}, 11),
        ({"save_minutes": 0}, BAD),
        ({}, 12),  # the last one
    ],
    ids=str,
)
def test_nothing_is_made_of_a_bad_step(tmp_path, monkeypatch, options, read_at):
    """Log lines, evaluations, checkpoints and the end read first."""
    made = []
    monkeypatch.setattr(loop.Trainer, "_log", lambda self, norm: made.append(self.step))
    monkeypatch.setattr(loop.Trainer, "_evaluate", lambda self: made.append(self.step))
    monkeypatch.setattr(loop.Trainer, "_save", lambda self: made.append(self.step))
    quiet = {"log_every": 99, "save_every": None}
    trainer, error = trained(ToyTask(poison=13), config(**quiet | options), tmp_path / "run", read_every=32)
    assert f"step {BAD}: " in str(error)
    assert trainer.step == read_at
    assert [step for step in made if step >= BAD] == []


def test_many_micro_batches_are_read_sooner(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "KEPT", 6)
    chosen = config(log_every=99, save_every=None, batches_per_step=3)
    trainer, error = trained(ToyTask(poison=10), chosen, tmp_path / "run", read_every=32)
    assert "step 4: " in str(error)
    assert trainer.step == 4
    assert len(trainer._unread) == 2


@pytest.mark.parametrize("options", [{}, {"optimizer": "lamb"}, {"batches_per_step": 3}], ids=str)
def test_reading_late_changes_no_bit(tmp_path, options):
    chosen = config(**options)
    train(ToyTask(), chosen, tmp_path / "at_once")
    train(ToyTask(), chosen, tmp_path / "late", read_every=32)
    assert_same(tmp_path / "at_once", tmp_path / "late")
    train(ToyTask(), config(stop_at=6, **options), tmp_path / "resumed", read_every=32)
    train(ToyTask(), chosen, tmp_path / "resumed", resume=True, read_every=5)
    assert_same(tmp_path / "at_once", tmp_path / "resumed")


def test_the_sums_of_a_window_leave_bad_steps_out():
    task = ToyTask(poison=2, dropout=0.0)
    window = Window(["pair", "word"], ALONE.device)
    step = Step(task, task.model, build_optimizer(config(), task.model), config(), ALONE, window, 1, number=40)
    sums = []
    for index in range(4):
        step.run([batch_of(0, index)], 1e-2, list)
        sums.append(window.sums.clone())
    assert torch.equal(sums[1], sums[3])
    assert not torch.equal(sums[0], sums[1])
    reading = step.read()
    assert reading.bad == 43
    assert math.isnan(reading.sums[1])
    assert reading.sums[5] == batch_of(0, 2).counts["word"]
    assert float(step.number) == 44


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_lamb_takes_a_rate_and_a_flag_on_the_device(dtype):
    def steps(lr, flag, bad=()):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(3, 4, dtype=dtype)), torch.nn.Parameter(torch.randn(5, dtype=dtype))]
        optimizer = Lamb([{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}], lr=lr)
        if flag is not None:
            optimizer.found_inf = flag
        for number in range(5):
            for weight in weights:
                weight.grad = torch.randn_like(weight) * (torch.nan if number in bad else 1.0)
            if flag is not None:
                flag.fill_(number in bad)
            if number < 3 or flag is not None:
                optimizer.step()
        return [*weights, *(v for p in weights for v in optimizer.state[p].values())]

    plain = steps(0.02, None)
    late = steps(torch.tensor(0.02, dtype=torch.float64), torch.zeros(()), bad=(3, 4))
    for one, other in zip(plain, late, strict=True):
        assert torch.equal(one, other)


def test_the_rate_of_a_log_line_is_the_schedules(tmp_path):
    chosen = TrainConfig(**vars(config()) | {"warmup_steps": 4, "log_every": 3})
    train(ToyTask(), chosen, tmp_path / "late", read_every=32)
    assert [line[-1] for line in losses(tmp_path / "late")] == pytest.approx([0.005, 0.00875, 0.005, 0.00125])
