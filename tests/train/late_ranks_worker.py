"""Two gloo ranks whose steps are read late, as on GPUs: python late_ranks_worker.py OUT, under torchrun.

test_late_ranks.py reads what they leave.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from toy import ToyTask, config

from bertfast.train import curves
from bertfast.train.errors import NotFiniteError, StoppedError
from bertfast.train.loop import train
from bertfast.train.state import model_tensors

FSDP = {"parallel": "fsdp"}
LAMB = {"optimizer": "lamb"}
RUNS = {"ddp": {}, "fsdp": FSDP, "fsdp_lamb": FSDP | LAMB}
BAD, SIGNALLED = 5, 6  # steps


class Signalled(ToyTask):
    """A signal comes to the second rank alone, in its batch of step 6."""

    def terms(self, model, batch):
        if batch.position["batch"] == 2 * SIGNALLED - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().terms(model, batch)


def ended(task, options, run):
    try:
        train(task, config(**options), run, read_every=32)
    except (NotFiniteError, StoppedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(out: Path) -> None:
    said = {}
    quiet = {"log_every": 99, "save_every": None}
    for name, options in RUNS.items():
        task = ToyTask(poison=2 * BAD - 1)  # of the second rank
        said[name] = ended(task, {"steps": 20} | quiet | options, out / name)
        save_file(model_tensors(task.model), out / f"{name}-{dist.get_rank()}.safetensors")
        train(ToyTask(), config(**{"steps": 20, "stop_at": BAD - 1} | quiet | options), out / f"{name}_before")
        train(ToyTask(), config(**options), out / f"{name}_at_once")
        train(ToyTask(), config(**options), out / f"{name}_late", read_every=32)
    said["signal"] = ended(Signalled(), {"save_every": None}, out / "signal")
    train(ToyTask(), config(), out / "signal", resume=True, read_every=32)
    (out / f"said-{dist.get_rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves.draw = lambda *_: None
    dist.init_process_group("gloo")
    run(Path(sys.argv[1]))
    dist.destroy_process_group()
