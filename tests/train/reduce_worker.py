"""Runs on gloo ranks whose steps are captured on a tape: python reduce_worker.py CORPUS OUT, under torchrun.

test_reduce.py compares what they leave.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ranks_worker import BASE
from safetensors.torch import save_file
from stepping import stepping
from toy import ToyModel

from bertfast.train import curves
from bertfast.train.distributed import Ranks, wrap
from bertfast.train.loop import train
from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.reduce import Reducer
from bertfast.train.settings import resolve

STEPS, STOP, LATE = 6, 3, 4
EAGER = {"train.cuda_graphs": False}
LAMB = {"train.optimizer": "lamb"}
BF16 = {"train.precision": "bf16"}
FSDP = {"train.parallel": "fsdp"}
# name -> (options, steps after which it is stopped and resumed)
RUNS = {
    "ddp": (EAGER, None),
    "captured": ({}, None),
    "resumed": ({}, STOP),
    "ddp_lamb_bf16": (EAGER | LAMB | BF16, None),
    "captured_lamb_bf16": (LAMB | BF16, None),
    "fsdp": (FSDP, None),
}


def run(corpus: Path, out: Path, options: dict, stop: int | None) -> None:
    for stop_at in (stop, None) if stop else (None,):
        given = {"corpus": str(corpus), "out": str(out), "train.stop_at": stop_at, "train.device": "cpu"}
        config = resolve(PretrainConfig, flags=BASE | given | options)
        task = PretrainTask(config)
        train(task, config.train, out, record=task.config, resume=out.exists(), read_every=LATE)


def gradients(out: Path, ranks: Ranks) -> None:
    """Gradients of this rank's rows by DDP and by us, in buckets of several sizes."""
    torch.manual_seed(ranks.rank)  # ranks begin with weights of their own: they must become the first one's
    own = ToyModel(0.0)
    start = {name: p.clone() for name, p in own.named_parameters()}
    rows = torch.randint(0, 23, (3, 6), generator=torch.Generator().manual_seed(10 + ranks.rank))

    def model() -> ToyModel:
        made = ToyModel(0.0)
        made.load_state_dict(start, strict=False)
        made.words.weight.data.copy_(start["words.weight"])
        return made

    def backward(called: torch.nn.Module) -> None:
        words, pair = called(rows)
        (words.square().mean() + pair.square().mean()).backward()

    theirs = model()
    backward(wrap(theirs, ranks, "ddp"))
    save_file({name: p.grad for name, p in theirs.named_parameters()}, out / f"gradients-ddp-{ranks.rank}.safetensors")
    for size in (1, 300, 2**20):
        ours = model()
        reducer = Reducer(ours, ranks, size)
        for _ in range(2):
            ours.zero_grad()
            backward(ours)
            addresses = [p.grad.data_ptr() for p in ours.parameters()]
            reducer.sum()
            assert addresses == [p.grad.data_ptr() for p in ours.parameters()]
        summed = {name: p.grad / ranks.size for name, p in ours.named_parameters()}
        save_file(summed, out / f"gradients-{size}-{ranks.rank}.safetensors")
    ours.zero_grad()
    backward(ours)
    if ranks.rank:
        ours.pair.bias.grad = None
    try:
        Reducer(ours, ranks).sum()
    except RuntimeError as error:
        (out / f"said-{ranks.rank}").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves.draw = lambda *_: None
    dist.init_process_group("gloo")
    out = Path(sys.argv[2])
    gradients(out, Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu")))
    for name, (options, stop) in RUNS.items() if dist.get_world_size() == 2 else ():
        with stepping() as tape:
            run(Path(sys.argv[1]), out / name, options, stop)
        (out / f"{name}-{dist.get_rank()}.txt").write_text(f"{tape.captures} {tape.replays}")
    dist.destroy_process_group()
