"""Runs under torchrun on 2 gloo ranks: several trainings of one small model, each into a folder of its own.

python ranks_worker.py CORPUS OUT: the options of each run stand in RUNS. test_ranks.py compares what they leave.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from bertfast.train import curves
from bertfast.train.loop import train
from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.settings import resolve

STEPS, STOP = 6, 3
BASE = {
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.dropout": 0.1,
    "data.token_budget": 256,
    "data.max_seq_length": 64,
    "data.workers": 0,
    "train.steps": STEPS,
    "train.batches_per_step": 4,
    "train.learning_rate": 3e-3,
    "train.warmup_steps": 2,
    "train.log_every": 2,
    "eval_batches": 1,
}
_EXACT: dict[str, Any] = {"model.dropout": 0.0}
_FSDP = {"train.parallel": "fsdp"}
_LAMB = _FSDP | {"train.optimizer": "lamb"}
# name -> (options over BASE, whether it is stopped after STOP steps and resumed, with a loader's worker)
RUNS: dict[str, tuple[dict[str, Any], bool]] = {
    "ddp": (_EXACT, False),
    "fsdp": (_EXACT | _FSDP, False),
    "ddp_dropout": ({}, False),
    "ddp_dropout_resumed": ({}, True),
    "fsdp_lamb": (_LAMB, False),
    "fsdp_lamb_resumed": (_LAMB, True),
    "half_alone": (_EXACT, False),  # begun by one process
    "half": (_EXACT | _FSDP | {"train.stop_at": STOP}, False),
}


def config(corpus: Path, out: Path, **options: Any) -> PretrainConfig:
    given = {"corpus": str(corpus), "eval": str(corpus), "out": str(out)}
    return resolve(PretrainConfig, flags=BASE | given | options)


def run(corpus: Path, out: Path, options: dict[str, Any], resumed: bool = False) -> PretrainTask:
    for stop in (STOP, None) if resumed else (options.get("train.stop_at"),):
        worker = {"data.workers": 1} if resumed else {}
        chosen = config(corpus, out, **options | {"train.stop_at": stop} | worker)
        task = PretrainTask(chosen)
        train(task, chosen.train, out, record=task.config, resume=out.exists())
    return task


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves.draw = lambda *_: None
    dist.init_process_group("gloo")
    for name, (options, resumed) in RUNS.items():
        task = run(Path(sys.argv[1]), Path(sys.argv[2]) / name, options, resumed)
        sharded = [isinstance(p, DTensor) for p in task.model.parameters()]
        assert all(sharded) if "train.parallel" in options else not any(sharded), name
    dist.destroy_process_group()
