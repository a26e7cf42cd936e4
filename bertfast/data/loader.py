"""The pre-training loader: an endless, resumable sequence of batches that is the same for any number of workers and ranks.

Rank r of R takes global batches r, r + R, ... Worker w of W makes the rank's batches w, w + W, ... and torch's DataLoader hands
them out in turns. Each worker plans every block itself, which costs it about 5 ns a token, and builds only its own batches.
"""

import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bertfast.data.batches import Batch
from bertfast.data.corpus import Corpus
from bertfast.data.masking import Vocabulary
from bertfast.data.plan import Planner, Position, PretrainDataOptions

_PREFETCH = 4  # batches a worker is ahead


class _Made(NamedTuple):
    """A batch, and the position and progress after its step."""

    batch: Batch
    position: Position
    progress: float


class _Sent:
    """A batch on its way out of a worker with all its tensors in one: each one that is sent costs a file descriptor and 0.3 ms."""

    def __init__(self, made: _Made):
        parts: list[Tensor] = []
        self._where: list[tuple[int, int, torch.dtype, torch.Size]] = []

        def gather(tensor: Tensor) -> Tensor:
            part = tensor.contiguous().view(-1).view(torch.uint8)
            begin = sum(map(len, parts))
            self._where.append((begin, begin + len(part), tensor.dtype, tensor.shape))
            # Every tensor begins at a multiple of 8 bytes.
            parts.extend((part, part.new_zeros(-len(part) % 8)))
            return torch.empty(0)

        self._made = made._replace(batch=made.batch.map(gather))
        self._bytes = torch.cat(parts)

    def pin_memory(self) -> "_Sent":
        self._bytes = self._bytes.pin_memory()
        return self

    def received(self) -> _Made:
        """The batch with its tensors as views of what was sent."""
        where = iter(self._where)

        def view(_: Tensor) -> Tensor:
            begin, end, dtype, shape = next(where)
            return self._bytes[begin:end].view(dtype).view(shape)

        return self._made._replace(batch=self._made.batch.map(view))


def _obey_parent_alone(worker: int) -> None:
    """A SIGTERM to all processes (torchrun, a batch system) asks the trainer to save and end, for which it needs its workers.

    Only the trainer's own SIGTERM ends this one: multiprocessing sends it at exit and then waits for the worker's end.
    """
    # Once more for a start by forkserver, which does not inherit what the trainer blocks.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_at_the_word_of, args=(os.getppid(),), daemon=True).start()


def _end_at_the_word_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


@contextmanager
def _blocked_sigterm() -> Iterator[None]:
    """Processes started in here block SIGTERM from their birth on, and so does every thread they have.

    Blocking it in the worker is too late for threads that a library starts as the process forks, as Arrow does with its pool: the
    kernel would hand the signal to one of them. A SIGTERM to this process waits until the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Share(IterableDataset):
    """This worker's part of this rank's batches from a position on."""

    def __init__(self, planner: Planner, start: Position, rank: int, ranks: int):
        self.planner, self.start, self.rank, self.ranks = planner, start, rank, ranks

    def __iter__(self) -> Iterator[_Made | _Sent]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        planner, step, position = self.planner, 0, self.start
        while True:
            own = planner.normal(position._replace(batch=position.batch + self.rank))
            batch = planner.batch(own) if step % workers == worker else None
            position = planner.normal(position._replace(batch=position.batch + self.ranks))
            if batch is not None:
                made = _Made(batch, position, planner.progress(position))
                yield _Sent(made) if info else made
            step += 1


class PretrainLoader:
    """Masked batches of a corpus.

    `for batch in loader` never ends and begins at the loader's position; `state_dict()` is the position after the last batch that
    was handed out, equal on all ranks because ranks run in lockstep. Breaking off and iterating again continues there.

    Args:
        corpus: an open Corpus.
        tokenizer: a Tokenizer, or anything with Vocabulary's attributes.
        options: how batches are made.
        rank, ranks: which share of the global batches this process takes.
        workers: processes that make batches; 0 makes them in this one.
        pin_memory: whether batches lie in pinned memory, for copies to a GPU beside other work.

    Raises:
        ValueError: where the corpus was built with another vocabulary size, or rank is not below ranks.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        options: PretrainDataOptions,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        if not 0 <= rank < ranks:
            raise ValueError(f"rank={rank} is not one of ranks={ranks}")
        vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer)
        built_with = corpus.manifest.get("tokenizer", {}).get("vocab_size", vocabulary.vocab_size)
        if built_with != vocabulary.vocab_size:
            raise ValueError(
                f"the corpus {corpus.folder} was built with {built_with} pieces, this tokenizer has {vocabulary.vocab_size}; "
                "use the tokenizer in the corpus's folder"
            )
        if corpus.documents == 1 and options.pairs.nsp:
            warnings.warn(
                "the corpus has a single document: no pair can take its second segment from another, so every pair is IsNext; "
                "separate documents by blank lines, or switch next-sentence prediction off",
                stacklevel=2,
            )
        self.options, self.rank, self.ranks, self.workers, self.pin_memory = options, rank, ranks, workers, pin_memory
        self._planner = Planner(corpus, vocabulary, options)
        self._position = Position(0, 0, 0)
        self._progress = 0.0

    def __iter__(self) -> Generator[Batch, None, None]:
        share = _Share(self._planner, self._position, self.rank, self.ranks)
        source: Iterator[Any]
        if self.workers:
            loader = DataLoader(
                share,
                batch_size=None,
                num_workers=self.workers,
                prefetch_factor=_PREFETCH,
                pin_memory=self.pin_memory,
                # Its own, so that the seed of workers, who draw nothing, is not taken from the generator of dropout.
                generator=torch.Generator(),
                worker_init_fn=_obey_parent_alone,
            )
            with _blocked_sigterm():
                source = iter(loader)
        else:
            source = iter(share)
        for item in source:
            made = item.received() if isinstance(item, _Sent) else item
            self._position, self._progress = made.position, made.progress
            yield made.batch.pin_memory() if self.pin_memory and not self.workers else made.batch

    @property
    def epoch(self) -> float:
        """Epochs that were handed out, as a fraction of blocks and their batches."""
        return self._progress

    def batches_per_epoch(self) -> int:
        """Global batches in the present epoch; an estimate from its first block where it has several."""
        return self._planner.batches(self._position.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON, the same on all ranks, and what it is a position in."""
        return self._position._asdict() | {"of": self._identity()}

    def _identity(self) -> dict[str, int]:
        corpus = self._planner.corpus
        return {"documents": corpus.documents, "tokens": corpus.tokens, "seed": self.options.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position of a loader with the same corpus and options; ranks and workers may differ.

        Raises:
            ValueError: where the state is no position in this corpus's epochs, or of another seed.
        """
        if state.get("of", self._identity()) != self._identity():
            raise ValueError(
                f"loader state is a position in {state['of']}, this loader has {self._identity()}: resume with the corpus and seed "
                "that the run began with"
            )
        try:
            position = Position(*(int(state[name]) for name in Position._fields))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"loader state {state!r} is no position: it needs {', '.join(Position._fields)}"
            ) from error
        blocks = len(self._planner.documents(position.epoch))
        if min(position) < 0 or position.block >= blocks:
            raise ValueError(
                f"loader state {state!r} is outside the epoch's {blocks} blocks: it belongs to another corpus or other options"
            )
        self._position = self._planner.normal(position)
        self._progress = self._planner.progress(self._position)
