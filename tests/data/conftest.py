"""Small corpora and a vocabulary for the tests of the data pipeline."""

import json

import numpy as np
import pytest

from bertfast import _ext
from bertfast.data.corpus import FORMAT, VERSION
from bertfast.data.masking import Vocabulary

VOCABULARY = 500


@pytest.fixture(scope="session")
def vocabulary():
    """[PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4; a third of the pieces continue a word."""
    ids = np.arange(VOCABULARY)
    return Vocabulary(VOCABULARY, 2, 3, 0, 4, continuation=ids % 3 == 2, special=ids < 5)


@pytest.fixture(scope="session")
def make_documents():
    """Random documents of sentences of ids; documents of one sentence and long sentences among them."""

    def make(documents=60, seed=0, most_sentences=20, most_tokens=40, vocab_size=VOCABULARY):
        random = np.random.default_rng(seed)
        return [
            [
                random.integers(5, vocab_size, random.integers(1, most_tokens + 1)).tolist()
                for _ in range(random.integers(1, most_sentences + 1))
            ]
            for _ in range(documents)
        ]

    return make


@pytest.fixture(scope="session")
def write_corpus():
    """Writes a corpus's folder as `bertfast data build` does, without the tokenizer."""

    def write(folder, documents, dtype="uint16", rows_per_chunk=7, **manifest):
        from datasets import Dataset, Features, List, Value

        features = Features({"input_ids": List(Value(dtype)), "sentence_lengths": List(Value("int32"))})
        rows = {
            "input_ids": [[piece for sentence in document for piece in sentence] for document in documents],
            "sentence_lengths": [[len(sentence) for sentence in document] for document in documents],
        }
        shards = -(-len(documents) // rows_per_chunk)
        Dataset.from_dict(rows, features).save_to_disk(str(folder), num_shards=shards)
        counts = {
            "documents": len(documents),
            "sentences": sum(map(len, documents)),
            "tokens": sum(len(sentence) for document in documents for sentence in document),
        }
        facts = {"format": FORMAT, "version": VERSION, "dtype": dtype, "tokenizer": {"vocab_size": VOCABULARY}} | counts
        (folder / "manifest.json").write_text(json.dumps(facts | manifest))
        return folder

    return write


@pytest.fixture
def needs_extension():
    """Skips where there is no C++ to compare with NumPy."""
    if _ext.load() is None:
        pytest.skip("bertfast._C is not built: there is only the NumPy reference")
