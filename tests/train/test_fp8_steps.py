"""Training with products in FP8: captured steps, resuming, several micro-batches, and settings that make no sense."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from stepping import stepping
from test_captured_steps import STEPS, assert_same, config_of, corpora, eager_of, log, run  # noqa: F401

from bertfast.nn import BertEncoder, device
from bertfast.train import fp8
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.errors import CheckpointError, ConfigError
from bertfast.train.loop import train
from bertfast.train.pretrain import PretrainTask
from bertfast.triton import verified

pytestmark = [pytest.mark.usefixtures("no_pictures"), pytest.mark.filterwarnings("ignore:precision fp8 on a CPU")]


def scales(folder, step=STEPS):
    return load_file(folder / f"checkpoints/step-{step:08d}/scales.safetensors")


def assert_same_scales(one, other, step=STEPS):
    a, b = scales(one, step), scales(other, step)
    assert a.keys() == b.keys() == {"0.scale", "0.amax", "0.history"}
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (a["0.history"][0] > 0).all()
    assert (a["0.amax"] == 0).all()


CASES = {
    "plain": {},
    "accumulation": {"batches_per_step": 3},
    "e4m3 gradients": {"fp8_gradients": "e4m3"},
    "all layers": {"fp8_last_layers": 0},
    "weight gradients in 16 bits": {"fp8_weight_gradients": False},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("name", CASES)
def test_captured_equals_eager(corpora, tmp_path, name):  # noqa: F811
    config = config_of(corpora, precision="fp8", **CASES[name])
    with stepping():
        run(tmp_path / "eager", eager_of(config))
    with stepping() as tape:
        run(tmp_path / "captured", config)
    assert tape.replays == (STEPS - 1) * (config.train.batches_per_step + 1)
    assert_same(tmp_path / "eager", tmp_path / "captured")
    assert_same_scales(tmp_path / "eager", tmp_path / "captured")


def test_it_is_not_bfloat16_and_near_it(corpora, tmp_path):  # noqa: F811
    losses = {}
    for precision in ("bf16", "fp8"):
        with stepping():
            run(tmp_path / precision, config_of(corpora, precision=precision, log_every=1))
        losses[precision] = torch.tensor([line["mlm_loss"] for line in log(tmp_path / precision, "train")])
    assert not torch.equal(losses["bf16"], losses["fp8"])
    torch.testing.assert_close(losses["fp8"], losses["bf16"], rtol=5e-2, atol=1e-2)


@pytest.mark.parametrize("stops", [[1], [2], [3, 5]], ids=str)
def test_resuming_gives_the_bits_of_one_run(corpora, tmp_path, stops):  # noqa: F811
    with stepping():
        run(tmp_path / "whole", config_of(corpora, precision="fp8", batches_per_step=2))
    for number, stop in enumerate([*stops, None]):
        with stepping():
            run(
                tmp_path / "run",
                config_of(corpora, precision="fp8", batches_per_step=2, stop_at=stop),
                resume=number > 0,
            )
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert_same_scales(tmp_path / "whole", tmp_path / "run")


def test_scales_of_another_model_are_an_error(corpora, tmp_path):  # noqa: F811
    config = config_of(corpora, precision="fp8", stop_at=2)
    with stepping():
        run(tmp_path / "run", config)
    kept = scales(tmp_path / "run", 2)
    model = PretrainTask(config).model
    fp8.Scales(model, config.train).restore(kept)
    with pytest.raises(CheckpointError, match=r"FP8 scales: scale must be \(1, 8\), found None"):
        fp8.Scales(model, config.train).restore({})
    every = fp8.Scales(model, dataclasses.replace(config.train, fp8_last_layers=0))
    with pytest.raises(CheckpointError, match=r"history must be \(16, 16\), found \(16, 8\)"):
        every.restore(kept | {name: torch.zeros(2, 8) for name in ("0.scale", "0.amax")})


def test_on_a_cpu_it_says_that_it_emulates(corpora, tmp_path):  # noqa: F811
    """Without any stand-in for a GPU; and nothing of that is left afterwards."""
    config = config_of(corpora, precision="fp8", steps=2)
    with pytest.warns(UserWarning, match="precision fp8 on a CPU emulates the numbers of a GPU"):
        train(PretrainTask(config), config.train, tmp_path / "run")
    assert set(scales(tmp_path / "run", 2)) == {"0.scale", "0.amax", "0.history"}
    assert "cpu" not in device.KINDS


REFUSED = {
    "fp8_last_layers is an option of precision fp8, and precision is bf16": {"precision": "bf16", "fp8_last_layers": 0},
    "fp8_gradients is an option of precision fp8": {"fp8_gradients": "e4m3"},
    "precision fp8 is in the kernels that gpu_kernels false": {"precision": "fp8", "gpu_kernels": False},
    "precision fp8 runs through kernels that torch.compile does not see": {"precision": "fp8", "compile": True},
}


@pytest.mark.parametrize("said", REFUSED)
def test_settings_that_make_no_sense(said):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(steps=1, **REFUSED[said])


def test_what_a_run_says_of_ops_that_are_not_verified(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: (9, 0))
    monkeypatch.setattr(verified, "gate", lambda arch: {"fp8_norm": "why", "packing": "why"})
    config, where = TrainConfig(steps=1, precision="fp8"), torch.device("cuda", 0)
    (note,) = fp8.notes(config, where)
    assert note.startswith("precision fp8: fp8_norm not verified on sm_90")
    assert fp8.notes(TrainConfig(steps=1, precision="bf16"), where) == []
    assert fp8.notes(config, torch.device("cpu")) == []
    monkeypatch.setattr(verified, "gate", lambda arch: {"packing": "why"})
    assert fp8.notes(config, where) == []


def test_models_that_cannot(corpora, tmp_path):  # noqa: F811
    for sizes, said in (
        ({"hidden": 24, "feed_forward": 32}, "24 columns"),
        ({"feed_forward": 40}, "40 columns"),
        ({"layers": 1}, "fp8_last_layers keeps the last 1 of 1 layers in bf16"),
    ):
        config = config_of(corpora, precision="fp8")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
        with pytest.raises(ConfigError, match=said):
            train(PretrainTask(config), config.train, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_layers_that_must_be_called_are_an_error(corpora, tmp_path):  # noqa: F811
    config = config_of(corpora, precision="fp8", cuda_graphs=False)
    task = PretrainTask(config)
    encoder = next(module for module in task.model.modules() if isinstance(module, BertEncoder))
    encoder.layer[0].register_forward_hook(lambda *_: None)
    with stepping(), pytest.raises(ConfigError, match="hooks, replaced modules"):
        train(task, config.train, tmp_path / "run")


def test_ranks_agree_on_what_they_met(corpora, tmp_path, monkeypatch):  # noqa: F811
    """What every rank takes into its scales is the largest of all: here of another that met twice as much."""
    config = config_of(corpora, precision="fp8", steps=1, max_grad_norm=0.0)
    with stepping():
        run(tmp_path / "alone", config)
    monkeypatch.setattr(Ranks, "largest", lambda self, tensor: tensor.mul_(2))
    with stepping():
        run(tmp_path / "two", config)
    for name in ("0.scale", "0.history"):
        assert torch.equal(scales(tmp_path / "two", 1)[name], 2 * scales(tmp_path / "alone", 1)[name])
