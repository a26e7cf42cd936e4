"""sentence-transformers' `encode`, default sorting, where calls are captured: the same vectors, most batches replayed."""

from collections import Counter

import numpy as np
import pytest
import torch
from bert_cases import outcome
from captured import captured_on_cpu

import bertfast
from bertfast import graphs

sentence_transformers = pytest.importorskip("sentence_transformers")
WORDS, SENTENCES = 200, 200


@pytest.fixture
def folder(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS))]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=len(words), initializer_range=0.2, **sizes)).save_pretrained(tmp_path)
    BertTokenizerFast(str(vocabulary), model_max_length=256).save_pretrained(tmp_path)
    return str(tmp_path)


def sentences():
    """Of 3 to 250 words, most of about 20."""
    generator = np.random.default_rng(8)
    lengths = np.clip(np.exp(generator.normal(3.1, 0.65, SENTENCES)), 3, 250).astype(int)
    return [" ".join(f"w{number}" for number in generator.integers(0, WORDS, length)) for length in lengths]


def hows(model):
    """Calls of the BertModel inside by how they were run."""
    counts = Counter()
    for how, count in outcome(model, "BertModel").items():
        counts[how.removeprefix("fast, from ids to hidden states: ").split(":")[0]] += count
    return counts


def test_encode(folder):
    """Seven batches of 32, longest first, have a bucket each: eager the first time, captured the second, replayed from then on."""
    texts = sentences()
    stock, fast = (sentence_transformers.SentenceTransformer(folder, device="cpu") for _ in range(2))
    bertfast.optimize(fast)
    vectors = stock.encode(texts, show_progress_bar=False)
    batches, seen = -(-SENTENCES // 32), Counter()
    with captured_on_cpu():
        for how in ("eager", "captured", "replayed", "replayed"):
            got = fast.encode(texts, show_progress_bar=False)
            np.testing.assert_allclose(got, vectors, atol=2e-5 * np.abs(vectors).max())
            assert hows(fast) - seen == {how: batches}
            seen = hows(fast)
        assert graphs.memory(fast).graphs == batches
