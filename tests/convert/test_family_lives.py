"""The life of an optimised model of each family: copies, files, restore, checkpointing, what transformers records, masked heads."""

import copy
import pickle

import pytest
import torch
from family_cases import (
    HEADS,
    UNPADDED,
    WHOLE,
    Errors,
    call,
    calls_of,
    compare,
    inputs_of,
    kind_of,
    models_of,
    real_of,
    tensors_of,
)
from fuzz.subject import checkpoint_layers
from transformers import AutoModel, GPT2Config, GPT2Model

import bertfast
from bertfast.convert.families import FAMILIES
from bertfast.convert.masked_heads import MASKED_ONLY

by_family = pytest.mark.parametrize("name", FAMILIES)
REAL = real_of("packed")


def hidden(model, family):
    return call(model, inputs_of(family, "Model", "packed"), REAL, train=False)["last_hidden_state"]


@by_family
def test_copies_and_files(name, tmp_path):
    family = FAMILIES[name]
    stock, fast, _ = models_of(family, family.model.__name__)
    before = hidden(fast, family)
    assert list(fast.state_dict()) == list(stock.state_dict())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(other) is type(fast)
        assert torch.equal(hidden(other, family), before)
        assert calls_of(other)[family.encoder.__name__] == {UNPADDED: 1}
        with torch.no_grad():
            other.embeddings.LayerNorm.weight.mul_(2.0)
        assert torch.equal(hidden(fast, family), before)
    fast.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is family.model
    assert loaded.config.architectures == [family.model.__name__]
    assert torch.equal(hidden(loaded, family), hidden(stock, family))
    assert torch.equal(hidden(bertfast.optimize(loaded), family), before)


@by_family
def test_restore_is_exact(name):
    family = FAMILIES[name]
    for head in family.head_names:
        stock, fast, _ = models_of(
            family, head, options={"masked_head": getattr(family.module, head) in family.masked_heads}
        )
        changed = [type(one) is not type(other) for one, other in zip(fast.modules(), stock.modules(), strict=True)]
        assert sum(changed) >= 5  # base model, embeddings, encoder and two layers
        call(fast, inputs_of(family, head, "packed"), REAL, train=False)
        assert bertfast.restore(fast) is fast
        assert [type(m) for m in fast.modules()] == [type(m) for m in stock.modules()]
        assert [m.__dict__.keys() for m in fast.modules()] == [m.__dict__.keys() for m in stock.modules()]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].model.supports_gradient_checkpointing])
def test_gradient_checkpointing(name, reentrant):
    family = FAMILIES[name]
    head = next(head for head in family.head_names if kind_of(head) == "TokenClassification")
    models = models_of(family, head)
    for model in models:
        checkpoint_layers(model, reentrant)
    inputs = inputs_of(family, head, "packed")
    errors = Errors()
    errors.add(*(call(model, inputs, REAL, train=True) for model in (models.fast, models.stock, models.oracle)))
    errors.assert_within_budget("training")
    assert calls_of(models.fast)[family.layer.__name__] == {UNPADDED: 4}  # each layer forward, and again


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_hook_that_gradient_checkpointing_leaves_costs_nothing(name):
    family = FAMILIES[name]
    models, inputs = models_of(family, family.model.__name__), inputs_of(family, "Model", "right")
    models.fast.enable_input_require_grads()
    assert models.fast.get_input_embeddings()._forward_hooks
    compare(models, inputs, real_of("right"))
    counts = calls_of(models.fast)
    assert counts[family.embeddings.__name__] == {"fast": 2}
    assert counts[family.model.__name__] == {WHOLE: 1, "module by module: gradients are enabled": 1}
    models.fast.get_input_embeddings().weight.requires_grad_(False)  # there it makes gradients flow
    assert models.fast(**inputs)[0].requires_grad
    assert calls_of(models.fast)[family.embeddings.__name__]["word_embeddings has hooks"] == 1


@pytest.mark.parametrize("grad", [False, True])
@by_family
def test_hidden_states_and_attentions(name, grad):
    family = FAMILIES[name]
    models = models_of(family, family.model.__name__, attn_implementation="eager")
    inputs = inputs_of(family, "Model", "packed")
    for asked in ("output_hidden_states", "output_attentions"):
        with torch.set_grad_enabled(grad):
            outputs = [model(**inputs, **{asked: True}) for model in (models.fast, models.stock, models.oracle)]
        assert [type(each) for each in outputs] == [type(outputs[1])] * 3
        ours, stock, exact = (tensors_of(each, REAL) for each in outputs)
        assert f"{asked.removeprefix('output_')}[1]" in ours
        errors = Errors()
        errors.add(ours, stock, exact, left_out=["pooler_output"])
        errors.assert_within_budget(asked)


@by_family
def test_masked_heads(name):
    family = FAMILIES[name]
    for kind in family.masked_heads:
        head = kind.__name__
        models = models_of(family, head, options={"masked_head": True})
        inputs = inputs_of(family, head, "packed")
        inputs["labels"] = inputs["labels"].masked_fill(inputs["input_ids"] % 3 > 0, -100)
        ours, stock, exact = (
            call(model, inputs, REAL, train=True) for model in (models.fast, models.stock, models.oracle)
        )
        errors = Errors()
        errors.add(ours, *({key: value for key, value in each.items() if key in ours} for each in (stock, exact)))
        errors.assert_within_budget("training")
        assert calls_of(models.fast)[head] == {MASKED_ONLY: 1}


@pytest.mark.parametrize("name", [name for name, head in HEADS if kind_of(head) == "CausalLM"])
def test_a_decoder_keeps_its_layers(name):
    family = FAMILIES[name]
    head = next(head for head in family.head_names if kind_of(head) == "CausalLM")
    models = models_of(family, head, is_decoder=True)
    encoder = family.encoder_of(models.fast.base_model)
    assert [type(m) for m in (encoder, *encoder.layer)] == [family.encoder, family.layer, family.layer]
    compare(models, inputs_of(family, head, "packed"), REAL)


def test_an_unknown_model_is_refused_by_the_names_of_all_families():
    model = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=11))
    types = [type(m) for m in model.modules()]
    with pytest.raises(bertfast.UnsupportedModelError) as error:
        bertfast.optimize(model)
    assert bertfast.optimize(model, strict=False) is model
    assert [type(m) for m in model.modules()] == types
    for said in (str(error.value), str(bertfast.report(model))):
        assert "GPT2Model" in said
        for family in FAMILIES.values():
            assert f" {family.model_type}" in said
