"""What captures and replays: a CUDA graph on a GPU, and a stand-in on a CPU that only tests ask for.

The graphs of a device share a memory pool for each kind of call: what one of them leaves in its intermediate memory the next of
its kind overwrites. So one turn is taken at a time, for a replay from filling its inputs to copying its outputs, or for a capture;
a turn on another stream waits for the turn before on the device, not on the host. Graphs that are done with are reset in a turn
too: the last replay may still run. cuBLAS's workspaces are not of these pools (`workspaces`).
"""

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bertfast import _torch
from bertfast.graphs.workspaces import MODE, Workspaces
from bertfast.triton import counters

Function = Callable[[], tuple[Tensor, ...]]
INFERENCE, TRAINING = "inference", "training"  # pools

_PATIENCE = 0.001  # seconds for which a turn is waited for before a look whether somebody captures

_turn = threading.local()


class Pending:
    """A training call between its forward and its backward, whose activations lie in the pool `TRAINING`.

    Attributes:
        over: whether the backward has run. It is over as well when nobody holds this object: no backward can come.
    """

    def __init__(self) -> None:
        self.over = False


class Graph:
    """One captured call.

    Attributes:
        outputs: what the function returned; each replay writes them again.
        nbytes: device memory that it took to capture.
    """

    outputs: tuple[Tensor, ...]
    nbytes: int

    def replay(self, function: Function) -> None:
        """Compute `outputs` from what now lies where the function read it.

        function: the one that was captured. The stand-in calls it again; it is not kept, as it may hold the owner of the graph.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Give back the graph's memory. It cannot be replayed any more."""
        raise NotImplementedError


class Backend:
    """Captures on one device, and says whose turn it is there.

    Attributes:
        device: where inputs of captured functions lie.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._lock = threading.Lock()  # held for a turn
        self._captures = threading.Lock()  # held as well from before a capture's turn until its end
        self._capturing = False
        self._pending: weakref.ref[Pending] | None = None
        self._buried: deque[Callable[[], None]] = deque()

    def warm_up(self, function: Function) -> tuple[Tensor, ...]:
        """The function's results, after which all that a capture of it needs is loaded."""
        raise NotImplementedError

    def capture(self, function: Function, pool: str = INFERENCE) -> Graph:
        """The function as a graph. Its outputs hold no numbers until it is replayed.

        pool: whose intermediate memory it may share, `INFERENCE` or `TRAINING`. Between forward and backward of a training step the
        former may be replayed, and must not overwrite what the step keeps.
        """
        raise NotImplementedError

    def is_capturing(self) -> bool:
        """Whether somebody captures what is launched now."""
        return False

    def settings(self) -> Hashable:
        """Settings of torch that decide which code is captured."""
        return ()

    def active(self) -> AbstractContextManager[Any]:
        """Makes the device the current one."""
        return nullcontext()

    def staged(self, source: Tensor) -> Tensor:
        """The tensor, or a copy of it from which the device copies without the host waiting."""
        return source

    def stream(self) -> Hashable:
        """The caller's stream."""
        return None

    def keep(self, tensors: Sequence[Tensor | None]) -> None:
        """Let memory of these not be given to others while the caller's stream may still read it, whatever stream they are from."""

    def check(self) -> None:
        """Raise what an earlier kernel found wrong with a caller's input."""

    def wait(self) -> None:
        """Wait on the host for what was launched until now."""

    def settle(self) -> None:
        """Wait on the host until the last turn is over on the device."""

    def _follow(self) -> None:
        """Let what is launched now wait on the device for the last turn."""

    def _mark(self) -> None:
        """Remember that the last turn ends here."""

    def in_turn(self) -> bool:
        """Whether this thread has a turn now, on whatever device."""
        return getattr(_turn, "taken", False)

    def begin(self) -> bool:
        """Take a turn for a replay; False while another thread captures, which takes too long to be waited for.

        On the thread that runs backwards no capture is waited for at all, not even one that begins meanwhile: the capture of a
        backward waits for that thread. Every turn that was taken is given back by `end`.
        """
        if not _torch.in_backward():
            return not self._captures.locked() and self._take()
        while not self._captures.locked():
            if self._take(_PATIENCE):
                return True
        return False

    def begin_capture(self) -> bool:
        """Take a turn for a capture; False while another thread captures."""
        if not self._captures.acquire(blocking=False):
            return False
        try:
            self._take()
        except BaseException:
            self._captures.release()
            raise
        self._capturing = True
        try:
            self.collect()
        except BaseException:
            self.end()
            raise
        return True

    def _take(self, timeout: float = -1) -> bool:
        """timeout: in seconds; -1 for none. False where the turn was not free until then."""
        if not self._lock.acquire(timeout=timeout):
            return False
        try:
            self._follow()
        except BaseException:  # a broken device is an error for everybody, not a lock that is never given back
            self._lock.release()
            raise
        _turn.taken = True
        return True

    def is_pending(self) -> bool:
        """Whether the pool `TRAINING` holds activations that a backward is still to read; asked in a turn.

        Until it has, nothing else may be captured into that pool or replayed from it.
        """
        pending = None if self._pending is None else self._pending()
        return pending is not None and not pending.over

    def pend(self) -> Pending:
        """Begin to be pending, in the turn in which a forward is replayed and none is; whose holder may run its backward."""
        pending = Pending()
        self._pending = weakref.ref(pending)
        return pending

    def end(self) -> None:
        """Give the turn back."""
        try:
            self._mark()
        finally:
            _turn.taken = False
            if self._capturing:
                self._capturing = False
                self._captures.release()
            self._lock.release()
        self._release_buried()

    def bury(self, release: Callable[[], None]) -> None:
        """Call `release`, of a graph that nobody will replay, when no turn is taken and the last one is over on the device.

        That is now or when the present turn is given back. Safe from finalisers.
        """
        self._buried.append(release)
        self._release_buried()

    def _release_buried(self) -> None:
        while self._buried and not self.is_capturing() and self._lock.acquire(blocking=False):
            try:
                self.collect()
            finally:
                self._lock.release()

    def collect(self) -> None:
        """Release what was buried; in a turn."""
        if self._buried:
            self.settle()
        while self._buried:
            self._buried.popleft()()


class _CudaGraph(Graph):
    def __init__(self, graph: Any, outputs: tuple[Tensor, ...], nbytes: int, pool: "_Pool"):
        self._graph, self.outputs, self.nbytes, self._pool = graph, outputs, nbytes, pool

    def replay(self, function: Function) -> None:
        self._graph.replay()

    def reset(self) -> None:
        self.outputs = ()
        self._graph.reset()
        self._pool.graphs -= 1


class _Pool:
    """Memory that graphs share.

    torch gives it back when the last graph in it is reset, and refuses to capture into it from then on. The same after a capture
    that broke off, which torch's allocator may still take to be under way.
    """

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.graphs = 0
        self.whole = True

    def takes_more(self) -> bool:
        return self.graphs > 0 and self.whole


class CudaBackend(Backend):
    """CUDA graphs on one GPU."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._pools: dict[str, _Pool] = {}
        self._workspaces: Workspaces | None = None
        self._side: Any = None  # the stream of captures
        self._last: Any = None  # the stream of the last turn, and an event at its end
        self._event: Any = None

    def _stream(self) -> Any:
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        return self._side

    def warm_up(self, function: Function) -> tuple[Tensor, ...]:
        # On the caller's stream: memory of the stream of captures, its workspaces apart, is the pool's alone.
        return function()

    def capture(self, function: Function, pool: str = INFERENCE) -> Graph:
        memory = self._pools.get(pool)
        if memory is None or not memory.takes_more():
            memory = self._pools[pool] = _Pool()
        if self._workspaces is None:
            self._workspaces = Workspaces(self.device)
        graph, side = torch.cuda.CUDAGraph(), self._stream()
        options: Any = {"pool": memory.handle, "stream": side, "capture_error_mode": MODE}
        held = self._workspaces.hold(side)
        try:
            # The outer context leads back to the caller's stream where ending the capture raises: torch's own does not.
            with (
                counters.capturing(self.device, side.cuda_stream),  # graphs of a device take turns
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                torch.cuda.graph(graph, **options),
            ):
                before = torch.cuda.memory_reserved(self.device)  # after torch emptied its cache
                outputs = function()
                grown = torch.cuda.memory_reserved(self.device) - before
        except BaseException:
            memory.whole = False
            self._workspaces.restore(graph, memory.handle, side)
            raise
        del held
        memory.graphs += 1
        return _CudaGraph(graph, outputs, max(grown, 0), memory)

    def is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def settings(self) -> Hashable:
        matmul = torch.backends.cuda.matmul
        return (
            matmul.fp32_precision,
            matmul.allow_bf16_reduced_precision_reduction,
            matmul.allow_fp16_reduced_precision_reduction,
            matmul.allow_fp16_accumulation,
            torch.backends.cuda.preferred_blas_library(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def active(self) -> AbstractContextManager[Any]:
        return nullcontext() if torch.cuda.current_device() == self.device.index else torch.cuda.device(self.device)

    def staged(self, source: Tensor) -> Tensor:
        return source if source.device.type == "cuda" or source.is_pinned() else source.pin_memory()

    def stream(self) -> Hashable:
        return _torch.current_stream(self.device.index)

    def keep(self, tensors: Sequence[Tensor | None]) -> None:
        current = torch.cuda.current_stream(self.device)
        for tensor in tensors:
            if tensor is not None and tensor.is_cuda:
                tensor.record_stream(current)

    def check(self) -> None:
        mailbox: Any = sys.modules.get("bertfast.triton.mailbox")  # not loaded: no kernel of ours has run
        if mailbox is not None:
            mailbox.check(self.device)

    def wait(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def settle(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def _follow(self) -> None:
        if self._event is not None:
            current = torch.cuda.current_stream(self.device)
            if current != self._last:
                current.wait_event(self._event)

    def _mark(self) -> None:
        if self._event is None:
            self._event = torch.cuda.Event()
        self._last = torch.cuda.current_stream(self.device)
        self._event.record(self._last)


class _Repeated(Graph):
    def __init__(self, outputs: tuple[Tensor, ...]):
        self.outputs = tuple(output.clone() for output in outputs)
        self.nbytes = sum(output.nbytes for output in outputs)

    def replay(self, function: Function) -> None:
        for output, new in zip(self.outputs, function(), strict=True):
            output.copy_(new)

    def reset(self) -> None:
        self.outputs = ()


class StandIn(Backend):
    """No graph: a replay calls the function again on the same inputs and copies its results into the same outputs.

    For tests on a CPU of everything around a graph. Tests count and fail by overriding its methods.
    """

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def warm_up(self, function: Function) -> tuple[Tensor, ...]:
        return function()

    def capture(self, function: Function, pool: str = INFERENCE) -> Graph:
        return _Repeated(function())


_lock = threading.Lock()
_backends: dict[torch.device, Backend] = {}
_inherited: list[Any] = []


def of(device: torch.device) -> Backend | None:
    """What captures on a device; None where nothing does, as on a CPU without a stand-in."""
    backend = _backends.get(device)
    if backend is None and device.type == "cuda":
        with _lock:
            backend = _backends.setdefault(device, CudaBackend(device))
    return backend


@contextmanager
def installed(backend: Backend) -> Iterator[None]:
    """Let `backend` capture on its device, in the whole process."""
    before = _backends.get(backend.device)
    _backends[backend.device] = backend
    try:
        yield
    finally:
        if before is None:
            del _backends[backend.device]
        else:
            _backends[backend.device] = before


def forget_after_fork() -> None:
    """In a child process: leave the parent's graphs alone, which a destructor would hand to a driver that is not the child's."""
    global _lock, _backends, _turn
    _inherited.append(_backends)
    _lock, _backends, _turn = threading.Lock(), {}, threading.local()
