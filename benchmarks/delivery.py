"""What the trainer's own queue delivers: real tokens a second that arrive in one host buffer a batch, and their processor time.

`PretrainLoader` is iterated as the trainer does it, with its worker processes and the batches they are ahead. Each batch is
gathered in one buffer of a small ring, from where one copy could take it to a GPU. The buffers are pinned where torch sees a GPU,
and plain memory elsewhere; the copy to the device is not part of it.
"""

import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from bertfast.data.batches import Batch
from bertfast.data.corpus import Corpus
from bertfast.data.loader import PretrainLoader
from bertfast.data.masking import Vocabulary
from bertfast.data.pairs import PairOptions
from bertfast.data.plan import PretrainDataOptions

TARGET = 1.2e6  # real tokens a second
CORES = 4  # that may be busy with it
CASES = ((128, 16384), (512, 16384))  # (max_seq_length, token budget)
_SLOTS = 4
_ALIGNED = 64  # bytes; every tensor begins at a multiple of it


class Ring:
    """A few buffers of equal size that batches are gathered in, one after another. Batches must have static shapes."""

    def __init__(self, slots: int = _SLOTS) -> None:
        self.pinned = torch.cuda.is_available()
        self._slots = slots
        self._buffers: list[Tensor] = []
        self._next = 0

    def gather(self, batch: Batch) -> Batch:
        """The batch with its tensors as views of one buffer, which is written over as many batches later as there are slots."""
        if not self._buffers:
            self._buffers = [self._buffer(batch) for _ in range(self._slots)]
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % self._slots
        begin = 0

        def place(tensor: Tensor) -> Tensor:
            nonlocal begin
            view = buffer[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            begin += _rounded(tensor.nbytes)
            return view.copy_(tensor)

        return batch.map(place)

    def _buffer(self, batch: Batch) -> Tensor:
        sizes: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            sizes.append(_rounded(tensor.nbytes))
            return tensor

        batch.map(note)
        return torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self.pinned)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


@dataclass(frozen=True)
class Delivery:
    """One case at the full rate of its processes.

    Attributes:
        workers: processes that make batches, beside the one that trains.
        memory: "pinned" or "plain".
        tokens: real tokens, special ones among them.
        seconds: of the wall clock.
        processor_seconds: of all processes together.
        thread_seconds: processor time of the thread that would launch the training step.
    """

    max_seq_length: int
    token_budget: int
    workers: int
    memory: str
    batches: int
    tokens: int
    seconds: float
    processor_seconds: float
    thread_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def cores(self) -> float:
        """Busy cores at the full rate."""
        return self.processor_seconds / self.seconds

    @property
    def cores_at_target(self) -> float:
        """Busy cores where a trainer takes `TARGET` tokens a second and no more."""
        return self.processor_seconds / self.tokens * TARGET

    @property
    def is_enough(self) -> bool:
        return self.tokens_per_second >= TARGET and self.cores_at_target <= CORES

    def row(self) -> dict[str, Any]:
        """For JSON."""
        derived = ("tokens_per_second", "cores", "cores_at_target")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def measure(
    corpus: Corpus, vocabulary: Vocabulary, max_seq_length: int, token_budget: int, workers: int, batches: int = 1500
) -> Delivery:
    """Batches one after another as fast as they come, after those that the workers made while they started."""
    options = PretrainDataOptions(0, token_budget, PairOptions(max_seq_length))
    ring = Ring()
    loader = PretrainLoader(corpus, vocabulary, options, workers=workers, pin_memory=ring.pinned)
    tokens = 0
    with _few_cores(), closing(iter(loader)) as source:
        for batch in islice(source, 8 * max(1, workers)):
            ring.gather(batch)
        before, begin, thread = _processor_seconds(), time.perf_counter(), time.thread_time()
        for batch in islice(source, batches):
            tokens += ring.gather(batch).real_tokens
        thread, seconds = time.thread_time() - thread, time.perf_counter() - begin
        after = _processor_seconds()
    used = sum(after[process] - before[process] for process in after)
    memory = "pinned" if ring.pinned else "plain"
    return Delivery(max_seq_length, token_budget, workers, memory, batches, tokens, seconds, used, thread)


def cases(corpus: Corpus, vocabulary: Vocabulary, workers: list[int], batches: int = 1500) -> Iterator[Delivery]:
    for max_seq_length, token_budget in CASES:
        for count in workers:
            yield measure(corpus, vocabulary, max_seq_length, token_budget, count, batches)


def _processor_seconds() -> dict[int, float]:
    """Of this process and of each of its workers, by process id."""
    tick = os.sysconf("SC_CLK_TCK")
    used = {os.getpid(): time.process_time()}
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        used[child.pid or 0] = (int(fields[11]) + int(fields[12])) / tick  # in user and in system mode
    return used


@contextmanager
def _few_cores() -> Iterator[None]:
    """Without torch's advice not to have more workers than cores, which is one of the things measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def table_of(deliveries: list[Delivery]) -> Table:
    memory = " and ".join(sorted({each.memory for each in deliveries}))
    table = Table(
        title=f"what the trainer's queue delivers into {memory} memory, {os.cpu_count()} cores",
        caption=f"target: {TARGET:,.0f} real tokens/s with at most {CORES} busy cores. 'thread' is processor time of the training "
        "thread a batch; 'cores' are busy at the full rate, 'at target' where a trainer takes just the target",
    )
    for name in ("length", "budget", "workers", "tokens/s", "times the target", "cores", "at target", "thread, ms"):
        table.add_column(name, justify="right")
    for each in deliveries:
        table.add_row(
            str(each.max_seq_length),
            f"{each.token_budget:,}",
            str(each.workers),
            f"{each.tokens_per_second:,.0f}",
            f"{each.tokens_per_second / TARGET:.1f}x",
            f"{each.cores:.2f}",
            f"{each.cores_at_target:.2f}",
            f"{1e3 * each.thread_seconds / each.batches:.2f}",
        )
    return table
