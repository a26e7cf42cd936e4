"""Two gloo ranks whose steps are captured, gradients added up between the graphs: the bits of DDP's; and three ranks' gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import reduce_worker
import torch
from reduce_worker import STEPS
from safetensors.torch import load_file
from small_corpus import write_corpus

from bertfast.train import journal

WORKER = Path(reduce_worker.__file__)


def launched(folder, ranks):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    roots = [str(WORKER.parents[2]), str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")]
    out = folder / "out"
    out.mkdir()
    done = subprocess.run(
        [*launch, str(WORKER), str(folder / "corpus"), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    write_corpus(folder / "corpus", documents=120)
    return launched(folder, 2)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return launched(tmp_path_factory.mktemp("three"), 3)


def lines(run, event):
    left_out = ("seconds", "tokens_per_second", "memory_gib", "mfu")
    found = [line for line in journal.read(run / "log.jsonl") if line["event"] == event]
    return [{key: value for key, value in line.items() if key not in left_out} for line in found]


@pytest.mark.parametrize(
    ("name", "other"), [("captured", "ddp"), ("captured_lamb_bf16", "ddp_lamb_bf16"), ("resumed", "captured")]
)
def test_captured_ranks_have_the_bits_of_ddp(two, name, other):
    """With dropout: each rank draws its own, in either case the same."""
    for kind in ("model", "optimizer", "rng"):
        ours, theirs = (
            load_file(two / run / f"checkpoints/step-{STEPS:08d}/{kind}.safetensors") for run in (name, other)
        )
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(ours[key], tensor), f"{kind}: {key}"
    assert lines(two / name, "train") == lines(two / other, "train") != []


def test_each_rank_captures(two):
    for rank in range(2):
        # Two micro-batches a step on each rank, and the update; the first step is eager.
        assert (two / f"captured-{rank}.txt").read_text() == f"3 {3 * (STEPS - 1)}"
        assert (two / f"ddp-{rank}.txt").read_text() == (two / f"fsdp-{rank}.txt").read_text() == "0 0"
    notes = {name: [line["text"] for line in lines(two / name, "note")] for name in ("captured", "ddp", "fsdp")}
    assert any("steps are captured in CUDA graphs: 3 graphs" in text for text in notes["captured"])
    assert "steps run eagerly: cuda_graphs is false" in notes["ddp"]
    assert "steps run eagerly: FSDP shards the weights" in notes["fsdp"]


@pytest.mark.parametrize("size", [1, 300, 2**20])
def test_gradients_are_those_of_ddp(two, three, size):
    for out, ranks in ((two, 2), (three, 3)):
        for rank in range(ranks):
            ours, theirs = (load_file(out / f"gradients-{name}-{rank}.safetensors") for name in (size, "ddp"))
            assert ours.keys() == theirs.keys()
            for key, gradient in theirs.items():
                if ranks == 2:
                    assert torch.equal(ours[key], gradient), key
                else:  # the order of a sum of three depends on where in a bucket it is
                    torch.testing.assert_close(ours[key], gradient, rtol=1e-6, atol=1e-8)


def test_a_gradient_on_some_ranks_alone_is_an_error(two):
    for rank in range(2):
        assert (two / f"said-{rank}").read_text() == "a parameter has a gradient on some ranks alone"
