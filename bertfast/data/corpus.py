"""A tokenised corpus on disk, opened for reading: memory-mapped Arrow, seen as NumPy arrays without a copy.

A corpus is a folder that `bertfast data build` wrote: one row per document with `input_ids` (the pieces of all its sentences, no
special tokens) and `sentence_lengths`, a `manifest.json` and the tokenizer. Arrow keeps a column in chunks; tokens and
sentences are numbered through all of them, and no document spans two.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertfast import _ext
from bertfast._extras import install
from bertfast.data.tokenizer import Tokenizer, load_tokenizer

FORMAT, VERSION = "bertfast-corpus", 1
_CHECKED_SENTENCES = (
    10_000_000  # sums of lengths are checked at open up to here (0.1 s), beyond it as documents are read
)


class CorpusError(ValueError):
    """A folder that is no corpus, or a damaged one."""


@dataclass
class Chunks:
    """A column's values, in the pieces that Arrow keeps them in, numbered through.

    Attributes:
        arrays: one-dimensional arrays of one dtype, views of mapped memory.
        first: [len(arrays) + 1] int64, the number of each array's first value; the last entry is the total.
    """

    arrays: list[NDArray]
    first: NDArray[np.int64]

    @classmethod
    def of(cls, arrays: list[NDArray]) -> "Chunks":
        """Empty arrays are left out."""
        arrays = [array for array in arrays if len(array)]
        return cls(arrays, np.cumsum([0, *map(len, arrays)], dtype=np.int64))

    def slice(self, begin: int, length: int) -> NDArray:
        """Values begin to begin + length, a view.

        Raises:
            IndexError: where they are not all in one chunk.
        """
        chunk = int(np.searchsorted(self.first, begin, side="right")) - 1
        if begin < 0 or length < 0 or chunk >= len(self.arrays) or begin + length > self.first[chunk + 1]:
            raise IndexError(f"{length} values from {begin} on are not within one chunk of the corpus")
        return self.arrays[chunk][begin - self.first[chunk] :][:length]


class Corpus:
    """Documents as NumPy arrays. Made by `open`, or from arrays in memory.

    Attributes:
        tokens, sentences, documents: how many.
        token_chunks: ids, uint16 or int32.
        length_chunks: tokens of each sentence, int32.
        document_tokens, document_sentences: [documents + 1] int64, the number of each document's first token and sentence.
        manifest: manifest.json as read; {} for arrays in memory.
        folder: where it was opened; None for arrays in memory.
    """

    def __init__(
        self,
        token_chunks: list[NDArray],
        length_chunks: list[NDArray],
        document_tokens: NDArray[np.int64],
        document_sentences: NDArray[np.int64],
        manifest: dict[str, Any] | None = None,
        folder: Path | None = None,
    ):
        where = str(folder) if folder else "corpus in memory"
        self.token_chunks, self.length_chunks = Chunks.of(token_chunks), Chunks.of(length_chunks)
        self.document_tokens, self.document_sentences = document_tokens, document_sentences
        self.manifest, self.folder = manifest or {}, folder
        self.documents = len(document_tokens) - 1
        self.sentences, self.tokens = int(self.length_chunks.first[-1]), int(self.token_chunks.first[-1])
        if self.documents < 1 or self.tokens < 1:
            raise CorpusError(f"{where}: the corpus is empty; build it from text with at least one document")
        if not 0 < self.documents < 2**32:
            raise CorpusError(f"{where}: {self.documents} documents are more than 2**32 - 1; split the corpus")
        for name, bounds, total in (
            ("tokens", document_tokens, self.tokens),
            ("sentences", document_sentences, self.sentences),
        ):
            sizes = np.diff(bounds)
            if sizes.min() < 1:
                raise CorpusError(f"{where}: document {int(sizes.argmin())} has no {name}; build the corpus again")
            if bounds[0] != 0 or bounds[-1] != total:
                raise CorpusError(
                    f"{where}: its documents have {int(bounds[-1])} {name}, its data {total}; build it again"
                )
        self._check_lengths(where)

    def _check_lengths(self, where: str) -> None:
        """Sentence lengths must add up to each document's tokens, as far as `_CHECKED_SENTENCES`."""
        done, documents = 0, 0
        for lengths in self.length_chunks.arrays:
            if done + len(lengths) > _CHECKED_SENTENCES:
                return
            last = int(np.searchsorted(self.document_sentences, done + len(lengths)))
            first = self.document_sentences[documents:last] - done
            sums = np.add.reduceat(lengths, first, dtype=np.int64)
            wrong = (sums != np.diff(self.document_tokens[documents : last + 1])) | (
                np.minimum.reduceat(lengths, first) < 1
            )
            if wrong.any():
                raise CorpusError(
                    f"{where}: the sentence lengths of document {documents + int(wrong.argmax())} are not all positive or do not "
                    "add up to its tokens: the data is damaged; build the corpus again"
                )
            done, documents = done + len(lengths), last

    @classmethod
    def open(cls, folder: str | Path) -> "Corpus":
        """Map a corpus that `bertfast data build` wrote.

        Raises:
            CorpusError: where the folder is no corpus, an unfinished one, of another version, or its data does not agree
                with its manifest.
            ImportError: without the `datasets` package.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        table = _read_table(folder)
        tokens, token_sizes = _column(table, folder, "input_ids", ("uint16", "int32"))
        lengths, sentence_sizes = _column(table, folder, "sentence_lengths", ("int32",))
        corpus = cls(tokens, lengths, _bounds(token_sizes), _bounds(sentence_sizes), manifest, folder)
        for name in ("documents", "sentences", "tokens"):
            if manifest.get(name) != getattr(corpus, name):
                raise CorpusError(
                    f"{folder}: manifest.json says {manifest.get(name)} {name}, the data has {getattr(corpus, name)}: files "
                    "are missing or of another build; build the corpus again"
                )
        return corpus

    @classmethod
    def from_documents(cls, documents: list[list[list[int]]], dtype: type = np.uint16) -> "Corpus":
        """A corpus in memory: documents of sentences of ids."""
        flat: NDArray = np.array([i for document in documents for sentence in document for i in sentence], dtype=dtype)
        lengths = np.array([len(sentence) for document in documents for sentence in document], dtype=np.int32)
        tokens = [sum(map(len, document)) for document in documents]
        return cls([flat], [lengths], _bounds([np.array(tokens)]), _bounds([np.array([len(d) for d in documents])]))

    def document(self, index: int) -> list[NDArray]:
        """The sentences of one document, views of ids."""
        lengths = self.sentence_lengths(index)
        ids = self.token_chunks.slice(
            int(self.document_tokens[index]), int(self.document_tokens[index + 1] - self.document_tokens[index])
        )
        return np.split(ids, np.cumsum(lengths)[:-1])

    def sentence_lengths(self, index: int) -> NDArray[np.int32]:
        """Tokens of each sentence of one document."""
        first, end = self.document_sentences[index : index + 2].tolist()
        return self.length_chunks.slice(first, end - first)

    @cached_property
    def native(self) -> Any:
        """The same arrays for the C++ kernels, or None without the extension."""
        extension = _ext.load()
        if extension is None:
            return None
        return extension.DataCorpus(
            self.token_chunks.arrays, self.length_chunks.arrays, self.document_tokens, self.document_sentences
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader's worker that does not inherit this process's memory maps the files again instead of copying them.
        if self.folder is not None:
            return type(self).open, (self.folder,)
        return type(self), (
            self.token_chunks.arrays, self.length_chunks.arrays, self.document_tokens, self.document_sentences, self.manifest,
        )  # fmt: skip


def corpus_tokenizer(corpus: Corpus) -> Tokenizer:
    """The tokenizer in a corpus's folder. CorpusError where it gives other ids than the one the corpus was built with."""
    assert corpus.folder is not None
    tokenizer = load_tokenizer(corpus.folder / "tokenizer")
    if corpus.manifest.get("tokenizer", {}).get("sha256", tokenizer.sha256) != tokenizer.sha256:
        raise CorpusError(
            f"{corpus.folder / 'tokenizer'} is not the tokenizer that the corpus was built with, by manifest.json: put its files "
            "back, or build the corpus again"
        )
    return tokenizer


def _bounds(sizes: list[NDArray]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), *sizes]).cumsum(dtype=np.int64)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus. CorpusError where the folder is none, or of another version."""
    path = folder / "manifest.json"
    if not path.is_file():
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        inside = (folder / "train" / path.name).is_file()
        advice = "name a folder that `bertfast data build` has finished writing"
        advice = f"it holds two, did you mean {folder / 'train'}?" if inside else advice
        raise CorpusError(f"{folder}: this is no corpus, it {what}; {advice}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(f"{path}: not readable as JSON ({error}); build the corpus again") from None
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else None
    if found != (FORMAT, VERSION):
        raise CorpusError(
            f"{path}: format and version are {found}, this bertfast reads {(FORMAT, VERSION)}; build the corpus with this version"
        )
    return manifest


def _read_table(folder: Path) -> Any:
    """The pyarrow table behind the data set, its rows in the order of the files."""
    try:
        from datasets import Dataset, load_from_disk
    except ImportError as error:
        raise ImportError(f"reading a corpus needs the datasets package: {install('data')}") from error
    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # datasets and pyarrow raise many kinds for missing, cut or foreign files
        raise CorpusError(f"{folder}: the data cannot be read ({error}); build the corpus again") from error
    if not isinstance(found, Dataset) or found._indices is not None:
        raise CorpusError(
            f"{folder}: this is no single plain data set but {type(found).__name__}; build the corpus with `bertfast data build`"
        )
    return found.data.table


def _column(table: Any, folder: Path, name: str, dtypes: tuple[str, ...]) -> tuple[list[NDArray], list[NDArray]]:
    """(values, sizes of the lists) of a list column, an array for each chunk; values are views."""
    if name not in table.column_names:
        raise CorpusError(f"{folder}: column {name} is missing, there are {table.column_names}; build the corpus again")
    column = table.column(name)
    if str(getattr(column.type, "value_type", None)) not in dtypes or column.null_count:
        raise CorpusError(
            f"{folder}: column {name} is {column.type} with {column.null_count} nulls, it must be lists of {' or '.join(dtypes)}; "
            "build the corpus again"
        )
    values, sizes = [], []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        if len(offsets) > 1:
            values.append(chunk.values.to_numpy(zero_copy_only=True)[offsets[0] : offsets[-1]])
            sizes.append(np.diff(offsets))
    return values, sizes
