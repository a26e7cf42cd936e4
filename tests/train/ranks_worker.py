"""Runs under torchrun on 2 gloo ranks: several trainings of one small model, each into a folder of its own.

python ranks_worker.py CORPUS OUT: the options of each run stand in RUNS. The test compares what they leave.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from bertfast.train.pretrain import pretrain
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.settings import resolve

STEPS = 8
# name -> (options over BASE, the steps at which it is stopped and resumed)
RUNS: dict[str, tuple[dict, list[int]]] = {
    "ddp": ({"model.dropout": 0.0}, []),
    "fsdp": ({"model.dropout": 0.0, "train.parallel": "fsdp"}, []),
    "ddp_dropout": ({}, []),
    "ddp_dropout_resumed": ({}, [3]),
    "fsdp_lamb": ({"train.parallel": "fsdp", "train.optimizer": "lamb"}, []),
    "fsdp_lamb_resumed": ({"train.parallel": "fsdp", "train.optimizer": "lamb"}, [3]),
    "to_be_resumed_alone": ({"model.dropout": 0.0, "train.parallel": "fsdp", "train.stop_at": 4}, []),
}
BASE = {
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.dropout": 0.1,
    "data.token_budget": 256,
    "data.max_seq_length": 64,
    "train.steps": STEPS,
    "train.batches_per_step": 4,
    "train.learning_rate": 3e-3,
    "train.log_every": 1,
    "train.eval_every": 4,
    "eval_batches": 2,
    "train.warmup_steps": 2,
}


def config(corpus: Path, out: Path, **options) -> PretrainConfig:
    given = {"corpus": str(corpus), "eval": str(corpus), "out": str(out)}
    return resolve(PretrainConfig, flags=BASE | given | options)


def run(corpus: Path, out: Path, options: dict, stops: list[int]) -> None:
    for i, stop in enumerate([*stops, None]):
        pretrain(config(corpus, out, **options | {"train.stop_at": stop or options.get("train.stop_at")}), resume=i > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, (options, stops) in RUNS.items():
        run(Path(sys.argv[1]), Path(sys.argv[2]) / name, options, stops)
    dist.destroy_process_group()
