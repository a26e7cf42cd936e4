"""What a worker process does with some documents: sentences, pieces, and on which side of the hold-out each one falls."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertfast.data.arrow import Rows, dtype_for
from bertfast.data.lines import BadLine, Document, Item
from bertfast.data.remarks import LONGEST, MARKER, count_kana
from bertfast.data.sentences import split_sentences
from bertfast.data.tokenizer import Tokenizer

LOOKED_AT = 1 << 12  # characters of a worker's share that are looked at for kana
SIDES = ("train", "eval")


@dataclass
class Work:
    """Items of the stream that go to a worker together, and how to treat them."""

    items: list[Item]
    splitter: str
    holdout: float
    size: int = 0  # characters, and one for each bad line: what shards are measured by


@dataclass
class Encoded:
    """Documents of each side, and what was not taken, in order; `digests` [documents] uint64, hashes of the documents' text.

    `notes` are counts of what `remarks` tells.
    """

    rows: dict[str, Rows]
    skipped: list[BadLine]
    items: int
    size: int
    digests: np.ndarray
    notes: dict[str, int] = field(default_factory=dict)


def digest(document: Document) -> int:
    """A hash of a document's text, 64 bits."""
    return int.from_bytes(hashlib.sha256("\n".join(document.lines).encode()).digest()[:8], "big")


def held_out(digest: int, share: float) -> bool:
    """Whether a document belongs to the held-out corpus: by a hash of its text, so that its place never matters and copies of one
    document are never on both sides."""
    return digest < share * 2.0**64


def encode(tokenizer: Tokenizer, work: Work) -> Encoded:
    """Sentences and pieces of the documents of `work`."""
    documents: list[tuple[Document, list[str]]] = []
    skipped: list[BadLine] = []
    notes = Counter({"headings": 0, "cut": 0})
    for item in work.items:
        if isinstance(item, BadLine):
            skipped.append(item)
            continue
        split = work.splitter == "sentences"
        sentences = [s for line in item.lines for s in (split_sentences(line, tokenizer.language) if split else [line])]
        documents.append((item, sentences))
        notes["headings"] += item.headings
        notes["cut"] += item.cut
        _look(item, notes, tokenizer)
    pieces = iter(tokenizer.ids_batch([sentence for _, sentences in documents for sentence in sentences]))
    sides: dict[str, list[list[list[int]]]] = {side: [] for side in SIDES}
    digests: list[int] = []
    for document, sentences in documents:
        kept = []
        for sentence in sentences:
            if ids := next(pieces):
                kept.append(ids)
            else:
                skipped.append(
                    BadLine(
                        document.where, "no pieces", f"nothing of {sentence[:60]!r} is in the vocabulary's alphabet"
                    )
                )
        if kept:
            digests.append(digest(document))
            sides["eval" if held_out(digests[-1], work.holdout) else "train"].append(kept)
    dtype = dtype_for(tokenizer.vocab_size)
    rows = {side: _rows(documents, dtype) for side, documents in sides.items()}
    for side in rows.values():
        over = side.lengths[side.lengths > LONGEST] - LONGEST
        notes.update(long=len(over), beyond=int(over.sum()), unknown=int((side.ids == tokenizer.unk_id).sum()))
    return Encoded(rows, skipped, len(work.items), work.size, np.array(digests, np.uint64), notes)


def _look(document: Document, notes: Counter[str], tokenizer: Tokenizer) -> None:
    """Counts markers that the tokenizer does not know, and in text that is read as English the kana, in a part of it."""
    markers = sorted({marker for line in document.lines for marker in MARKER.findall(line)})
    notes.update(f"marker {marker}" for marker in markers if marker not in tokenizer.vocab)
    for line in document.lines if tokenizer.language == "en" else ():
        if notes["looked_at"] >= LOOKED_AT:
            return
        text = line[:LOOKED_AT]
        notes["looked_at"] += len(text)
        notes["kana"] += count_kana(text)


def _rows(documents: list[list[list[int]]], dtype: str) -> Rows:
    lengths: list[Any] = [[len(ids) for ids in document] for document in documents]
    return Rows(
        np.array([index for document in documents for ids in document for index in ids], dtype),
        np.array([length for document in lengths for length in document], np.int32),
        np.array([sum(document) for document in lengths], np.int64),
        np.array([len(document) for document in lengths], np.int64),
    )
