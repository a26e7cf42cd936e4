"""Worker processes that each hold a tokenizer: MeCab and the making of Python lists hold the interpreter lock.

Results come back in the order of the tasks, and never more than a few tasks a worker are in flight, so memory stays bounded
however long the stream of tasks is.
"""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from bertfast.data.tokenizer import Tokenizer, tokenizer_from_files

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD = 3  # for each worker: one at work and two waiting
PR_SET_PDEATHSIG = 1
_tokenizer: Tokenizer | None = None


def _start(files: dict[str, bytes], parent: int) -> None:
    """In a new worker. It dies with its parent, even when that is killed, and leaves Ctrl-C to it."""
    global _tokenizer
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = tokenizer_from_files(files)


def _run(function: Callable[[Tokenizer, Any], Any], task: Any) -> Any:
    assert _tokenizer is not None
    return function(_tokenizer, task)


class WorkerError(RuntimeError):
    """A worker process that died."""


class Workers:
    """`count` processes with the tokenizer of `files`; with a count of 1 everything happens in this process."""

    def __init__(self, count: int, files: dict[str, bytes], tokenizer: Tokenizer | None = None) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._ahead = count * TASKS_AHEAD
        if count > 1:
            # Forking a process that has run threads (torch, tokenizers) can deadlock.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, _start, (files, os.getpid()))
        else:
            self._tokenizer = tokenizer or tokenizer_from_files(files)

    def map(self, function: Callable[[Tokenizer, Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """`function(tokenizer, task)` of each task, in order."""
        if self._pool is None:
            for task in tasks:
                yield function(self._tokenizer, task)
            return
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(_run, function, task))
                if len(waiting) >= self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise WorkerError(
                "a worker process died, most likely because memory ran out: run the command again with fewer workers"
            ) from None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
