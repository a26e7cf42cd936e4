"""Sentence pairs for next-sentence prediction, as Google's create_pretraining_data.py makes them (Devlin et al. 2018).

Document by document: sentences gather in a chunk until it has the target length (max_seq_length less three special tokens; with
probability `short_seq_prob` a random one for the whole document). A is a random number of the chunk's first sentences. In half of
the pairs B is the rest (label 0, IsNext); else, and where the chunk is one sentence, B begins at a random sentence of another
random document (label 1, NotNext) and the chunk's rest goes back, so that the next chunk begins with it. The longer of A and B
loses tokens at its front or back, at random each, until both fit.

Unlike there a chunk has two sentences at least where the document has them. A lone long sentence could only be NotNext: of
Wikipedia's sentences in samples of 64 tokens 62 % of the pairs were, and a model that always says so looks as if it had learnt.

Each document draws from its own stream (seed, epoch, PAIRS, document). A pair is a row of integers: its ids are two slices of the
corpus.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bertfast.data.corpus import Corpus
from bertfast.data.random import HALF, Purpose, Stream, threshold

IS_NEXT, NOT_NEXT, NO_LABEL = 0, 1, -1

# The columns of a row, int64. `document` and `ordinal` (the pair's number in its document) name the sample; the first
# tokens are numbers in the corpus; `label` is IS_NEXT, NOT_NEXT or NO_LABEL, the latter where there is no B.
COLUMNS = ("document", "ordinal", "a_first", "a_length", "b_first", "b_length", "label")
DOCUMENT, ORDINAL, A_FIRST, A_LENGTH, B_FIRST, B_LENGTH, LABEL = range(len(COLUMNS))


@dataclass(frozen=True)
class PairOptions:
    """How documents become samples.

    Attributes:
        max_seq_length: tokens of a sample at most, special tokens among them.
        short_seq_prob: the share of documents that get a random shorter target length.
        nsp: False for samples of one segment, `[CLS] A [SEP]`: as many whole sentences of one document as fit; sentences that are
            longer than a sample are cut, and no token is lost.
    """

    max_seq_length: int = 512
    short_seq_prob: float = 0.1
    nsp: bool = True

    def __post_init__(self) -> None:
        if self.max_seq_length < 5:
            raise ValueError(
                f"max_seq_length={self.max_seq_length}: [CLS] A [SEP] B [SEP] needs at least 5 tokens; 128 and 512 are usual"
            )
        threshold(self.short_seq_prob)

    @property
    def room(self) -> int:
        """Tokens of a sample that are not special."""
        return self.max_seq_length - (3 if self.nsp else 2)


def make_pairs(
    corpus: Corpus, documents: NDArray[np.int64], options: PairOptions, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The samples [pairs, 7] int64 of these documents, in their order; see `COLUMNS`.

    With a single document in the corpus B cannot come from another: every pair is IsNext, and a chunk of one sentence is a sample
    without B and without a label.

    Raises:
        ValueError: where the sentences of a document do not add up to its tokens.
        IndexError: where a document is not in the corpus.
    """
    documents = np.ascontiguousarray(documents, dtype=np.int64)
    if corpus.native is None:
        return make_pairs_reference(corpus, documents, options, seed, epoch)
    return corpus.native.pairs(documents, options.room, threshold(options.short_seq_prob), options.nsp, seed, epoch)


def make_pairs_reference(
    corpus: Corpus, documents: NDArray[np.int64], options: PairOptions, seed: int, epoch: int
) -> NDArray[np.int64]:
    """`make_pairs` in Python."""
    make = _document_pairs if options.nsp else _document_segments
    rows = [row for document in documents.tolist() for row in make(corpus, document, options, seed, epoch)]
    return np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))


def sample_lengths(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens [pairs] int64 of each sample with its special tokens; a sample without B has no second [SEP]."""
    return rows[:, A_LENGTH] + rows[:, B_LENGTH] + 2 + (rows[:, B_LENGTH] > 0)


def _sentence_bounds(corpus: Corpus, document: int) -> list[int]:
    """Where each sentence begins in the corpus, and where the last one ends."""
    if not 0 <= document < corpus.documents:
        raise IndexError(f"document {document} is not among the corpus's {corpus.documents}")
    first, end = corpus.document_tokens[document : document + 2].tolist()
    bounds = (first + np.concatenate([[0], corpus.sentence_lengths(document).cumsum(dtype=np.int64)])).tolist()
    if bounds[-1] != end or any(a >= b for a, b in pairwise(bounds)):
        raise ValueError(
            f"the sentence lengths of document {document} are not all positive or do not add up to its {end - first} tokens: "
            "the corpus is damaged; build it again"
        )
    return bounds


def _target_length(stream: Stream, options: PairOptions) -> int:
    if stream.word() < threshold(options.short_seq_prob):
        return 2 + stream.below(options.room - 1)
    return options.room


def _document_pairs(corpus: Corpus, document: int, options: PairOptions, seed: int, epoch: int) -> list[list[int]]:
    stream = Stream(seed, epoch, Purpose.PAIRS, document)
    bounds = _sentence_bounds(corpus, document)
    sentences = len(bounds) - 1
    target = _target_length(stream, options)
    rows: list[list[int]] = []
    first = 0  # the chunk is sentences first to end
    while first < sentences:
        end = first + 1
        while end < sentences and (end == first + 1 or bounds[end] - bounds[first] < target):
            end += 1
        middle = end if end - first == 1 else first + 1 + stream.below(end - first - 1)
        a, b, label = (bounds[first], bounds[middle]), (bounds[middle], bounds[end]), IS_NEXT
        if corpus.documents > 1 and (end - first == 1 or stream.word() < HALF):
            b = _random_segment(corpus, document, target - (a[1] - a[0]), stream)
            label, end = NOT_NEXT, middle
        elif b[0] == b[1]:
            label = NO_LABEL
        a, b = _truncate(a, b, options.room, stream)
        rows.append([document, len(rows), a[0], a[1] - a[0], b[0], b[1] - b[0], label])
        first = end
    return rows


def _random_segment(corpus: Corpus, document: int, target: int, stream: Stream) -> tuple[int, int]:
    """Tokens of sentences from a random place in a random other document: at least `target` of them where it has as many."""
    other = stream.below(corpus.documents - 1)
    bounds = _sentence_bounds(corpus, other + (other >= document))
    first = stream.below(len(bounds) - 1)
    end = first + 1
    while end < len(bounds) - 1 and bounds[end] - bounds[first] < target:
        end += 1
    return bounds[first], bounds[end]


def _truncate(
    a: tuple[int, int], b: tuple[int, int], room: int, stream: Stream
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Takes tokens off the longer segment (B where they are equal), one draw each, until both fit."""
    segments = [list(a), list(b)]
    sizes = [a[1] - a[0], b[1] - b[0]]
    while sizes[0] + sizes[1] > room:
        longer = 0 if sizes[0] > sizes[1] else 1
        if stream.word() < HALF:
            segments[longer][0] += 1
        else:
            segments[longer][1] -= 1
        sizes[longer] -= 1
    return (segments[0][0], segments[0][1]), (segments[1][0], segments[1][1])


def _document_segments(corpus: Corpus, document: int, options: PairOptions, seed: int, epoch: int) -> list[list[int]]:
    target = _target_length(Stream(seed, epoch, Purpose.PAIRS, document), options)
    bounds = _sentence_bounds(corpus, document)
    rows: list[list[int]] = []
    first, sentence = bounds[0], 0
    while first < bounds[-1]:
        while sentence + 1 < len(bounds) and bounds[sentence + 1] <= first + target:
            sentence += 1
        end = bounds[sentence] if bounds[sentence] > first else first + target
        rows.append([document, len(rows), first, end - first, end, 0, NO_LABEL])
        first = end
    return rows
