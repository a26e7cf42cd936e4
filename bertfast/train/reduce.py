"""Gradients of several ranks added up outside of backward, for steps whose backward is a replayed graph that no hook sees.

DDP exchanges a bucket as soon as backward has filled it, from hooks. Here backward is over first. Then gradients are copied into
flat buckets, in the order in which backward makes them, each is added up over the ranks while the next one is filled, and all are
copied back to where they were. The sums are DDP's: the loss is not multiplied by the number of ranks, so nothing is divided by it.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bertfast import _torch
from bertfast.train.distributed import Ranks

BUCKET_BYTES = 25 * 2**20  # DDP's


class _Bucket:
    """One flat tensor for gradients of one dtype, and its parts in their shapes."""

    def __init__(self, gradients: list[Tensor]) -> None:
        sizes = [gradient.numel() for gradient in gradients]
        self.flat = gradients[0].new_empty(sum(sizes))
        self.parts = [part.view(g.shape) for part, g in zip(self.flat.split(sizes), gradients, strict=True)]


class Reducer:
    """Adds up the gradients of `model` over all ranks; every rank must make one and call it as often as the others.

    Parameters and buffers become those of the first rank, as under DDP.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._ranks, self._bucket_bytes = ranks, bucket_bytes
        # Backward makes gradients of the last parameters first.
        self._parameters = [p for p in model.parameters() if p.requires_grad][::-1]
        self._buckets: list[_Bucket] = []
        self._there: list[bool] = []  # which parameters the buckets are for
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, 0)

    def sum(self) -> None:
        """Each parameter's gradient becomes the sum of all ranks', in place.

        On a GPU nothing waits on the host, but in the first call.
        Raises RuntimeError in the first call where a parameter has a gradient on some ranks alone.
        """
        there = [p.grad is not None for p in self._parameters]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if there != self._there:
            self._check(there)
            self._buckets = [_Bucket(group) for group in self._groups(gradients)]
            self._there = there
        rest = iter(gradients)
        groups = [[next(rest) for _ in bucket.parts] for bucket in self._buckets]
        copy = _torch.foreach("copy_")
        works = []
        for bucket, group in zip(self._buckets, groups, strict=True):
            copy(bucket.parts, group)
            works.append(dist.all_reduce(bucket.flat, async_op=True))
        for bucket, group, work in zip(self._buckets, groups, works, strict=True):
            work.wait()  # with NCCL the stream waits, not the host
            copy(group, bucket.parts)

    def _check(self, there: list[bool]) -> None:
        own = torch.tensor(there, dtype=torch.int32, device=self._ranks.device)
        everywhere = self._ranks.sum(own.clone())
        if not torch.equal(everywhere, own * self._ranks.size):
            raise RuntimeError("a parameter has a gradient on some ranks alone")

    def _groups(self, gradients: list[Tensor]) -> list[list[Tensor]]:
        """The gradients in their order, in groups of one dtype and at most `bucket_bytes`, or of one that is larger."""
        groups: list[list[Tensor]] = []
        filled = 0
        for gradient in gradients:
            if not groups or gradient.dtype != groups[-1][0].dtype or filled + gradient.nbytes > self._bucket_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(gradient)
            filled += gradient.nbytes
        return groups
