"""What captures on a GPU leave in torch besides their graphs: cuBLAS's workspaces, and the state of a capture that broke off."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from bertfast import _torch

# Of captures: other threads may allocate and wait meanwhile. A backward runs on autograd's own thread for the device, not on the
# one that captures. Its launches are captured all the same: a stream is captured whatever thread launches on it, and autograd makes
# the forward's stream current on its thread. Its allocations go to the capture's pool, since torch's allocator asks for the stream
# and not for the thread; where they need memory of the driver, torch asks for it in the relaxed mode while the current stream is
# captured. (CUDA: cudaStreamBeginCapture. torch: c10/cuda/CUDACachingAllocator.cpp, aten/src/ATen/cuda/CUDAGraph.cpp.)
MODE: Any = "thread_local"


def _operands(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # they take part in a backward
        square = torch.zeros(64, 64, dtype=torch.bfloat16, device=device)
        return square, torch.zeros(64, dtype=torch.bfloat16, device=device)


class _InBackward(torch.autograd.Function):
    """Calls a function in backward, where autograd runs it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[], Any]) -> Tensor:
        ctx.function = function
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        ctx.function()
        return dy, None


class Workspaces:
    """cuBLAS's workspaces for captures, in a pool that is never given back.

    torch keeps one workspace for each thread's handle and each stream. Captured backwards run on autograd's thread for the device,
    so there are two of them. torch frees those of a stream when any graph that was captured on it is reset (torch 2.13 among
    others), and all of them when somebody asks for it, as torch.compile's CUDA graphs do around every recording; the other graphs
    go on writing to that memory. So a small capture before each capture, into a pool of which one graph lives for ever, takes the
    workspaces there wherever they are missing. Once freed, captures alone take this memory again, and no `empty_cache` gives it to
    the driver. Graphs that share it take turns.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._square, self._row = _operands(device)
        self._first: Any = None
        self._broken: list[Any] = []  # torch's allocators may ask them on, and must not find them gone
        self._multiply_everywhere()  # loads its kernels, which a capture should not

    def _multiply_everywhere(self) -> None:
        """On this thread, and on autograd's for the device."""
        self._multiply()
        with torch.inference_mode(False), torch.enable_grad():
            leaf = self._row.detach().requires_grad_()  # of this stream: autograd runs a function where its forward ran
            torch.autograd.grad(_InBackward.apply(leaf, self._multiply), leaf, self._row)

    def _multiply(self) -> None:
        torch.mm(self._square, self._square)
        torch.addmm(self._row, self._square, self._square)  # by cuBLASLt, which has a workspace of its own

    def hold(self, stream: Any) -> Any:
        """See to it that captures on `stream` by this thread, backwards among them, find their workspaces here.

        Returns:
            What must live until such a capture is over: the end of a graph may free its stream's workspaces.
        """
        graph = self._captured(self._multiply_everywhere, self._pool, stream)
        if self._first is None:
            self._first = graph
        return graph

    def _captured(self, function: Callable[[], Any], pool: Any, stream: Any) -> Any:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(pool=pool, capture_error_mode=MODE)
                try:
                    function()
                finally:
                    graph.capture_end()
        except BaseException:
            if pool is self._pool:
                if self._first is None:
                    self._pool = torch.cuda.graph_pool_handle()
                self.restore(graph, pool, stream)
            raise
        return graph

    def restore(self, graph: Any, pool: Any, stream: Any) -> None:
        """Undo what a capture into `pool` that broke off leaves behind in torch where ending it raises, as in 2.11 and 2.13.

        For the whole process that is: an allocator that takes the capture to be under way, so that nothing is freed which other
        streams used and a full device gives back no cache; and a default generator that refuses to draw numbers until a capture
        ends well. Never raises: where the device is broken itself, the first error tells of it.
        """
        self._broken.append(graph)
        with suppress(RuntimeError):
            graph.reset()
            _torch.end_capture(self._device.index, pool)
            self._captured(self._square.zero_, torch.cuda.graph_pool_handle(), stream)
