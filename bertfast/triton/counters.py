"""Counters on a device by which the programs of a launch find out which of them is the last (`triton.ending`).

They are zero between launches: the last program of a launch leaves them so, which is why no launch needs a memset and a CUDA graph
can be replayed. Two launches that may run at the same time must not share them. Launches of one stream never do, so each stream
has its own, zeroed on that stream when it first asks. Graphs run on other streams than they were captured on, so a capture
gets counters only where somebody said that the graphs captured on that stream take turns (`prepare`, which `graphs.backend`
calls); a launch in any other capture has none and adds up in a launch of its own. Nothing here loads Triton.
"""

import torch
from torch import Tensor

from bertfast import _torch

COUNT = 1024  # of a stream; a launch that needs more has none

_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_streams: dict[tuple[torch.device, int], Tensor] = {}
_captures: dict[tuple[torch.device, int], Tensor] = {}


def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(COUNT, dtype=torch.int32, device=device)


def prepare(device: torch.device, stream: int) -> None:
    """Give captures on a stream counters. Their graphs must never run beside one another, nor beside other work of that stream.

    The counters are zeroed on the current stream, which what is captured has to follow.
    """
    if (device, stream) not in _captures:
        made = _zeros(device)
        if type(made) in _PLAIN:  # not a pretended tensor, as under torch's fake mode
            _captures.setdefault((device, stream), made)


def of(x: Tensor, count: int) -> Tensor | None:
    """Counters, int32 [COUNT], for a launch of now on the device of x that needs `count`; None where it must do without."""
    if count > COUNT:
        return None
    device = x.device
    if device.type == "meta" or type(x) not in _PLAIN:  # recorded, never run
        return x.new_empty(COUNT, dtype=torch.int32)
    stream = 0
    if device.type == "cuda":
        stream = _torch.current_stream(device.index)
        if torch.cuda.is_current_stream_capturing():
            return _captures.get((device, stream))
    found = _streams.get((device, stream))
    return _streams.setdefault((device, stream), _zeros(device)) if found is None else found
