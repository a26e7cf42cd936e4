"""What all ranks are to know at the same step: that a signal came to one of them, that a checkpoint is due.

A rank that is alone knows its own flags at once. Several exchange them with the sums of a step, in one all-reduce, and read
them `lag` steps later, when the device has long computed them: nobody waits for the present step, and all ranks read the same.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from bertfast.train.distributed import Ranks


class Flags:
    """The exchange on one rank. lag: steps from when flags are told until they are read."""

    def __init__(self, ranks: Ranks, lag: int) -> None:
        self._ranks, self._lag = ranks, lag
        self._told: deque[tuple[Tensor, Any]] = deque()  # flags on the host, and the event after their copy

    def exchange(self, sums: Tensor, own: list[bool]) -> list[bool]:
        """Add up `sums`, [n] float64 on the device, over all ranks in place.

        Returns for each flag whether it was up on any rank `lag` calls ago; `own` where this rank is alone.
        """
        if self._ranks.size == 1:
            return own
        flags = torch.tensor(own, dtype=sums.dtype)
        on_gpu = sums.device.type == "cuda"
        if on_gpu:
            flags = flags.pin_memory()
        both = self._ranks.sum(torch.cat((sums, flags.to(sums.device, non_blocking=True))))
        sums.copy_(both[: len(sums)])
        event = torch.cuda.Event() if on_gpu else None
        host = torch.empty(len(own), dtype=sums.dtype, pin_memory=on_gpu)
        host.copy_(both[len(sums) :], non_blocking=True)
        if event is not None:
            event.record()
        self._told.append((host, event))
        if len(self._told) <= self._lag:
            return [False] * len(own)
        host, event = self._told.popleft()
        if event is not None:
            event.synchronize()
        return [value > 0 for value in host.tolist()]
