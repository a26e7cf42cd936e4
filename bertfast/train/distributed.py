"""Several ranks under torchrun: gloo on CPUs, NCCL on GPUs; DDP or FSDP2; whole tensors out of sharded ones and back.

A step's arithmetic does not depend on how it is split but for the order of sums: gradients are averaged over ranks by DDP
and FSDP alike, so the loop multiplies its loss by the number of ranks.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from bertfast.nn import BertLayer
from bertfast.tasks.device import DeviceError, choose
from bertfast.train.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up `tensor` over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest of each number over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in the order of ranks; of one shape and dtype everywhere. On the CPU."""
        if self.size == 1:
            return [tensor.cpu()]
        mine = tensor.to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine)
        return [each.cpu() for each in found]

    def agree(self, failed: bool) -> bool:
        """Whether any rank failed; also a barrier."""
        return bool(self.sum(torch.tensor([int(failed)], device=self.device)).item())


def _device(name: str, local: int) -> torch.device:
    try:
        chosen = choose(name)
    except DeviceError as error:
        raise ConfigError(str(error)) from None
    if chosen.type == "cpu":
        return chosen
    if local >= torch.cuda.device_count():
        raise ConfigError(f"local rank {local} has no GPU of its own: {torch.cuda.device_count()} are here")
    return torch.device("cuda", local)


@contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """The ranks that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or this process alone.

    A process group that is there already is used and left. ConfigError: no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    found = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if size == 1 or dist.is_initialized():
        yield Ranks(dist.get_rank() if size > 1 else 0, size, found)
        return
    # device_id binds NCCL at once, so that a GPU that fails is found here and not in the first step.
    dist.init_process_group(
        "nccl" if found.type == "cuda" else "gloo", device_id=found if found.type == "cuda" else None
    )
    try:
        yield Ranks(dist.get_rank(), size, found)
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, ranks: Ranks, parallel: str) -> nn.Module:
    """What to call in training. FSDP shards `model` in place, a unit for each layer and one for the rest."""
    if ranks.size == 1:
        return model
    if parallel == "fsdp":
        # A layer returns a view of its last product's rows, which nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = dist.device_mesh.init_device_mesh(ranks.device.type, (ranks.size,))
        for module in list(model.modules()):
            if isinstance(module, BertLayer):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def accumulating(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Surrounds forward and backward of a micro-batch: gradients are exchanged only in the last one of a step."""
    model = getattr(model, "_orig_mod", model)  # under torch.compile
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded or plain one, detached, on the CPU. Every rank must call it."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def like(full: Tensor, pattern: Tensor) -> Tensor:
    """`full` placed as `pattern` is: this rank's shard of it, on its device."""
    if isinstance(pattern, DTensor):
        moved = full.to(pattern.device)
        return distribute_tensor(moved, pattern.device_mesh, pattern.placements, src_data_rank=None)
    return full.to(pattern.device)
