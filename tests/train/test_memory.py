"""The estimate of memory against what a step really takes, and the advice made of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import ToyModel

from bertfast.graphs import capturing
from bertfast.models import BertConfig, BertForPreTraining
from bertfast.train import memory
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks

WORKER = Path(__file__).with_name("memory_worker.py")
ALONE = Ranks(0, 1, torch.device("cpu"))


def model():
    return BertForPreTraining(BertConfig(100, 128, 6, 2, 512))


def test_estimate_against_reality():
    roots = [str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line in lines:
        measured, estimated = map(float, line.split()[2:])
        assert 0.5 < estimated / measured < 2.0, line


def test_a_budget_fits_what_is_there():
    found = memory.estimate(model(), TrainConfig(steps=1))
    assert found.fixed == 16 * sum(p.numel() for p in model().parameters())
    room = 2**30
    budget = found.budget(room)
    assert budget % 64 == 0
    assert found.fixed + budget * found.per_token <= room < (found.fixed + (budget + 64) * found.per_token) / 0.7
    assert found.budget(found.fixed) == 0
    half = memory.estimate(model(), TrainConfig(steps=1, precision="bf16"))
    spare = memory.estimate(model(), TrainConfig(steps=1, gradient_checkpointing=True))
    assert spare.per_token < half.per_token < found.per_token


def test_advice(monkeypatch):
    config = TrainConfig(steps=1)
    monkeypatch.setattr(memory, "available", lambda device: 2**30)
    wanted = memory.estimate(model(), config).budget(2**30)
    assert f"token budget of {wanted} would fit: 1.0 GiB are there" in memory.advice(model(), config, ALONE, 10**6)
    assert "token budget of 704 would fit" in memory.advice(model(), config, ALONE, 1000), "less than what failed"
    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    assert "Not even 64 tokens" in memory.advice(model(), config, ALONE, 1000)
    assert "about 500 may fit" in memory.advice(ToyModel(0.0), config, ALONE, 1000)


def test_which_errors_are_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert capturing.is_out_of_memory(caught.value)
    assert capturing.is_out_of_memory(MemoryError())
    assert capturing.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not capturing.is_out_of_memory(RuntimeError("shapes differ"))


def test_available_is_at_most_a_limit(monkeypatch):
    there = memory.available(torch.device("cpu"))
    assert 0 < there < 2**50
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (2**20, 2**20))
    assert memory.available(torch.device("cpu")) == 2**20
