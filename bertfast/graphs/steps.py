"""Captured procedures: functions without results that read and write static memory, such as the parts of a training step.

Unlike an inference call a procedure changes what it reads: gradients are added to, sums grow, the generator of random numbers moves
on. Nothing here therefore runs one for trial: the owner runs a procedure eagerly, puts back what it changed, captures, replays and
compares (`train/captured.py`).

All procedures of an owner share the memory pool `TRAINING`, and the owner holds one turn from the first replay of a step to its
last: what one procedure leaves in that pool for the next, such as gradients, is good within the turn and never after.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast.graphs.backend import TRAINING, Backend, Graph
from bertfast.ops.stamps import Stamp, stamp

Procedure = Callable[[], None]
_PAUSE = 16  # steps after a graph had to go in which nothing new is captured


class _Captured(NamedTuple):
    graph: Graph
    function: Procedure  # the stand-in calls it


class Procedures:
    """The captured procedures of one owner on one device, by key, the least recently used going first.

    Attributes:
        device: what captures.
        nbytes: device memory that the present graphs took to capture.
    """

    def __init__(self, device: Backend, max_graphs: int) -> None:
        """max_graphs: how many there may be beside those that are captured with `keep`."""
        self.device, self._max_graphs = device, max_graphs
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._kept: set[Hashable] = set()
        self._came: OrderedDict[Hashable, None] = OrderedDict()
        self._steps, self._evicted = 0, -_PAUSE
        self._stamp: Stamp | None = None

    def __len__(self) -> int:
        return len(self._captured)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._captured

    @property
    def nbytes(self) -> int:
        return sum(captured.graph.nbytes for captured in self._captured.values())

    def are_due(self, keys: Iterable[Hashable]) -> bool:
        """Whether a step of these procedures is to capture those that are missing: each came before, and none had to go lately.

        Called once for a step that does not replay.
        """
        self._steps += 1
        due = all(key in self._came or key in self._captured for key in keys)
        return due and self._steps - self._evicted > _PAUSE

    def came(self, keys: Iterable[Hashable]) -> None:
        """A step of these procedures ran eagerly."""
        for key in keys:
            self._came[key] = None
            self._came.move_to_end(key)
        while len(self._came) > 4 * self._max_graphs:
            self._came.popitem(last=False)

    def capture(self, key: Hashable, function: Procedure, *, keep: bool = False) -> None:
        """Capture a procedure, which does not run by that; in a turn for a capture.

        function: what autocast is to do in it, it says itself: copies of weights that an outer context has cached are gone when a
            replay would read them.
        keep: whether it stays as long as the others do, since they depend on memory that it wrote.

        Raises whatever the capture raises; there is one procedure less then, and nothing else has changed.
        """
        graph = self.device.capture(lambda: _nothing(function), TRAINING)
        self._captured[key] = _Captured(graph, function)
        if keep:
            self._kept.add(key)

    def replay(self, key: Hashable) -> None:
        """Run a captured procedure once; in a turn."""
        captured = self._captured[key]
        self._captured.move_to_end(key)
        captured.graph.replay(lambda: _nothing(captured.function))

    def make_room(self, needed: Iterable[Hashable]) -> None:
        """Let go of the least recently used over the bound, but for those that the present step needs."""
        spared = self._kept | set(needed)
        for key in [key for key in self._captured if key not in spared]:
            if len(self._captured) - len(self._kept) <= self._max_graphs:
                break
            self._bury(key)
            self._evicted = self._steps

    def remember(self, tensors: Sequence[Tensor | None]) -> None:
        """These lie where graphs read and write by address."""
        self._stamp = stamp(tensors)

    def are_current(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether they lie where they lay."""
        return self._stamp is not None and self._stamp.holds(tensors)

    def clear(self) -> None:
        """Let go of all of them."""
        for key in list(self._captured):
            self._bury(key)
        self._kept.clear()
        self._came.clear()
        self._stamp = None

    def _bury(self, key: Hashable) -> None:
        self.device.bury(self._captured.pop(key).graph.reset)


def _nothing(function: Procedure) -> tuple[Tensor, ...]:
    function()
    return ()


class Generator:
    """The state of the generator that code on a device draws from, as it was when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: Any = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def restore(self) -> None:
        """Let what is drawn next be what was drawn then. No copy to or from the device, no wait."""
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._state, self._device)
        else:
            torch.set_rng_state(self._state)


def differing(now: Sequence[Tensor], before: Sequence[Tensor]) -> int:
    """How many numbers of `now` have other bits than those of `before`, tensor by tensor. Waits for the device."""
    counts = []
    for a, b in zip(now, before, strict=True):
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        counts.append((a.contiguous().view(integer) != b.contiguous().view(integer)).sum())
    return int(torch.stack(counts).sum())
