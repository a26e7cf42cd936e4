"""One random state, one dropout: a pass without gradients drops what the pass with them drops, as in stock.

Gradient caching (embed without gradients, then once more with them) and reentrant checkpointing rest on it.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
from bert_cases import HEADS, PADDINGS, assert_same, batch_of, head_inputs, outputs_at_tokens, pair
from captured import captured_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers.models.bert import modeling_bert as hf

ALL = [(head, {}) for head in HEADS] + [(hf.BertModel, {"unpad": False})]
ALL += [(head, {"masked_head": True}) for head in (hf.BertForPreTraining, hf.BertForMaskedLM)]
by_case = pytest.mark.parametrize(("head", "options"), ALL, ids=[f"{h.__name__}-{'-'.join(o)}" for h, o in ALL])


@pytest.mark.parametrize("padding", [*PADDINGS, "mostly"])
@by_case
def test_with_and_without_gradients(head, options, padding):
    _, fast = pair(head, train=True, dropout=0.2, options=options)
    inputs = head_inputs(head, "right" if padding == "mostly" else padding)
    if padding == "mostly":  # one sequence of padding alone, which goes padded beside packed ones
        inputs["attention_mask"] = inputs["attention_mask"].clone()
        inputs["attention_mask"].flatten(0, -2)[-1] = 0
    mask = inputs["attention_mask"].flatten(0, -2)
    results = []
    for grad in (False, True, False):
        torch.manual_seed(5)
        with torch.set_grad_enabled(grad):
            results.append(outputs_at_tokens(fast(**inputs), mask))
    for other in (results[0], results[2]):
        assert other.keys() == results[1].keys()
        for name, value in results[1].items():
            assert_same(other[name], value, name)
    torch.manual_seed(6)
    changed = outputs_at_tokens(fast(**inputs), mask)
    assert any(not torch.equal(changed[name], value) for name, value in results[1].items()), "nothing was dropped"


@pytest.mark.parametrize("only", ["embeddings", "encoder"])
def test_dropout_of_some_modules_in_evaluation(only):
    """Monte Carlo dropout: modules that are in training mode inside a model that is not."""
    _, fast = pair(dropout=0.2)
    getattr(fast, only).train()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    results = []
    for grad in (False, True):
        torch.manual_seed(5)
        with torch.set_grad_enabled(grad):
            results.append(fast(**inputs).last_hidden_state[real])
    assert_same(*results)


@pytest.mark.parametrize("surroundings", [nullcontext, captured_on_cpu], ids=["CPU", "as on a GPU"])
def test_attention_goes_by_its_own_mode(surroundings):
    """In stock a Dropout of probabilities that alone is switched on drops nothing: the attention's mode decides."""
    stock, fast = pair(attention_probs_dropout_prob=0.5)
    for model in (stock, fast):
        for layer in model.encoder.layer:
            layer.attention.self.dropout.train()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    with surroundings():
        for grad in (False, True, True):  # captured the second time
            with torch.set_grad_enabled(grad):
                ours, theirs = (model(**inputs).last_hidden_state[real] for model in (fast, stock))
            assert_same(ours, theirs)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("head", [hf.BertModel, hf.BertForQuestionAnswering, hf.BertForSequenceClassification])
def test_reentrant_checkpointing_around_a_model(head, padding):
    """The gradients are those of the same step without checkpointing."""
    _, plain = pair(head, train=True, dropout=0.2)
    repeated = copy.deepcopy(plain)
    inputs = head_inputs(head, padding)
    mask = inputs["attention_mask"]

    def loss(model, embeds):
        outputs = model(inputs_embeds=embeds, attention_mask=mask)
        return sum(v.square().sum() for v in outputs_at_tokens(outputs, mask).values())

    gradients = []
    for model in (plain, repeated):
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        torch.manual_seed(5)
        if model is plain:
            loss(model, embeds).backward()
        else:
            checkpoint(lambda e, model=model: loss(model, e), embeds, use_reentrant=True).backward()
        gradients.append(
            {n: p.grad for n, p in model.named_parameters() if p.grad is not None} | {"embeds": embeds.grad}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        if not name.endswith("key.bias"):
            assert_same(gradients[1][name], value, name)


def test_gradient_caching_of_sentence_transformers(tmp_path):
    """CachedMultipleNegativesRankingLoss embeds without gradients and then with them; so its step is the uncached loss's step."""
    st = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.losses")
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(94))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    _, fast = pair(train=True, dropout=0.2)
    fast.save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    model = st.SentenceTransformer(str(tmp_path), device="cpu")
    model[0].auto_model = fast
    model.train()
    texts = [[f"w{i} w{i + 1} w{3 * i % 90}" + " w7" * (i % 5) for i in range(start, start + 6)] for start in (0, 20)]
    tokenize = getattr(model, "preprocess", None) or model.tokenize

    def gradients(loss):
        model.zero_grad()
        torch.manual_seed(5)
        loss([tokenize(side) for side in texts], torch.arange(6)).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    cached = gradients(losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=6))
    whole = gradients(losses.MultipleNegativesRankingLoss(model))
    assert cached.keys() == whole.keys()
    assert whole
    for name, value in whole.items():
        if not name.endswith("key.bias"):
            assert_same(cached[name], value, name, tolerance=1e-4)
