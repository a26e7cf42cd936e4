"""Corpora on disk: views of mapped memory, and errors that say what is wrong."""

import json
import pickle
import shutil

import numpy as np
import pytest

from bertfast.data.corpus import Corpus, CorpusError


def test_open_gives_the_documents_back(tmp_path, write_corpus, make_documents):
    for dtype in ("uint16", "int32"):
        documents = make_documents(30)
        corpus = Corpus.open(write_corpus(tmp_path / dtype, documents, dtype))
        assert (corpus.documents, corpus.sentences) == (30, sum(map(len, documents)))
        assert len(corpus.token_chunks.arrays) == 5, "the fixture must make several chunks"
        assert corpus.token_chunks.arrays[0].dtype == dtype
        for index, document in enumerate(documents):
            assert [sentence.tolist() for sentence in corpus.document(index)] == document


def test_arrays_are_views_of_mapped_memory(tmp_path, write_corpus, make_documents):
    corpus = Corpus.open(write_corpus(tmp_path / "c", make_documents(30)))
    for array in (*corpus.token_chunks.arrays, *corpus.length_chunks.arrays, corpus.document(3)[0]):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_in_memory_equals_opened(tmp_path, write_corpus, make_documents):
    documents = make_documents(20)
    opened, made = Corpus.open(write_corpus(tmp_path / "c", documents)), Corpus.from_documents(documents)
    assert np.array_equal(opened.document_tokens, made.document_tokens)
    assert np.array_equal(opened.document_sentences, made.document_sentences)
    assert np.array_equal(np.concatenate(opened.token_chunks.arrays), made.token_chunks.arrays[0])


def test_travels_to_another_process_by_its_folder(tmp_path, write_corpus, make_documents):
    corpus = Corpus.open(write_corpus(tmp_path / "c", make_documents(300)))
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000
    assert pickle.loads(sent).document(7)[0].tolist() == corpus.document(7)[0].tolist()


def test_slices_stay_within_a_chunk(tmp_path, write_corpus, make_documents):
    corpus = Corpus.open(write_corpus(tmp_path / "c", make_documents(20)))
    chunks = corpus.token_chunks
    bounds = chunks.first.tolist()
    assert len(chunks.slice(bounds[1] - 2, 2)) == 2
    for begin, length in ((bounds[1] - 2, 3), (-1, 1), (bounds[-1], 1), (bounds[-1] - 1, 2), (0, -1)):
        with pytest.raises(IndexError, match="not within one chunk"):
            chunks.slice(begin, length)


def damage_counts(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"tokens": manifest["tokens"] + 1}))


def cut_data(folder):
    path = next(folder.glob("data-*.arrow"))
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), ("no manifest.json", "data build")),
        (lambda folder: (folder / "manifest.json").write_text("{"), ("not readable as JSON",)),
        (lambda folder: (folder / "manifest.json").write_text('{"format": "x"}'), ("('x', None)", "bertfast-corpus")),
        (damage_counts, ("tokens", "files are missing", "again")),
        (cut_data, ("cannot be read", "again")),
        (lambda folder: next(folder.glob("data-*.arrow")).unlink(), ("cannot be read",)),
        (shutil.rmtree, ("does not exist",)),
    ],
)
def test_errors_name_the_folder_and_what_to_do(tmp_path, write_corpus, make_documents, damage, words):
    folder = write_corpus(tmp_path / "c", make_documents(5))
    damage(folder)
    with pytest.raises(CorpusError, match=r"[/\\]c") as caught:
        Corpus.open(folder)
    for word in words:
        assert word in str(caught.value)


def test_wrong_columns_are_refused(tmp_path, write_corpus, make_documents):
    from datasets import Dataset

    folder = write_corpus(tmp_path / "c", make_documents(5), "int64")
    with pytest.raises(CorpusError, match="must be lists of uint16 or int32"):
        Corpus.open(folder)
    shutil.rmtree(folder)
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(folder))
    (folder / "manifest.json").write_text('{"format": "bertfast-corpus", "version": 1}')
    with pytest.raises(CorpusError, match="column input_ids is missing"):
        Corpus.open(folder)


def test_empty_and_damaged_lengths_are_refused():
    with pytest.raises(CorpusError, match="empty"):
        Corpus.from_documents([])
    with pytest.raises(CorpusError, match="document 1 has no tokens"):
        Corpus.from_documents([[[5]], []])
    ids, bounds = np.arange(6, dtype=np.uint16), np.array([0, 3, 6])
    for wrong in ([1, 2, 2, 2], [1, 2, 4, -1], [1, 2, 0, 3]):
        with pytest.raises(CorpusError, match="sentence lengths of document 1"):
            Corpus([ids], [np.array(wrong, dtype=np.int32)], bounds, np.array([0, 2, 4]))
