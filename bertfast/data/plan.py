"""The plan of an epoch of pre-training: documents in a random order, cut into blocks; a block's samples packed into batches.

Everything is a function of (data, options, seed, epoch, block), so that every rank and worker makes the same plan and any batch
can be made again. A block bounds memory: only its documents' rows are held, 56 bytes for each sample.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

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
# Batches of this many tokens are short of sequences of this length on average; only static shapes are bounded so.
_SHORTEST_MEAN = 32


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
        max_sequences: samples of a packed batch at most; None for token_budget // 32.
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

    @property
    def sequences(self) -> int:
        """Samples of a batch at most."""
        if self.layout == "padded":
            return self.token_budget // self.pairs.max_seq_length
        return self.max_sequences or max(1, self.token_budget // _SHORTEST_MEAN)


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
    """Plans epochs and blocks of one corpus and makes their batches; keeps the last epoch's order and the last block."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, options: PretrainDataOptions):
        self.corpus, self.options = corpus, options
        self.masker = Masker(vocabulary, options.masks, options.pairs.max_seq_length)
        self.shape: Shape | None = None
        if options.static_shapes and options.layout == "packed":
            predictions = self.masker.most_predictions(options.token_budget, options.sequences)
            self.shape = Shape(options.token_budget, options.sequences, predictions)
        self._epoch: tuple[int, list[NDArray[np.int64]]] | None = None
        self._block: tuple[tuple[int, int], Block] | None = None

    def documents(self, epoch: int) -> list[NDArray[np.int64]]:
        """The documents of each block of an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = permutation(self.corpus.documents, self.options.seed, epoch, Purpose.DOCUMENTS)
            ends = np.cumsum(np.diff(self.corpus.document_tokens)[order])
            blocks = max(1, round(self.corpus.tokens / self.options.block_tokens))
            cuts = np.searchsorted(ends, self.corpus.tokens * np.arange(1, blocks) // blocks, side="left") + 1
            self._epoch = epoch, [part for part in np.split(order, cuts) if len(part)]
        return self._epoch[1]

    def block(self, epoch: int, block: int) -> Block:
        if self._block is None or self._block[0] != (epoch, block):
            self._block = (epoch, block), self._plan(epoch, block)
        return self._block[1]

    def _plan(self, epoch: int, block: int) -> Block:
        options, seed = self.options, self.options.seed
        rows = make_pairs(self.corpus, self.documents(epoch)[block], options.pairs, seed, epoch)
        rows = rows[permutation(len(rows), seed, epoch, Purpose.SAMPLES, block)]
        lengths = sample_lengths(rows)
        if options.layout == "padded":
            batch_of = np.arange(len(rows)) // options.sequences
        else:
            shuffled = options.token_budget >= _SHUFFLED_FROM * options.pairs.max_seq_length
            order = np.arange(len(rows)) if shuffled else longest_first(lengths)
            batch_of = best_fit(lengths, order, options.token_budget, options.sequences)
        sizes = np.bincount(batch_of)
        members = np.split(np.argsort(batch_of, kind="stable"), np.cumsum(sizes)[:-1])
        order = permutation(len(members), seed, epoch, Purpose.BATCHES, block)
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

    def batches(self, epoch: int) -> int:
        """Batches of an epoch: exact where it is one block, otherwise the first block's times the number of blocks."""
        return len(self.block(epoch, 0).members) * len(self.documents(epoch))
