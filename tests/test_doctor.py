"""doctor: it names owners and advice from what it finds, and runs without transformers and without the extension."""

import json
import os
import subprocess
import sys

import pytest
import torch

from bertfast import _ext, _library, doctor
from bertfast.triton import verified


def test_every_op_is_listed_with_both_owners():
    owners = doctor.examine()["owners"]
    assert tuple(owners) == _library.names()
    assert all(set(row) == {"CPU", "CUDA"} for row in owners.values())
    assert not any(row["CUDA"] == "kernel" for row in owners.values())


def test_owner_follows_the_dispatcher():
    expected = "C++" if _ext.load() else "eager reference"
    assert doctor.owner("attention_fwd", "CPU") == expected


def test_facts_are_plain_json():
    facts = json.loads(json.dumps(doctor.examine()))
    assert facts["versions"]["torch"]
    assert facts["processor"]
    assert facts["cores"] >= 1


def test_idle_cores_are_advice(monkeypatch):
    monkeypatch.setattr(doctor, "_cores", lambda: torch.get_num_threads() + 1)
    slow = doctor.examine()["slow"]
    assert any("cores work" in item["what"] for item in slow)
    assert all(item["what"] and item["why"] and item["fix"] for item in slow)


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that is seen, with every op verified but packing."""
    pytest.importorskip("triton", reason="Triton is not installed")
    entry = {"date": "2026-01-01T00:00:00+00:00", "device": "NVIDIA H200", "commit": "abc", "note": "one row"}
    table = {
        "90": {
            op: {verified.triton_minor(): entry | {"sources": verified.sources.here(op, 90)}}
            for op in verified.folders()
            if op != "packing"
        }
    }
    monkeypatch.setattr(verified, "_table", lambda: table)
    monkeypatch.setattr(verified, "_allowed", 0)
    monkeypatch.setattr(verified, "devices", lambda: (90,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")


def test_every_gpu_op_says_what_runs_and_why(hopper):
    facts = doctor.examine()
    (arch, ops), *rest = facts["gpu_ops"].items()
    assert (arch, rest) == ("sm_90", [])
    assert set(ops) == {*verified.folders(), *verified.candidates()}
    assert ops["attention"]["runs"] == "kernel"
    assert ops["attention"]["why"] == f"verified on NVIDIA H200, 2026-01-01, Triton {verified.triton_minor()}"
    assert ops["attention"]["note"] == "one row"
    assert ops["packing"]["runs"] == "reference"
    assert "have not passed their parity tests on sm_90" in ops["packing"]["why"]
    slow = {item["what"]: item for item in facts["slow"]}
    assert "make gpu" in slow["packing run torch's own functions on the GPU"]["fix"]
    assert "gpu_kernels=True" in slow["Hugging Face models on the GPU stay stock"]["fix"]


def test_what_models_do_on_a_verified_gpu(hopper, monkeypatch):
    assert "not every op is verified" in doctor.examine()["gpu_models"]["sm_90"]["bfloat16"]
    line = {"case": "BERT-large", "device": "NVIDIA H200", "date": "2026-01-01T00", "dtype": "bfloat16", "ratio": 0.9}
    lines = [line | {"train": False}, line | {"train": True, "dtype": "float32", "ratio": 1.1}]
    monkeypatch.setattr(doctor.faster, "_table", lambda: {"90": lines})
    monkeypatch.setattr(verified, "gate", lambda arch: {})
    facts = doctor.examine()
    models = facts["gpu_models"]["sm_90"]
    assert models["bfloat16"].startswith("whole inference calls and all layers in training run from CUDA graphs")
    assert models["float16"].count("not yet timed") == 2  # inference and training
    assert models["float16"].count("in every profile") == 1
    assert models["float32"].startswith("all layers in training run from CUDA graphs, everything else is stock")
    slow = {item["what"]: item for item in facts["slow"]}
    assert "eager calls launch" in slow["modules called one by one stay stock on the GPU"]["why"]
    assert not any(what.startswith("float32 training") for what in slow)
    assert "0.90 of stock" in slow["bfloat16 inference near some sizes stays stock on the GPU"]["why"]
    assert "gpu_kernels=True" in slow["float32 inference without autocast to 16 bits stays stock on the GPU"]["fix"]
    assert "float16 inference near some sizes stays stock on the GPU" not in slow


def test_float32_stays_stock_without_autocast_alone(hopper, monkeypatch):
    monkeypatch.setattr(verified, "gate", lambda arch: {})
    assert doctor.examine()["gpu_models"]["sm_90"]["float32"].startswith("stays stock without autocast to 16 bits: ")


def test_kernels_that_are_only_allowed_are_not_called_verified(hopper):
    with verified.allow_unverified():
        assert doctor.gpu_op("packing", 90) == {"runs": "kernel", "why": "not verified, but allowed in this process"}


def test_a_candidate_says_why_the_owner_runs_and_when_it_runs_itself(hopper, monkeypatch):
    name = "linear_gelu.cheap_erf"
    row = doctor.gpu_ops()["sm_90"][name]
    assert row["runs"] == "owner"
    assert "for bias_gelu_fwd, " in row["why"]
    assert "have not passed their parity tests on sm_90" in row["why"]
    with verified.prefer(candidates=True):
        assert doctor.gpu_candidate(name, 90)["why"] == ("not verified and faster, but asked for in this process")
    entry = {"date": "2026-02-01", "device": "NVIDIA H200", "commit": "abc", "sources": verified.sources.here(name, 90)}
    monkeypatch.setitem(verified._table()["90"], name, {verified.triton_minor(): entry})
    assert doctor.gpu_candidate(name, 90)["runs"] == "owner"  # right, and nobody knows whether it is faster
    owner = verified.sources.here("linear_gelu", 90)
    times = {"cases": 3, "losing": {}, "owner": owner}
    entry["gains"] = {"bias_gelu_fwd": times | {"gain": 1.25}, "bias_gelu_bwd": times | {"gain": 0.9}}
    row = doctor.gpu_candidate(name, 90)
    assert row["runs"] == "candidate"
    assert row["why"].startswith(
        "in place of the owner of bias_gelu_fwd (1.25 times as fast): verified on NVIDIA H200, 2026-02-01"
    )
    assert "it was 0.90 times as fast as the owner at bias_gelu_bwd, the median of 3 cases" in row["why"]


def test_without_a_gpu_what_results_verify_is_listed():
    if not torch.cuda.is_available():
        assert set(doctor.examine()["gpu_ops"]) == {f"sm_{arch}" for arch in verified.known_architectures()}


@pytest.mark.parametrize(
    ("environment", "block", "expected"),
    [
        ({"BERTFAST_DISABLE_EXT": "1"}, "", "BERTFAST_DISABLE_EXT=1 is set"),
        ({}, "transformers", "-e '.[hf]'"),
    ],
)
def test_what_is_missing_is_said_and_is_no_error(environment, block, expected):
    # find_spec raises for a module that sys.modules holds as None, so a finder that hides the name stands in for that.
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {block!r} else find(name, *a)\n"
        "from bertfast.cli import app; app(['doctor'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert expected in " ".join(done.stdout.split())
