"""`--device` of predict and fill-mask: the words and errors of training's, before anything is loaded."""

import pytest
import torch
from test_finetune import run

from bertfast.tasks import fill_mask, next_sentence, predict
from bertfast.tasks.device import DeviceError, choose
from bertfast.tasks.lines import DataError
from bertfast.train import distributed
from bertfast.train.errors import ConfigError

GPU, CPU = torch.device("cuda"), torch.device("cpu")
COMMANDS = {
    "predict": (predict.Fitted, "load", ("--text", "a film")),
    "fill-mask": (fill_mask, "load_masked_lm", ("a [MASK]",)),
    "next-sentence": (next_sentence, "load_next_sentence", ("a film", "it is good")),
}


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, {"auto": CPU, "cpu": CPU}), (1, {"auto": GPU, "cpu": CPU, "cuda": GPU})]
)
def test_what_is_chosen(monkeypatch, count, chosen):
    gpus(monkeypatch, count)
    assert {name: choose(name) for name in chosen} == chosen
    assert choose() == chosen["auto"]
    assert choose(torch.device("cuda", 3)) == torch.device("cuda", 3)


def test_training_says_the_same(monkeypatch):
    for name in ("cuda", "gpu"):
        gpus(monkeypatch, 0)
        with pytest.raises(DeviceError) as ours:
            choose(name)
        with pytest.raises(ConfigError) as trainings, distributed.join(name):
            pass
        assert str(trainings.value) == str(ours.value)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "--device is cuda, and torch sees no GPU; choose cpu, or install torch with CUDA"),
        ("gpu", "--device: device must be one of auto, cpu, cuda, got 'gpu'"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch, tmp_path, command, device, message):
    gpus(monkeypatch, 0)
    *_, more = COMMANDS[command]
    assert message in run(command, tmp_path / "no model", *more, "--device", device, status=2)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("count", "options", "device"),
    [(0, (), CPU), (1, (), GPU), (1, ("--device", "cpu"), CPU), (1, ("--device", "cuda"), GPU)],
)
def test_a_command_loads_onto_its_device(monkeypatch, tmp_path, command, count, options, device):
    gpus(monkeypatch, count)
    owner, name, more = COMMANDS[command]
    asked = []

    def load(folder, at, *task):
        asked.append((folder, at))
        raise DataError("asked")

    monkeypatch.setattr(owner, name, load)
    run(command, tmp_path, *more, *options, status=2)
    assert asked == [(tmp_path, device)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_gpu_without_memory(monkeypatch, tmp_path, command):
    gpus(monkeypatch, 1)
    owner, name, more = COMMANDS[command]

    def load(folder, at, *task):
        raise torch.OutOfMemoryError("Tried to allocate 20 MiB")

    monkeypatch.setattr(owner, name, load)
    said = run(command, tmp_path, *more, status=2)
    assert "cuda has no memory for this model: free some, or give --device cpu (Tried to allocate 20 MiB)" in said


@pytest.mark.parametrize("load", [predict.Fitted.load, fill_mask.load_masked_lm, next_sentence.load_next_sentence])
def test_functions_check_before_they_read(monkeypatch, tmp_path, load):
    gpus(monkeypatch, 0)
    with pytest.raises(DeviceError, match="torch sees no GPU"):
        load(tmp_path / "no model", "cuda")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "no model")
