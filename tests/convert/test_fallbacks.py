"""What sends a call to the stock code: numbers stay stock's, and report() says why."""

import copy
import re

import pytest
import torch
from bert_cases import assert_same, batch_of, outcome, pair, tiny_config
from torch import nn
from transformers import AlbertConfig, AlbertModel
from transformers.models.bert import modeling_bert as hf

import bertfast

FAST, UNPADDED = "fast", "fast, padding removed"


def hidden(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def check(stock, fast, reason, kind="BertLayer"):
    """Same numbers at real tokens, and the reason is among those that `kind` gave."""
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    assert_same(hidden(fast, inputs)[real], hidden(stock, inputs)[real])
    reasons = outcome(fast, kind)
    assert any(reason in how for how in reasons), reasons
    return reasons


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.tool("transformers", "output_hidden_states (such calls stay padded)", "fast")
def test_hidden_states(how):
    stock, fast = pair(**({"output_hidden_states": True} if how == "config" else {}))
    inputs = batch_of("right") | ({"output_hidden_states": True} if how == "argument" else {})
    want, got = stock(**inputs).hidden_states, fast(**inputs).hidden_states
    assert len(got) == len(want) == 3
    real = inputs["attention_mask"].bool()
    for ours, theirs in zip(got, want, strict=True):
        assert_same(ours[real], theirs[real])
        assert ours.shape == theirs.shape
    assert outcome(fast, "BertLayer") == {FAST: 1}
    assert outcome(fast, "BertEncoder") == {"kept padded: hidden_states were asked for": 1}


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.tool("transformers", "output_attentions", "falls back")
def test_attentions(how):
    stock, fast = pair(attn_implementation="eager", **({"output_attentions": True} if how == "config" else {}))
    inputs = batch_of("right") | ({"output_attentions": True} if how == "argument" else {})
    want, got = stock(**inputs).attentions, fast(**inputs).attentions
    assert len(got) == len(want) == 2
    for ours, theirs in zip(got, want, strict=True):
        assert_same(ours, theirs)
    assert outcome(fast, "BertLayer") == {"attentions were asked for": 1}


def test_unpadding_comes_back_after_hidden_states_were_asked_for_once():
    stock, fast = pair()
    inputs = batch_of("right")
    fast(**inputs, output_hidden_states=True)
    check(stock, fast, UNPADDED, "BertEncoder")


def test_restore_after_recording_is_exact():
    stock, fast = pair()
    inputs = batch_of("right")
    fast(**inputs, output_hidden_states=True)
    bertfast.restore(fast)
    assert torch.equal(hidden(fast, inputs), hidden(stock, inputs))


@pytest.mark.parametrize("then", ["restore", "optimize"])
def test_a_recorded_call_that_raised(then):
    """transformers 5.0 and 5.1 leave their recorders on the modules then."""
    stock, fast = pair(attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    for model in (stock, fast):
        with pytest.raises((IndexError, ValueError)):
            model(torch.full((2, 5), 1234), **asked)
    if then == "restore":
        bertfast.restore(fast)
        inputs = batch_of("right")
        assert torch.equal(hidden(fast, inputs), hidden(stock, inputs))
    else:
        bertfast.optimize(fast)
        check(stock, fast, UNPADDED, "BertEncoder")
        assert outcome(fast, "BertLayer") == {UNPADDED: 1}
        bertfast.optimize(stock)  # recorders left behind before the first optimize
        check(fast, stock, UNPADDED, "BertEncoder")


CHILDREN = (
    "attention",
    "attention.self",
    "attention.self.query",
    "attention.output.LayerNorm",
    "intermediate",
    "intermediate.intermediate_act_fn",
    "output.dense",
)


@pytest.mark.tool("PyTorch", "hooks on parts of a layer", "falls back")
@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_fused_children_run(child, kind):
    stock, fast = pair()
    seen = []
    handle = getattr(fast.encoder.layer[0].get_submodule(child), kind)(lambda *args: seen.append(child))
    check(stock, fast, "has hooks")
    assert seen == [child]
    handle.remove()
    check(stock, fast, UNPADDED)


@pytest.mark.tool("PyTorch", "hooks on layers", "fast")
def test_hooks_on_a_layer_see_padded_tensors_and_keep_it_fast():
    stock, fast = pair()
    shapes = []
    fast.encoder.layer[1].register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    reasons = check(stock, fast, FAST)
    assert shapes == [(4, 12, 64)]
    assert reasons == {FAST: 1}


def test_a_hook_may_replace_a_layers_output():
    stock, fast = pair()
    for model in (stock, fast):
        model.encoder.layer[0].register_forward_hook(lambda module, args, output: output * 0.5)
    check(stock, fast, "layer 0: it has hooks", "BertEncoder")


def test_full_backward_hooks_fire():
    _, fast = pair(train=True)
    seen = []
    fast.encoder.layer[0].output.dense.register_full_backward_hook(lambda module, *args: seen.append(module))
    fast(**batch_of("right")).pooler_output.sum().backward()
    assert len(seen) == 1


def test_global_hooks_run():
    stock, fast = pair()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *args: seen.append(module))
    try:
        check(stock, fast, "global module hooks")
    finally:
        handle.remove()
    assert fast.encoder.layer[0].attention.self.query in seen


@pytest.mark.tool("PyTorch", "parametrised weights", "falls back")
def test_parametrised_weights():
    stock, fast = pair()
    for model in (stock, fast):
        nn.utils.parametrizations.weight_norm(model.encoder.layer[0].intermediate.dense)
    check(stock, fast, "not a plain Linear")


def test_replaced_forward():
    stock, fast = pair()
    for model in (stock, fast):
        dense = model.encoder.layer[0].output.dense
        dense.forward = lambda x, dense=dense: nn.functional.linear(x, dense.weight * 2, dense.bias)
    check(stock, fast, "forward of output.dense was replaced")


class Wrapped(nn.Module):
    """Someone's module in the place of a stock one, with none of its attributes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("name", ["attention", "attention.self"])
def test_replaced_attention(name):
    stock, fast = pair()
    for model in (stock, fast):
        layer = model.encoder.layer[0]
        layer.set_submodule(name, Wrapped(layer.get_submodule(name)))
    check(stock, fast, f"{name} is Wrapped")


@pytest.mark.tool("PyTorch", "dynamic quantisation", "falls back")
def test_dynamic_quantisation():
    fast = pair()[1]
    quantised = torch.ao.quantization.quantize_dynamic(fast, {nn.Linear}, dtype=torch.qint8)
    assert hidden(quantised, batch_of("right")).isfinite().all()
    assert any("not a plain Linear" in how for how in outcome(quantised, "BertLayer"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes_without_a_kernel_stay_stock(dtype):
    stock, fast = pair(dtype=dtype)
    inputs = batch_of("right")
    assert torch.equal(hidden(fast, inputs), hidden(stock, inputs))
    assert any(str(dtype) in how for how in outcome(fast, "BertLayer"))


def test_a_layer_of_another_dtype_is_left_to_stock():
    stock, fast = pair()
    for model in (stock, fast):
        model.encoder.layer[1].bfloat16()
        with pytest.raises(RuntimeError, match="dtype"):
            hidden(model, batch_of("right"))


def test_an_attention_function_of_the_user_is_called():
    stock, fast = pair()
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("counting", counting)
    AttentionMaskInterface.register("counting", sdpa_mask)
    fast.set_attn_implementation("counting")
    check(stock, fast, 'attention implementation is "counting"')
    assert len(calls) == 2


def test_decoder_layers_are_left_untouched_and_reported():
    torch.manual_seed(0)
    stock = hf.BertLMHeadModel(tiny_config(is_decoder=True, add_cross_attention=True)).eval()
    model = bertfast.optimize(copy.deepcopy(stock))
    assert type(model.bert.encoder) is hf.BertEncoder
    assert {type(layer) for layer in model.bert.encoder.layer} == {hf.BertLayer}
    rows = bertfast.report(model).to_dict()["modules"]
    assert all("decoder" in row["reason"] for row in rows if row["kind"] != "BertEmbeddings")
    inputs = batch_of("right") | {"encoder_hidden_states": torch.randn(4, 5, 64)}
    with torch.no_grad():
        assert_same(model(**inputs).logits, stock(**inputs).logits)


@pytest.mark.tool("transformers", "past_key_values", "falls back")
def test_a_cache_goes_to_stock():
    from transformers import DynamicCache

    stock, fast = pair()
    inputs = batch_of("none", types=False)
    prefix = [(torch.randn(4, 2, 3, 32), torch.randn(4, 2, 3, 32)) for _ in range(2)]
    inputs["attention_mask"] = torch.ones(4, 15, dtype=torch.long)
    want, got = (hidden(m, inputs | {"past_key_values": DynamicCache(prefix)}) for m in (stock, fast))
    assert_same(got, want)


@pytest.mark.tool("transformers", "models of other families", "refused")
@pytest.mark.parametrize(
    "model",
    [
        AlbertModel(AlbertConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=50)),
        nn.Linear(2, 2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_models_are_refused_by_name(model):
    said = rf"{type(model).__name__}.*supported families: bert, roberta, xlm-roberta, .*, mpnet"
    if isinstance(model, AlbertModel):
        said += r"\. For an encoder's attention alone call bertfast\.register_attention\(\) and .*attn_implementation=\"bertfast\""
    with pytest.raises(bertfast.UnsupportedModelError, match=said):
        bertfast.optimize(model)
    assert bertfast.optimize(model, strict=False) is model
    assert re.search(said, str(bertfast.report(model)))


@pytest.mark.tool("transformers", "position_embedding_type other than absolute", "refused")
def test_relative_positions_are_refused():
    model = hf.BertModel(tiny_config())
    model.config.position_embedding_type = "relative_key"
    with pytest.raises(bertfast.UnsupportedModelError, match="relative_key"):
        bertfast.optimize(model)
    assert type(bertfast.optimize(model, strict=False)) is hf.BertModel
    assert all("relative_key" in row.reason for row in bertfast.report(model).rows)


def test_not_a_module():
    with pytest.raises(TypeError, match="str"):
        bertfast.optimize("bert-base")
