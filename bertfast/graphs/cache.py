"""The captured calls of a module: which there are, how many may be, and until when they are good.

They belong to their owner by identity, as prepacked weights do (`nn.prepack`): deepcopy, pickle and state_dict know nothing of
them, and they go when it goes. All of an owner's are good as long as every tensor that they read by address lies where it lay
(`ops.stamps`); what is written in place they see by themselves.
"""

import os
import threading
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from bertfast.graphs import backend as backends
from bertfast.graphs.backend import INFERENCE, Backend, Graph
from bertfast.ops.stamps import Stamp, stamp

_REMEMBERED = 256  # places that came once, or that stay eager, of an owner
_FAILURES = 2  # captures that failed, after which an owner's calls of that kind stay eager


@dataclass(frozen=True)
class Limits:
    """What one owner's captured calls may take, the least recently used going first.

    Attributes:
        max_graphs: how many there may be; 0 for none.
        max_bytes: `max_graph_bytes` of `optimize`: their static buffers, and by how much capturing each made the device's reserved
            memory grow. Later graphs use again what earlier ones reserved, so the sum is what an owner takes, not the parts what
            each would take alone.
        pause: how many calls after a graph had to go nothing new is captured. A capture costs several eager calls, and where more
            sizes are in use than there may be graphs, each call would be one.
    """

    max_graphs: int = 64
    max_bytes: int = 4 * 2**30
    pause: int = 16


class Memory(NamedTuple):
    """What captured calls hold now.

    Attributes:
        nbytes: of their static buffers, and by how much capturing them made the device's reserved memory grow.
        graphs: how many there are.
    """

    nbytes: int
    graphs: int


@dataclass(eq=False)
class Captured:
    """A captured call, the buffers that it reads its inputs from, and the bytes of both."""

    graph: Graph
    inputs: Any
    nbytes: int
    backend: Backend
    alive: bool = True

    def release(self) -> None:
        """Give back what it holds."""
        self.graph.reset()
        self.inputs = None


class Due(NamedTuple):
    """That a place comes for the second time, and what the tensors are that a graph of it would read."""

    stamp: Stamp


FIRST = "first call of its bucket"
PAUSE = "more buckets are in use than its limits leave room for"


class Cache:
    """The captured calls of one owner, by place: whatever their code and sizes depend on. Kinds of calls, such as inference, share
    its bounds."""

    def __init__(self) -> None:
        self.captured: OrderedDict[Hashable, Captured] = OrderedDict()
        self._came: OrderedDict[Hashable, None] = OrderedDict()
        self._refused: OrderedDict[Hashable, str] = OrderedDict()
        self._failures: Counter[str] = Counter()  # by kind of call
        self._calls = 0
        self._evicted: int | None = None  # the number of the call for which another graph went last
        self._off: dict[str, str] = {}  # kinds that stay eager, and why
        self._stamps: dict[Hashable, Stamp] = {}
        self._streams: set[Hashable] = set()

    def is_new(self, stream: Hashable, group: Hashable = None) -> bool:
        """Whether nothing was replayed on this stream yet with the tensors that a group has now."""
        with _lock:
            new = (stream, group) not in self._streams
            self._streams.add((stream, group))
        return new

    def find(
        self,
        place: Hashable,
        tensors: Sequence[Tensor | None],
        limits: Limits,
        group: Hashable = None,
        kind: str = INFERENCE,
    ) -> Captured | Due | str:
        """The captured call of a place; that it is to be captured now; else why it runs eagerly.

        Args:
            place: of the call among all of the owner.
            tensors: everything that captured code reads by address besides its inputs. Where they changed, nothing is left.
            limits: of the owner's captured calls.
            group: of places that read the same tensors; another group's may be others, as copies in another dtype are.
            kind: of call. What fails for one kind says nothing of another.
        """
        stale: list[Captured] = []
        with _lock:
            now = self._stamps.get(group)
            if now is None or not now.holds(tensors):
                if now is not None:
                    stale = self._start_over()
                now = self._stamps[group] = stamp(tensors)
                if not now.holds(tensors):
                    self._off[kind] = "a weight is no plain tensor"
            self._calls += 1
            state = self._off.get(kind) or self._find(place, now, limits)
        _bury(stale)
        return state

    def _find(self, place: Hashable, now: Stamp, limits: Limits) -> Captured | Due | str:
        captured = self.captured.get(place)
        if captured is not None:
            self.captured.move_to_end(place)
            return captured
        if place in self._refused:
            return self._refused[place]
        if place not in self._came:
            return FIRST
        paused = self._evicted is not None and self._calls - self._evicted <= limits.pause
        return PAUSE if paused else Due(now)

    def _start_over(self) -> list[Captured]:
        stale = list(self.captured.values())
        for kept in (self.captured, self._came, self._refused, self._stamps, self._streams):
            kept.clear()
        self._off = {kind: reason for kind, reason in self._off.items() if self._failures[kind] >= _FAILURES}
        return stale

    def came(self, place: Hashable) -> None:
        """A place was called and ran eagerly: the next call captures it."""
        with _lock:
            _remember(self._came, place, None)

    def make_room(self, limits: Limits) -> None:
        """Let go of what is least recently used until one more fits by number."""
        self._evict(lambda: len(self.captured) >= limits.max_graphs)

    def evict_all(self) -> None:
        """Let go of everything that was captured."""
        self._evict(lambda: True)

    def _evict(self, over: Any) -> None:
        evicted = []
        with _lock:
            while self.captured and over():
                evicted.append(self.captured.popitem(last=False)[1])
                self._evicted = self._calls
        _bury(evicted)

    def keep(self, place: Hashable, captured: Captured, due: Due, limits: Limits) -> str | None:
        """Keep a captured call, and of the others what it leaves room for. Why not, where it alone is over the bound or a weight
        changed meanwhile."""
        reason, replaced = None, None
        with _lock:
            if not any(now is due.stamp for now in self._stamps.values()):
                reason = "a weight changed during the capture"
            elif captured.nbytes > limits.max_bytes:
                reason = f"its graph needs {captured.nbytes} bytes, more than max_graph_bytes={limits.max_bytes}"
                _remember(self._refused, place, reason)
            else:
                replaced = self.captured.get(place)  # where another thread found it due as well, and was first
                self.captured[place] = captured
        if reason is not None:
            _bury([captured])
            return reason
        if replaced is not None:
            _bury([replaced])
        self._evict(lambda: sum(each.nbytes for each in self.captured.values()) > limits.max_bytes)
        return None

    def refuse(self, place: Hashable, reason: str) -> None:
        """This place stays eager until a weight changes."""
        with _lock:
            _remember(self._refused, place, reason)

    def fail(self, place: Hashable, reason: str, kind: str = INFERENCE) -> None:
        """A capture failed: its place stays eager, and after a second failure all calls of its kind. Warns of the first."""
        with _lock:
            _remember(self._refused, place, reason)
            self._failures[kind] += 1
            first = self._failures[kind] == 1
            if self._failures[kind] >= _FAILURES:
                self._off[kind] = reason
        if first:
            warnings.warn(
                f"bertfast: a call could not be captured in a graph and runs eagerly, which is slower: {reason}",
                UserWarning,
                stacklevel=2,
            )

    def clear(self) -> list[Captured]:
        """Forget everything, and hand over what is to be buried."""
        with _lock:
            self._failures.clear()
            self._evicted = None
            return self._start_over()

    def reasons(self) -> list[str]:
        """Why some places, or all, stay eager; each reason once."""
        with _lock:
            return list(dict.fromkeys([*self._off.values(), *self._refused.values()]))


def _remember(kept: OrderedDict, place: Hashable, value: Any) -> None:
    kept[place] = value
    kept.move_to_end(place)
    if len(kept) > _REMEMBERED:
        kept.popitem(last=False)


def _bury(captured: Sequence[Captured]) -> None:
    """Not under `_lock`: a turn may be waited for, which ends with it."""
    for each in captured:
        each.alive = False
        each.backend.bury(each.release)


_lock = threading.Lock()
_caches: "WeakKeyDictionary[nn.Module, Cache]" = WeakKeyDictionary()
_inherited: list[Any] = []
_generation = 0


def of(owner: nn.Module) -> Cache:
    """The captured calls of an owner."""
    cache = _caches.get(owner)
    if cache is None:
        with _lock:
            cache = _caches.setdefault(owner, Cache())
        # Holds what was captured and not the owner. Nothing is reset at exit: the driver goes first.
        weakref.finalize(owner, _end, cache.captured, _generation).atexit = False
    return cache


def _end(captured: OrderedDict[Hashable, Captured], generation: int) -> None:
    if generation == _generation:
        _bury(list(captured.values()))


def _below(module: nn.Module) -> list[Cache]:
    with _lock:
        return [_caches[child] for child in module.modules() if child in _caches]


def clear(module: nn.Module) -> None:
    """Forget the captured calls that belong to `module` or anything inside it, and why some were not captured."""
    for cache in _below(module):
        _bury(cache.clear())


def memory(module: nn.Module) -> Memory:
    """Bytes and number of the captured calls that belong to `module` or anything inside it."""
    caches = _below(module)
    with _lock:
        held = [captured for cache in caches for captured in cache.captured.values()]
    return Memory(sum(captured.nbytes for captured in held), len(held))


def reasons(module: nn.Module) -> list[str]:
    """Why calls of `module`, or of anything inside it, stay eager that could have been captured; each reason once."""
    return list(dict.fromkeys(reason for cache in _below(module) for reason in cache.reasons()))


def _forget_after_fork() -> None:
    """A child has the parent's objects and not its device: they are kept, so that no destructor runs, and not used."""
    global _lock, _caches, _generation
    _inherited.append(_caches)
    _lock, _caches, _generation = threading.Lock(), WeakKeyDictionary(), _generation + 1
    backends.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
