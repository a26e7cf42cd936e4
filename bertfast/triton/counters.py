"""Counters on a device by which the programs of a launch find out which of them is the last (`triton.ending`).

They are zero between launches: the last program of a launch leaves them so, which is why no launch needs a memset and a CUDA graph
can be replayed. Two launches that may run at the same time must not share them. Launches of one stream never do, so each stream
has its own, zeroed on that stream when it first asks. Graphs run on other streams than they were captured on, so a capture
gets counters only while somebody captures whose graphs take turns (`capturing`, which `graphs.backend` enters); a launch in any
other capture has none and adds up in a launch of its own. A stream's handle alone says nothing: torch hands out the same few
in turn, so somebody else may capture on it afterwards. While one capture is under way nobody else can capture on its
stream. The thread says nothing either: backward launches on a thread of its own. Nothing here loads Triton.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bertfast import _torch

COUNT = 1024  # of a stream; a launch that needs more has none

_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_streams: dict[tuple[torch.device, int], Tensor] = {}
_captures: dict[tuple[torch.device, int], Tensor] = {}
_under_way: set[tuple[torch.device, int]] = set()  # captures that may use theirs


def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(COUNT, dtype=torch.int32, device=device)


@contextmanager
def capturing(device: torch.device, stream: int) -> Iterator[None]:
    """Give launches counters that are captured on a stream meanwhile.

    Graphs of all captures on that stream that enter this must never run beside one another. The counters are zeroed on the current
    stream, which what is captured has to follow; so enter it before the capture begins.
    """
    place = device, stream
    if place not in _captures:
        made = _zeros(device)
        if type(made) in _PLAIN:  # not a pretended tensor, as under torch's fake mode
            _captures.setdefault(place, made)
    _under_way.add(place)
    try:
        yield
    finally:
        _under_way.discard(place)


def _are_recorded(x: Tensor) -> bool:
    """Whether launches on x are only recorded, never run."""
    return x.device.type == "meta" or type(x) not in _PLAIN


def are_counters(x: Tensor) -> bool:
    """Whether a tensor that a launch took is what `of` gave."""
    if x.dtype != torch.int32 or x.shape != (COUNT,):
        return False
    return _are_recorded(x) or any(x is known for kept in (_streams, _captures) for known in kept.values())


def are_current(x: Tensor) -> bool:
    """Whether `of` would give a launch of now the counters x, which it gave to an earlier one."""
    return _are_recorded(x) or of(x, COUNT) is x


def of(x: Tensor, count: int) -> Tensor | None:
    """Counters, int32 [COUNT], for a launch of now on the device of x that needs `count`; None where it must do without."""
    if count > COUNT:
        return None
    device = x.device
    if _are_recorded(x):
        return x.new_empty(COUNT, dtype=torch.int32)
    stream = 0
    if device.type == "cuda":
        stream = _torch.current_stream(device.index)
        if torch.cuda.is_current_stream_capturing():
            return _captures.get((device, stream)) if (device, stream) in _under_way else None
    kept = _streams.get((device, stream))
    return _streams.setdefault((device, stream), _zeros(device)) if kept is None else kept
