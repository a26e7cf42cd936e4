"""Two gloo ranks under torchrun against one process: same curve, same bits after a resume, one checkpoint for any number."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks_worker
import torch
from safetensors.torch import load_file
from small_corpus import write_corpus

from bertfast.train import journal

pytestmark = pytest.mark.usefixtures("no_pictures")
WORKER = Path(ranks_worker.__file__)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with a corpus and all runs of ranks_worker, made in one launch because processes start slowly."""
    folder = tmp_path_factory.mktemp("ranks")
    write_corpus(folder / "corpus", documents=120)
    (folder / "runs").mkdir()
    ranks_worker.run(folder / "corpus", folder / "runs/half_alone", {"model.dropout": 0.0, "train.stop_at": 3})
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    roots = [str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*launch, str(WORKER), str(folder / "corpus"), str(folder / "runs")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("step 2/6") == len(ranks_worker.RUNS) - 1, "the main rank alone prints"
    return folder


def figures(run, event="train"):
    keys = {"train": ("step", "loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "grad_norm")}
    lines = [line for line in journal.read(run / "log.jsonl") if line["event"] == event]
    return [[line[key] for key in keys.get(event, ("step", "mlm_loss", "nsp_accuracy"))] for line in lines]


def state(run, step=ranks_worker.STEPS):
    folder = run / f"checkpoints/step-{step:08d}"
    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer", "rng")}


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    ranks_worker.run(runs / "corpus", run, {"model.dropout": 0.0})
    return run


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_follow_the_curve_of_one(runs, alone, name):
    two = runs / "runs" / name
    for event in ("train", "eval"):
        torch.testing.assert_close(
            torch.tensor(figures(two, event)), torch.tensor(figures(alone, event)), rtol=2e-5, atol=1e-6
        )
    assert len(figures(two)) == ranks_worker.STEPS / 2
    ours, theirs = state(two), state(alone)
    assert ours["model"].keys() == theirs["model"].keys()
    assert ours["optimizer"].keys() == theirs["optimizer"].keys()
    assert set(ours["rng"]) - set(theirs["rng"]) == {"torch.1", "python.1", "numpy.1"}
    for key, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][key], tensor, rtol=5e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["ddp_dropout", "fsdp_lamb"])
def test_resume_on_two_ranks_is_bit_exact(runs, name):
    straight, resumed = runs / "runs" / name, runs / "runs" / f"{name}_resumed"
    assert figures(straight) == figures(resumed)
    ours, theirs = state(straight), state(resumed)
    for kind, tensors in ours.items():
        assert tensors.keys() == theirs[kind].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, theirs[kind][key]), f"{kind}: {key}"


def test_a_run_is_resumed_by_another_number_of_ranks(runs, alone):
    half = runs / "runs" / "half"
    config = ranks_worker.config(runs / "corpus", half, **{"model.dropout": 0.0})
    from bertfast.train.pretrain import pretrain

    assert pretrain(config, resume=True).finished
    for run in (half, runs / "runs" / "half_alone"):
        torch.testing.assert_close(torch.tensor(figures(run)), torch.tensor(figures(alone)), rtol=2e-5, atol=1e-6)


def test_ranks_draw_dropout_of_their_own(runs):
    rng = state(runs / "runs" / "ddp_dropout")["rng"]
    assert not torch.equal(rng["torch.0"], rng["torch.1"])
