"""How a kernel says that it was given a bad id without a synchronisation: it writes the place into pinned host memory.

A kernel clamps what it reads, poisons its own output with NaN, and calls `report`. The host looks here before the next call of
such an op: one read of its own memory. So an error surfaces a call later, as CUDA's own errors do, but the context lives on
and CUDA graphs can hold the kernel. In the interpreter, launchers look at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.triton import launch

SLOTS = 16
_boxes: dict[torch.device, tuple[Tensor, memoryview | None]] = {}
_meanings: dict[int, tuple[type[Exception], str]] = {}


@triton.jit
def report(box_ptr, SLOT: tl.constexpr, place, bad):
    """Where `bad` (a scalar) is true, write that element `place` was bad under SLOT. One 8-byte store: never torn."""
    tl.store(box_ptr + SLOT, place.to(tl.int64) + 1, mask=bad)
    tl.store(box_ptr, tl.full((), SLOT, tl.int64), mask=bad)


def meaning(slot: int, error: type[Exception], text: str) -> int:
    """Say what slot (1 to SLOTS - 1) means; `{place}` in the text is the reported element. Returns the slot."""
    if slot in _meanings or not 0 < slot < SLOTS:
        raise RuntimeError(f"mailbox: slot {slot} is taken or outside 1..{SLOTS - 1}")
    _meanings[slot] = (error, text)
    return slot


def box(device: torch.device) -> Tensor:
    """The mailbox of one device, int64 [SLOTS], to be passed to kernels."""
    if device.type == "meta":
        return torch.empty(SLOTS, dtype=torch.int64, device=device)
    found = _boxes.get(device)
    if found is None:
        found = _boxes[device] = torch.zeros(SLOTS, dtype=torch.int64, pin_memory=not launch.INTERPRETED), None
    return found[0]


def check(device: torch.device) -> None:
    """Raise what an earlier kernel on `device` reported, once."""
    found = _boxes.get(device)
    if found is None:
        return
    view = found[1]
    if view is None:
        view = memoryview(found[0].numpy())  # type: ignore[arg-type]  # numpy < 2.4 hides its buffer
        _boxes[device] = found[0], view
    slot = view[0]
    if slot == 0:
        return
    place = view[slot] - 1
    found[0].zero_()
    error, text = _meanings[slot]
    raise error(text.format(place=place))
