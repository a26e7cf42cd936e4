"""A loss or gradient that is not finite: the batches of the step are kept, and the message says what to look at."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file

from bertfast.train.distributed import Ranks
from bertfast.train.errors import NotFiniteError
from bertfast.train.files import explained


def save(path: Path, batches: list[Any]) -> None:
    """Write the tensors of micro-batches as "0.input_ids" and so on, and their positions to the JSON file beside."""
    tensors = {
        f"{i}.{name}": value.detach().cpu().contiguous().clone()
        for i, batch in enumerate(batches)
        for name, value in batch.inputs().items()
        if isinstance(value, torch.Tensor)
    }
    with explained(str(path)):
        save_file(tensors, path)
        positions = [{"position": b.position, "counts": b.counts, "real_tokens": b.real_tokens} for b in batches]
        path.with_suffix(".json").write_text(json.dumps(positions, indent=1) + "\n", encoding="utf-8")


def stop(
    run: Path, step: int, batches: list[Any], figures: dict[str, Any], norm: float, saved: int | None, ranks: Ranks
) -> NoReturn:
    """Save this rank's batches and raise NotFiniteError. The weights are those before the step."""
    rank = f"-rank-{ranks.rank}" if ranks.size > 1 else ""
    path = run / f"bad-batch-step-{step}{rank}.safetensors"
    save(path, batches)
    losses = {name: value for name, value in figures.items() if name.endswith("loss")}
    bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    bad = bad or [f"the losses are finite ({losses}), but the gradient norm is {norm}"]
    last = f"the last checkpoint is of step {saved}" if saved is not None else "there is no checkpoint yet"
    where = json.dumps([batch.position for batch in batches])
    raise NotFiniteError(
        f"step {step}: {', '.join(bad)}. No update was made from it; {last}. The batches are in {path.name} "
        f"(loader positions {where}). A lower learning_rate, a longer warm-up, max_grad_norm of 1 or precision fp32 "
        "usually help; the same samples in every run point to the data"
    )
