"""What the captures of all kinds of calls share: when none may be, how torch must be set meanwhile, and what a failure is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

from bertfast import _torch
from bertfast.graphs.backend import Backend
from bertfast.graphs.cache import Cache, Limits

T = TypeVar("T")
REPLAYED, CAPTURED = "replayed", "captured"
NO_MEMORY = "there is no memory for its graph"
_CPU_WORDS = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")  # of torch's RuntimeError
ANOTHER_CAPTURES = "another thread captures"
LET_GO = "its graph was let go meanwhile"


class Failure(NamedTuple):
    """Why a call was not captured."""

    reason: str


def autocast(kind: str) -> torch.dtype | None:
    """Autocast's dtype on a kind of device; None where it is off."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def reason(device: Backend, limits: Limits) -> str | None:
    """Why no call is captured or replayed now, whatever kind of call it is."""
    if limits.max_graphs < 1:
        return "max_graphs is 0"
    if _torch.is_transformed() or _torch.is_watched():
        return "a transform or a dispatch mode is active"
    if device.in_turn():
        return "it is called inside another captured call"
    return "its stream is being captured by its caller" if device.is_capturing() else None


@contextmanager
def plain() -> Iterator[None]:
    """Outside inference mode, without gradients: what is made here, such as joined weights, later calls write to again."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def capturable() -> Iterator[None]:
    """As `plain`, and reading weights where they are: autocast's cached copies of them are gone after its context."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with plain():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def attempt(make: Callable[[], T | Failure], owned: Cache, device: Backend) -> T | Failure:
    """What `make` captures, a second time where memory was short and the owner's other graphs had to go; or why it failed."""
    for more_memory in (True, False):
        try:
            with capturable():
                return make()
        except IndexError:  # of another thread's call: a launcher looks for what an earlier kernel reported
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                return Failure(f"capturing it raised {type(error).__name__}: {error}")
            if not more_memory:
                return Failure(NO_MEMORY)
        owned.evict_all()
        device.collect()
    raise AssertionError("the second try returns")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error says that an allocation failed, on a GPU or on the CPU, or came after one that does.

    Ending a capture that broke off may raise another.
    """
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def as_integers(numbers: torch.Tensor) -> torch.Tensor:
    """The same bits, contiguous, as integers, for which NaN equals NaN."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.element_size()]
    return numbers.contiguous().view(integer)
