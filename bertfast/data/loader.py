"""The pre-training loader: an endless, resumable sequence of batches that is the same for any number of workers and ranks.

Rank r of R takes global batches r, r + R, ... Worker w of W makes the rank's batches w, w + W, ... and torch's DataLoader hands
them out in turns. Each worker plans every block itself, which costs it a few nanoseconds a token, and builds only its own batches.
"""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bertfast.data.batches import Batch
from bertfast.data.corpus import Corpus
from bertfast.data.masking import Vocabulary
from bertfast.data.plan import Planner, Position, PretrainDataOptions

_PREFETCH = 4  # batches a worker is ahead


class _Share(IterableDataset):
    """This worker's part of this rank's batches from a position on, each with the position and progress after its step."""

    def __init__(self, planner: Planner, start: Position, rank: int, ranks: int):
        self.planner, self.start, self.rank, self.ranks = planner, start, rank, ranks

    def __iter__(self) -> Iterator[tuple[Batch, Position, float]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        planner, step, position = self.planner, 0, self.start
        while True:
            own = planner.normal(position._replace(batch=position.batch + self.rank))
            batch = planner.batch(own) if step % workers == worker else None
            position = planner.normal(position._replace(batch=position.batch + self.ranks))
            if batch is not None:
                yield batch, position, planner.progress(position)
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
        self.options, self.rank, self.ranks, self.workers, self.pin_memory = options, rank, ranks, workers, pin_memory
        self._planner = Planner(corpus, vocabulary, options)
        self._position = Position(0, 0, 0)
        self._progress = 0.0

    def __iter__(self) -> Iterator[Batch]:
        share = _Share(self._planner, self._position, self.rank, self.ranks)
        source: Any = share
        if self.workers:
            source = DataLoader(
                share, batch_size=None, num_workers=self.workers, prefetch_factor=_PREFETCH, pin_memory=self.pin_memory
            )  # fmt: skip
        for batch, position, progress in source:
            self._position, self._progress = Position(*position), progress
            yield batch.pin_memory() if self.pin_memory and not self.workers else batch

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
