"""The plan of an epoch of pre-training: documents in a random order, cut into blocks; a block's samples packed into batches.

Everything is a function of (data, options, seed, epoch, block), so that every rank and worker makes the same plan and any batch
can be made again. A block bounds memory: only its documents' rows are held, 56 bytes for each sample.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertfast.data.batches import Batch, Layout
from bertfast.data.corpus import Corpus
from bertfast.data.masking import Masker, MaskOptions, Vocabulary
from bertfast.data.packing import best_fit, longest_first
from bertfast.data.pairs import PairOptions, make_pairs, sample_lengths
from bertfast.data.pretraining import Shape, pretraining_batch
from bertfast.data.random import Purpose, permutation

# From this many samples a batch on, shuffled samples fill batches as well as the longest first do (both above 99 %), and
# give all batches of a block the same mixture of lengths.
_SHUFFLED_FROM = 8
# The bound on a batch's samples where none is given, in units of what fits on average, and the least it is. Shuffled batches of
# 8,192 tokens had at most 1.15 times the average; every unused place costs a row of next-sentence prediction.
_SEQUENCES, _FEWEST_SEQUENCES = 1.5, 32


@dataclass(frozen=True)
class PretrainDataOptions:
    """How a corpus becomes batches. The sequence of batches depends on these, the corpus and the vocabulary alone.

    Attributes:
        seed: 0 to 2**64 - 1.
        token_budget: tokens of a packed batch; a padded batch has token_budget // max_seq_length sequences.
        pairs: sizes of samples, and whether there is next-sentence prediction.
        masks: which tokens are predicted.
        layout: "packed" or "padded".
        static_shapes: packed: fill every batch up to the same shapes; padded: pad to max_seq_length rather than to the longest.
        max_sequences: samples of a packed batch at most; None for half as many again as fit on average.
        block_tokens: corpus tokens of a block of documents, about. A block's last batches are partly empty: about half a batch
            in all, so 0.1 % of 512 batches.
    """

    seed: int = 0
    token_budget: int = 8192
    pairs: PairOptions = field(default_factory=PairOptions)
    masks: MaskOptions = field(default_factory=MaskOptions)
    layout: Layout = "packed"
    static_shapes: bool = True
    max_sequences: int | None = None
    block_tokens: int = 1 << 22

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed}: it must be from 0 to 2**64 - 1")
        if self.token_budget < self.pairs.max_seq_length:
            raise ValueError(
                f"token_budget={self.token_budget} is smaller than max_seq_length={self.pairs.max_seq_length}: a batch must hold "
                "the longest sample; raise the one or lower the other"
            )
        if self.layout not in ("packed", "padded"):
            raise ValueError(f"layout={self.layout!r}: choose 'packed' or 'padded'")
        if self.block_tokens < 1 or (self.max_sequences is not None and self.max_sequences < 1):
            raise ValueError(
                f"block_tokens={self.block_tokens} and max_sequences={self.max_sequences} must be at least 1"
            )


class Position(NamedTuple):
    """A place in the endless sequence of batches."""

    epoch: int
    block: int
    batch: int


@dataclass
class Block:
    """A block's samples, and which batch each is in.

    Attributes:
        rows: [samples, 7] int64, as `make_pairs` gives them.
        members: the rows of each batch, in the order of batches.
    """

    rows: NDArray[np.int64]
    members: list[NDArray[np.int64]]


class Planner:
    """Plans epochs and blocks of one corpus and makes their batches.

    The last two plans are kept: at the end of an epoch or block, steps of several ranks look into the next one and back.
    """

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, options: PretrainDataOptions):
        self.corpus, self.vocabulary, self.options = corpus, vocabulary, options
        self.masker = Masker(vocabulary, options.masks, options.pairs.max_seq_length)
        self.documents = lru_cache(2)(self._documents)
        self.rows = lru_cache(2)(self._rows)
        self.block = lru_cache(2)(self._block)
        self.batches = lru_cache(1)(self._batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.corpus, self.vocabulary, self.options)

    @cached_property
    def sequences(self) -> int:
        """Samples of a batch at most. Where it is measured, always on the first block of the first epoch."""
        options = self.options
        if options.layout == "padded":
            return options.token_budget // options.pairs.max_seq_length
        if options.max_sequences is not None:
            return options.max_sequences
        average = options.token_budget / float(sample_lengths(self.rows(0, 0)).mean())
        return max(_FEWEST_SEQUENCES, math.ceil(_SEQUENCES * average))

    @cached_property
    def shape(self) -> Shape | None:
        """What packed batches are filled up to."""
        options = self.options
        if not options.static_shapes or options.layout == "padded":
            return None
        predictions = self.masker.most_predictions(options.token_budget, self.sequences)
        return Shape(options.token_budget, self.sequences, predictions)

    def _documents(self, epoch: int) -> list[NDArray[np.int64]]:
        """The documents of each block of an epoch."""
        order = permutation(self.corpus.documents, self.options.seed, epoch, Purpose.DOCUMENTS)
        ends = np.cumsum(np.diff(self.corpus.document_tokens)[order])
        blocks = max(1, round(self.corpus.tokens / self.options.block_tokens))
        cuts = np.searchsorted(ends, self.corpus.tokens * np.arange(1, blocks) // blocks, side="left") + 1
        return [part for part in np.split(order, cuts) if len(part)]

    def _rows(self, epoch: int, block: int) -> NDArray[np.int64]:
        """A block's samples, shuffled, as `make_pairs` gives them."""
        seed = self.options.seed
        rows = make_pairs(self.corpus, self.documents(epoch)[block], self.options.pairs, seed, epoch)
        return rows[permutation(len(rows), seed, epoch, Purpose.SAMPLES, block)]

    def _block(self, epoch: int, block: int) -> Block:
        """One block's samples and batches."""
        options, rows = self.options, self.rows(epoch, block)
        lengths = sample_lengths(rows)
        if options.layout == "padded":
            batch_of = np.arange(len(rows)) // self.sequences
        else:
            shuffled = options.token_budget >= _SHUFFLED_FROM * options.pairs.max_seq_length
            order = np.arange(len(rows)) if shuffled else longest_first(lengths)
            batch_of = best_fit(lengths, order, options.token_budget, self.sequences)
        sizes = np.bincount(batch_of)
        members = np.split(np.argsort(batch_of, kind="stable"), np.cumsum(sizes)[:-1])
        order = permutation(len(members), options.seed, epoch, Purpose.BATCHES, block)
        return Block(rows, [members[i] for i in order.tolist()])

    def normal(self, position: Position) -> Position:
        """The same place with `batch` inside its block: the end of a block is the beginning of the next one."""
        while position.batch >= len(self.block(position.epoch, position.block).members):
            after = position.batch - len(self.block(position.epoch, position.block).members)
            last = position.block + 1 == len(self.documents(position.epoch))
            position = Position(position.epoch + last, 0 if last else position.block + 1, after)
        return position

    def batch(self, position: Position) -> Batch:
        """The batch at a place that is inside its block."""
        block = self.block(position.epoch, position.block)
        options = self.options
        made = pretraining_batch(
            self.corpus,
            block.rows[block.members[position.batch]],
            self.masker,
            options.seed,
            position.epoch,
            nsp=options.pairs.nsp,
            shape=self.shape,
            layout=options.layout,
            pad_to=options.pairs.max_seq_length if options.static_shapes else None,
        )
        made.position = position._asdict()
        return made

    def progress(self, position: Position) -> float:
        """Epochs before this place."""
        blocks = len(self.documents(position.epoch))
        inside = position.batch / len(self.block(position.epoch, position.block).members)
        return position.epoch + (position.block + inside) / blocks

    def _batches(self, epoch: int) -> int:
        """Batches of an epoch: exact where it is one block, otherwise the first block's times the number of blocks."""
        return len(self.block(epoch, 0).members) * len(self.documents(epoch))
