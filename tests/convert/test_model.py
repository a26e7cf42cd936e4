"""Calls that BertModel does whole, from ids to hidden states; and those that it must leave to the modules inside."""

import pytest
import torch
from bert_cases import HIDDEN, PADDINGS, VOCAB, assert_same, batch_of, outcome, pair
from transformers.models.bert import modeling_bert as hf

import bertfast

WHOLE = {"fast, from ids to hidden states": 1}


def why(model) -> str:
    """The reason, where the one call so far went module by module."""
    (said,) = outcome(model, "BertModel")
    return said.removeprefix("module by module: ")


def both(inputs, **options):
    stock, fast = pair(**options)
    with torch.no_grad():
        return fast, stock(**inputs), fast(**inputs)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pooler", [True, False])
def test_whole_calls(padding, pooler):
    stock, fast = pair()
    if not pooler:
        stock, fast = hf.BertModel(stock.config, add_pooling_layer=False).eval(), None
        fast = bertfast.optimize(hf.BertModel(stock.config, add_pooling_layer=False).eval())
        fast.load_state_dict(stock.state_dict())
    inputs = batch_of(padding)
    with torch.no_grad():
        want, got = stock(**inputs), fast(**inputs)
    real = inputs["attention_mask"].bool()
    assert_same(got.last_hidden_state[real], want.last_hidden_state[real])
    if padding == "left" and pooler:
        assert why(fast) == "the pooler reads position 0, which is padding in some sequence"
        return
    assert outcome(fast, "BertModel") == WHOLE
    assert not got.last_hidden_state[~real].any()
    assert type(got) is type(want)
    assert got.keys() == want.keys()
    if pooler:
        assert_same(got.pooler_output, want.pooler_output)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32])
@pytest.mark.parametrize("form", ["a row of segments", "a row of positions", "int32 ids", "no segments", "no mask"])
def test_forms_of_input(form, dtype):
    inputs = batch_of("holes")
    inputs["attention_mask"] = inputs["attention_mask"].to(dtype)
    real = inputs["attention_mask"].bool()
    if form == "a row of segments":
        inputs["token_type_ids"] = torch.arange(12)[None] % 2
    if form == "a row of positions":
        inputs["position_ids"] = torch.arange(12).flip(0)[None]
    if form == "int32 ids":
        inputs["input_ids"] = inputs["input_ids"].int()
    if form == "no segments":
        del inputs["token_type_ids"]
    if form == "no mask":
        del inputs["attention_mask"]
    fast, want, got = both(inputs)
    assert outcome(fast, "BertModel") == WHOLE
    assert_same(got.last_hidden_state[real], want.last_hidden_state[real])


def test_ids_are_checked_where_they_are_read():
    _, fast = pair()
    inputs = batch_of("right")
    inputs["input_ids"][1, -1] = -1  # padding
    with torch.no_grad():
        fast(**inputs)
        inputs["input_ids"][1, 0] = VOCAB + 7
        with pytest.raises(IndexError, match=str(VOCAB + 7)):
            fast(**inputs)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output_hidden_states": True}, "output_hidden_states was given"),
        ({"output_attentions": True}, "output_attentions was given"),
        ({"return_dict": False}, "a tuple of outputs was asked for"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("where", ["call", "config"])
def test_what_else_is_asked_for(options, reason, where):
    inputs = batch_of("right")
    stock, fast = pair(attn_implementation="eager")  # sdpa has no attentions to give
    if where == "config":
        for model in (stock, fast):
            for name, value in options.items():
                setattr(model.config, name, value)
        reason = reason if "tuple" in reason else f"config.{next(iter(options))} is set"
    with torch.no_grad():
        want, got = (m(**inputs, **(options if where == "call" else {})) for m in (stock, fast))
    assert why(fast) == reason
    assert type(got) is type(want)
    assert len(got) == len(want)
    real = inputs["attention_mask"].bool()
    assert_same(got[0][real], want[0][real])
    if "output_hidden_states" in options:
        assert_same(got.hidden_states[1][real], want.hidden_states[1][real])


def test_what_trainer_gives_to_the_loss():
    _, fast = pair()
    with torch.no_grad():
        fast(**batch_of("right"), num_items_in_batch=5)
    assert outcome(fast, "BertModel") == WHOLE


@pytest.mark.parametrize("called", [False, True])
def test_a_decoder_made_afterwards(called):
    stock, fast = pair()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        if called:
            fast(**inputs)
        stock.config.is_decoder = fast.config.is_decoder = True
        want, got = (m(**inputs, use_cache=False).last_hidden_state[real] for m in (stock, fast))
    assert_same(got, want)


def test_an_argument_beats_the_config():
    _, fast = pair()
    fast.config.output_hidden_states = True
    with torch.no_grad():
        assert fast(**batch_of("right"), output_hidden_states=False).hidden_states is None
    assert outcome(fast, "BertModel") == WHOLE


def test_what_a_head_above_records():
    stock, fast = pair(hf.BertForSequenceClassification)
    inputs = batch_of("none")
    with torch.no_grad():
        want, got = (m(**inputs, output_hidden_states=True) for m in (stock, fast))
    assert len(got.hidden_states) == len(want.hidden_states)
    for ours, theirs in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("form", ["gradients", "embeddings", "4-D mask", "wide segments", "too long"])
def test_other_calls_go_module_by_module(form):
    stock, fast = pair()
    inputs = batch_of("none")
    if form == "embeddings":
        inputs["inputs_embeds"] = torch.randn(*inputs.pop("input_ids").shape, HIDDEN)
    if form == "4-D mask":
        inputs["attention_mask"] = torch.ones(4, 1, 12, 12, dtype=torch.bool).tril()
    if form == "wide segments":
        inputs["token_type_ids"] = torch.zeros(4, 13, dtype=torch.int64)
    if form == "too long":
        inputs = {"input_ids": torch.ones(1, 41, dtype=torch.int64)}
    with torch.set_grad_enabled(form == "gradients"):
        if form in ("wide segments", "too long"):
            with pytest.raises((ValueError, RuntimeError)):
                fast(**inputs)
        else:
            assert_same(fast(**inputs).last_hidden_state, stock(**inputs).last_hidden_state)
    assert why(fast) != "fast, from ids to hidden states"


@pytest.mark.parametrize("name", ["embeddings", "encoder", "encoder.layer.1", "embeddings.LayerNorm", "pooler", ""])
def test_hooks_are_called(name):
    _, fast = pair()
    seen = []
    fast.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    with torch.no_grad():
        fast(**batch_of("right"))
    assert seen == [name]
    assert (outcome(fast, "BertModel") == WHOLE) == (name in ("pooler", ""))


@pytest.mark.parametrize("name", ["embeddings", "encoder"])
def test_parts_put_in_place_of_ours_are_called(name):
    stock, fast = pair()
    setattr(fast, name, getattr(stock, name))
    inputs = batch_of("none")
    with torch.no_grad():
        assert_same(fast(**inputs).last_hidden_state, stock(**inputs).last_hidden_state)
    assert why(fast) == "its embeddings or its encoder were replaced"


def test_embeddings_of_another_kind_are_called():
    class Embeddings(torch.nn.Module):
        def forward(self, input_ids, **others):
            return torch.ones(*input_ids.shape, HIDDEN)

    stock, fast = pair()
    stock.embeddings = fast.embeddings = Embeddings()
    inputs = batch_of("none")
    with torch.no_grad():
        assert_same(fast(**inputs).last_hidden_state, stock(**inputs).last_hidden_state)


def test_stock_name_and_restore(tmp_path):
    _, fast = pair()
    fast.save_pretrained(tmp_path)
    assert hf.BertModel.from_pretrained(tmp_path).config.architectures == ["BertModel"]
    assert type(bertfast.restore(fast)) is hf.BertModel
