"""DDP, FSDP2 and accelerate on two ranks: an optimised model comes to what stock comes to, and its layers are fast."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import bertfast
from bertfast.convert.families import FAMILIES

pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")
fsdp_utils = pytest.importorskip("accelerate.utils.fsdp_utils")
UNPADDED = "fast, padding removed"
WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """By rank and way, what the stock model and the optimised one came to."""
    folder = tmp_path_factory.mktemp("distributed")
    roots = [str(Path(bertfast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "returned a view tensor" not in done.stderr, "FSDP2 warns of layers that return a view"
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def assert_equal(ranks, way, tolerance=1e-4):
    """Losses, gradients, parameters, and what either lacks, on both ranks; gradients are one for both ranks."""
    for rank in ranks:
        stock, fast = rank[way]
        torch.testing.assert_close(fast["losses"], stock["losses"], rtol=tolerance, atol=tolerance)
        for kind in ("gradients", "parameters"):
            assert fast[kind].keys() == stock[kind].keys()
            whole = max(float(value.abs().max()) for value in stock[kind].values())
            for name, value in stock[kind].items():
                error = float((fast[kind][name] - value).abs().max())
                assert error <= tolerance * max(float(value.abs().max()), 0.01 * whole), (way, kind, name)
        assert fast["outcomes"] == [UNPADDED], way
    first, second = (rank[way][1]["gradients"] for rank in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert ranks[0][way][1]["losses"] != ranks[1][way][1]["losses"], "each has batches of its own"


@pytest.mark.tool("torch.distributed", "DistributedDataParallel", "fast")
@pytest.mark.parametrize("way", ["ddp", "ddp_static", "ddp_find", "ddp_lora"])
def test_data_parallel(ranks, way):
    assert_equal(ranks, way)


@pytest.mark.tool("torch.distributed", "DistributedDataParallel with find_unused_parameters", "fast")
def test_unused_parameters_are_those_of_stock(ranks):
    for rank in ranks:
        stock, fast = (re.findall(r"Parameter indices .*", each["error"]) for each in rank["unused"])
        assert stock
        assert fast == stock
        stock, fast = rank["unused_found"]
        assert not any("pooler" in name and value.any() for name, value in fast["gradients"].items())
        assert fast["gradients"].keys() == stock["gradients"].keys()
        for name, value in stock["gradients"].items():
            torch.testing.assert_close(fast["gradients"][name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.tool("torch.distributed", "FSDP2: optimize before fully_shard", "fast")
@pytest.mark.parametrize("way", ["fsdp", "fsdp_whole", "fsdp_checkpointing", "fsdp_lora"])
def test_fully_sharded(ranks, way):
    assert_equal(ranks, way)
    for rank in ranks:
        stock, fast = (each["inference"] for each in rank[way])
        torch.testing.assert_close(fast, stock, rtol=1e-3, atol=1e-5)
        assert not torch.equal(*fast), "training showed"


def test_fully_sharded_in_bfloat16(ranks):
    """Gathered parameters are bfloat16, whatever the pieces are."""
    assert_equal(ranks, "fsdp_bfloat16", tolerance=0.1)


@pytest.mark.tool("torch.distributed", "FSDP2: optimize or restore after fully_shard", "refused")
def test_too_late(ranks):
    for rank in ranks:
        optimize, restore = rank["fsdp"][1]["refused"]
        assert "is a DTensor already: call bertfast.optimize before fully_shard" in optimize
        assert "FSDPBertForSequenceClassification was sharded after bertfast.optimize" in restore
        assert "call bertfast.restore before fully_shard" in restore


@pytest.mark.tool("accelerate", "FSDP2 by accelerate and Trainer, which find layers by the name of their class", "fast")
def test_layers_are_found_by_name():
    """Sharding itself is `fully_shard`, as above; accelerate leaves it to GPUs."""
    model = bertfast.optimize(AutoModelForSequenceClassification.from_config(FAMILIES["bert"].tiny()))
    plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    is_sharded = fsdp_utils.fsdp2_prepare_auto_wrap_policy(plugin, model)
    names = {name for name, module in model.named_modules() if is_sharded(module)}
    assert names == {"bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"}


@pytest.mark.tool("accelerate", "prepare, accumulate, save_state, load_state, mixed precision", "fast")
@pytest.mark.parametrize("way", ["accelerate", "accelerate_bfloat16"])
def test_accelerate(ranks, way):
    assert_equal(ranks, way, tolerance=1e-3 if way == "accelerate" else 0.1)
    for rank in ranks:
        fast = rank[way][1]
        for name, value in fast["before"].items():
            torch.testing.assert_close(fast["parameters"][name], value, rtol=1e-6, atol=1e-7)
        assert fast["losses"][-2:] == fast["losses"][-4:-2], "loaded state goes on as the saved one did"
