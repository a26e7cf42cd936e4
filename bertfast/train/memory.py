"""What a training step takes of memory, and which token budget would fit where it ran out.

    fixed      weights, gradients and two moments, 4 bytes each, over the ranks that shard them; on a GPU the copies in bf16
    per token  what each layer keeps for backward: two states of the residual stream in 4 bytes; QKV, context, two products
               before a norm, and the feed-forward layer before GELU in the precision's bytes, bf16 also its copies of the
               two states; with gradient checkpointing one state, and one layer whole. And what backward holds for a moment: three
               of the feed-forward layer's width and eight of the stream's

The masked-LM head works in chunks of fixed size and is left out. Measured on a CPU, steps took 0.9 to 1.4 times the estimate.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from bertfast.graphs import capturing
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.errors import OutOfMemoryError

_GIB = 2**30
_STEP = 64  # suggested budgets are multiples of this
_MARGIN = 0.75  # of what is there: a step may take 1.4 times the estimate


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank: for the model and its optimizer, and for each token of a micro-batch."""

    fixed: int
    per_token: int

    def budget(self, available: float) -> int:
        """The largest token budget that `available` bytes hold; 0 where not even the model fits."""
        fits = (available * _MARGIN - self.fixed) / self.per_token
        return max(0, int(fits) // _STEP * _STEP)


def estimate(model: nn.Module, config: TrainConfig, ranks: int = 1, *, gpu: bool = False) -> Estimate | None:
    """What training `model` takes; None for a model whose config does not say BERT's sizes.

    gpu: whether on a GPU, where GELU's output is kept too, copies of the weights are held in bf16, and steps of several ranks that
        are captured add up gradients in memory of their own.
    """
    sizes: Any = getattr(model, "config", None)
    if not hasattr(sizes, "num_hidden_layers"):
        return None
    shards = ranks if isinstance(model, FSDPModule) else 1
    parameters = sum(p.numel() for p in model.parameters())
    e, f, layers = sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers
    width = 2 if config.autocasts else 4
    layer = width * (8 * e + 2 * f) if gpu else 2 * 4 * e + width * ((6 if width == 4 else 8) * e + f)
    kept = layers * 4 * e + layer if config.gradient_checkpointing else layers * layer
    each = 16 + (2 if gpu and width == 2 else 0) + (4 if gpu and ranks > 1 and shards == 1 else 0)
    return Estimate(each * parameters // shards, kept + 4 * (3 * f + 8 * e))


def available(device: torch.device) -> float:
    """Bytes that this process may have in all."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    own = psutil.Process().memory_info().rss
    return min([psutil.virtual_memory().available + own, *(each for each in limits if each > 0)])


def peak_gib(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU's allocator, or resident in the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def advice(model: nn.Module, config: TrainConfig, ranks: Ranks, tokens: int) -> str:
    """What to do after a micro-batch of `tokens` tokens did not fit."""
    found = estimate(model, config, ranks.size, gpu=ranks.device.type == "cuda")
    room = available(ranks.device)
    less = "Also helpful: gradient_checkpointing, precision bf16" + (", parallel fsdp" if ranks.size > 1 else "")
    if found is None:
        return f"A token budget of about {tokens // 2} may fit. {less}"
    fits = min(found.budget(room), int(tokens * _MARGIN) // _STEP * _STEP)
    figures = (
        f"{room / _GIB:.1f} GiB are there, the model and its optimizer take {found.fixed / _GIB:.1f} GiB and a token "
        f"{found.per_token / 1024:.0f} KiB, estimated"
    )
    if not fits:
        return f"Not even {_STEP} tokens would fit beside the model: {figures}. {less}; or a smaller model"
    return f"A token budget of {fits} would fit: {figures}. {less}; more batches_per_step keep the step as large"


@contextmanager
def guard(model: nn.Module, config: TrainConfig, ranks: Ranks, step: int, batches: list[Any]) -> Iterator[None]:
    """Turn a failed allocation in a step into OutOfMemoryError with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not capturing.is_out_of_memory(error):
            raise
        tokens = max(batch.input_ids.numel() for batch in batches)
        raise OutOfMemoryError(
            f"step {step}: out of memory on a micro-batch of {tokens} tokens. "
            f"{advice(model, config, ranks, tokens)}. The last checkpoint is intact"
        ) from error
