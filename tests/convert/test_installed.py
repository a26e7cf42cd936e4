"""Whatever transformers is installed: signatures are its own, and code put in the place of stock's is what counts."""

import functools
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from bert_cases import assert_same, batch_of, head_inputs, loss_of, outcome, pair
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.convert import installed

WHOLE = "fast, from ids to hidden states"


def same_as_stock(stock, fast, inputs=None):
    """Inference, and a step in training, at real tokens."""
    inputs = inputs or batch_of("right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        want, got = stock(**inputs), fast(**inputs)
        assert_same(got.last_hidden_state[real], want.last_hidden_state[real])
        assert_same(got.pooler_output, want.pooler_output)
    for model in (stock, fast):
        model.zero_grad()
        loss_of(model.train()(**inputs), inputs["attention_mask"]).backward()
        model.eval()
    for (name, value), ours in zip(stock.named_parameters(), fast.parameters(), strict=True):
        if value.grad is not None and not name.endswith("key.bias"):
            assert_same(ours.grad, value.grad, name, tolerance=1e-4)


def test_arguments_are_bound_by_the_installed_signature():
    def forward(self, first, second=None, *, third=None, **kwargs): ...

    arguments = installed.Arguments(forward)
    assert arguments.names == ("first", "second")
    assert arguments.bind((1, 2), {"third": 3}) == {"first": 1, "second": 2, "third": 3}
    assert arguments.bind((1,), {"first": 2}) is None, "given twice: stock has its own words for that"
    assert arguments.bind((1, 2, 3), {}) is None


@pytest.mark.parametrize("value", [None, False, 0])
def test_a_default_of_an_unknown_argument_asks_for_nothing(value):
    assert installed.unknown({"cache": value}, frozenset()) is None
    assert installed.unknown({"cache": value, "mask": torch.ones(1)}, frozenset()) == "mask"


@pytest.mark.parametrize("arguments", [(None,), (None, None, None, None)])
def test_positional_arguments(arguments):
    stock, fast = pair()
    ids = batch_of("none")["input_ids"]
    with torch.no_grad():
        assert_same(fast(ids, *arguments).last_hidden_state, stock(ids, *arguments).last_hidden_state)


@pytest.mark.parametrize(
    "call", [lambda m: m(1, input_ids=1), lambda m: m(*range(30)), lambda m: m(), lambda m: m(cats=1)]
)
def test_calls_that_stock_refuses(call):
    stock, fast = pair()
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        call(stock)
    with pytest.raises(theirs.type) as ours:
        call(fast)
    assert str(ours.value) == str(theirs.value)


def test_no_warning_that_stock_does_not_give(recwarn):
    stock, fast = pair(train=True)
    inputs = batch_of("right")
    stock(**inputs)
    before = len(recwarn)
    fast(**inputs)
    fast(inputs_embeds=torch.randn(4, 12, 64), attention_mask=inputs["attention_mask"])
    assert [str(w.message) for w in recwarn][before:] == []


def test_signatures_are_stocks():
    """Trainer and PEFT go by the names of the arguments."""
    import inspect

    from bertfast.convert.families import FAMILIES

    for family in FAMILIES.values():
        for stock, fast in (family.fast | family.fast_masked).items():
            assert inspect.signature(fast.forward) == inspect.signature(stock.forward), fast


# ---------------------------------------------------------------- code outside the modules


def scaled(function, factor=0.5):
    @functools.wraps(function)  # as libraries do: it leads back to stock's code
    def other(*args, **kwargs):
        result = function(*args, **kwargs)
        return (result[0] * factor, *result[1:]) if isinstance(result, tuple) else result * factor

    return other


METHODS = [
    (hf.BertEmbeddings, "forward"),
    (hf.BertSelfAttention, "forward"),
    (hf.BertAttention, "forward"),
    (hf.BertSelfOutput, "forward"),
    (hf.BertIntermediate, "forward"),
    (hf.BertOutput, "forward"),
    (hf.BertLayer, "feed_forward_chunk"),
    (hf.BertPooler, "forward"),
    (hf.BertSelfOutput, "__call__"),
    (torch.nn.LayerNorm, "__call__"),
    (torch.nn.LayerNorm, "forward"),
    (torch.nn.Linear, "forward"),
    (F, "scaled_dot_product_attention"),
    (F, "linear"),
]


@pytest.mark.parametrize(("owner", "method"), METHODS, ids=[f"{o.__name__}-{m}" for o, m in METHODS])
def test_code_replaced_on_a_class(monkeypatch, owner, method):
    stock, fast = pair()
    same_as_stock(stock, fast)  # so that what is kept from earlier calls exists
    inputs = batch_of("right")
    before = stock(**inputs).pooler_output
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, scaled(getattr(owner, method)))
        assert not torch.allclose(stock(**inputs).pooler_output, before)
        same_as_stock(stock, fast)
        if owner is not hf.BertPooler:  # that one is called, replaced or not
            assert any(f"{method} was replaced" in r["reason"] for r in bertfast.report(fast).to_dict()["modules"])
    counts = outcome(fast, "BertModel")[WHOLE]
    with torch.no_grad():
        fast(**inputs)
    assert outcome(fast, "BertModel")[WHOLE] == counts + 1


@pytest.mark.parametrize("name", ["sdpa", "eager"])
@pytest.mark.parametrize("how", ["register", "local"])
def test_attention_registered_by_others(monkeypatch, name, how):
    registry = hf.ALL_ATTENTION_FUNCTIONS
    stock, fast = pair(attn_implementation=name)
    same_as_stock(stock, fast)
    function = scaled(registry.get(name, hf.eager_attention_forward))
    table = type(registry)._global_mapping if how == "register" else registry._local_mapping
    monkeypatch.setitem(table, name, function)
    same_as_stock(stock, fast)
    assert f'the attention function "{name}" was replaced' in str(bertfast.report(fast))


def test_mask_registered_by_others(monkeypatch):
    from transformers import masking_utils

    table = type(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping
    stock, fast = pair()
    same_as_stock(stock, fast)
    monkeypatch.setitem(table, "sdpa", lambda *args, **kwargs: None)
    same_as_stock(stock, fast)


def test_a_model_that_runs_during_the_call_of_another_is_not_handed_its_offer():
    """A hook under a classification head, which reads first tokens alone, calls a second optimised model that reads all."""
    stock, fast = pair(hf.BertForSequenceClassification)
    inputs = head_inputs(hf.BertForSequenceClassification, "right")
    other_stock, other = pair(num_hidden_layers=1)
    plain = {name: value for name, value in inputs.items() if name != "labels"}
    real = inputs["attention_mask"].bool()
    seen = []
    fast.bert.embeddings.register_forward_hook(lambda *_: seen.append(other(**plain).last_hidden_state[real]))
    with torch.no_grad():
        assert_same(fast(**inputs).logits, stock(**inputs).logits)
        assert_same(seen[0], other_stock(**plain).last_hidden_state[real])


class Words(torch.nn.Module):
    """Contextual word embeddings: another BERT in the place of the table."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids):
        return self.inner(ids).last_hidden_state


def test_a_model_in_the_place_of_the_word_table():
    stock, fast = pair(hf.BertForSequenceClassification)
    inner_stock, inner = pair(num_hidden_layers=1)
    stock.bert.embeddings.word_embeddings, fast.bert.embeddings.word_embeddings = Words(inner_stock), Words(inner)
    inputs = head_inputs(hf.BertForSequenceClassification, "right")
    with torch.no_grad():
        assert_same(fast(**inputs).logits, stock(**inputs).logits)
    assert "word_embeddings is Words" in str(bertfast.report(fast))


def test_private_names_may_be_gone(monkeypatch):
    """Without the collector, recorded outputs are told by arguments and config; without the registry, `trial` sees it."""
    monkeypatch.setattr(installed, "_active_collector", None)
    assert installed.recorded(None, {"output_hidden_states": True}) == {"hidden_states"}
    assert installed.recorded(None, {}) == frozenset()
    monkeypatch.delattr(installed.modeling_utils, "_CAN_RECORD_REGISTRY")
    installed.record_as(hf.BertModel, hf.BertModel)
    assert installed.attention_implementation(object()) == "unknown"
    monkeypatch.delattr(installed.masking_utils, "bidirectional_mask_function")
    assert not installed.is_bidirectional(lambda *_: True)
    monkeypatch.setattr(installed, "_SUPPORT", {})
    for model in (installed.transformers.PreTrainedModel, hf.BertPreTrainedModel):
        monkeypatch.delattr(model, "_supports_sdpa")
    assert installed.supports_sdpa(hf.BertSelfAttention)


# ---------------------------------------------------------------- releases to come, in processes of their own

RELEASE = """
    import importlib.util, re, sys, types, warnings
    import transformers.models.bert  # a lazy module
    name = "transformers.models.bert.modeling_bert"
    spec = importlib.util.find_spec(name)
    source = open(spec.origin, encoding="utf-8").read()
    {change}
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    sys.path.insert(0, {tests!r})
    import torch, bertfast
    from bert_cases import *
    from test_installed import same_as_stock
    {then}
"""


def next_release(change: str, then: str) -> str:
    folder = __file__.rpartition("/")[0]
    script = textwrap.dedent(RELEASE).format(change=change, then=then, tests=folder)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_renamed_arguments_stay_fast():
    change = 'source = re.sub(r"\\b(past_key_values|cache)_length\\b", "places_before", source)'
    then = 'stock, fast = pair(); same_as_stock(stock, fast); print(outcome(fast, "BertEmbeddings"))'
    assert next_release(change, then).strip() == "{'fast': 2}"


def test_an_argument_nobody_knows_goes_to_stock():
    change = (
        r'source = re.sub(r"(use_cache=use_cache,\s+(cache_position=cache_position,\s+)?position_ids=position_ids,)", '
        r'r"\1 is_causal=True,", source, count=1)'
    )
    then = "stock, fast = pair(); same_as_stock(stock, fast); print(bertfast.report(fast))"
    assert "is_causal was given" in next_release(change, then)


@pytest.mark.parametrize(
    "change",
    [
        'source = source.replace("LayerNorm(hidden_states + input", "LayerNorm(hidden_states * 0.9 + input")',
        'source = source.replace("embeddings = inputs_embeds + token", "embeddings = 2 * inputs_embeds + token")',
        'source = source.replace("embeddings = inputs_embeds + token", "self.pieces = 1; embeddings = inputs_embeds + 2 * token")',
    ],
)
def test_other_numbers_keep_models_stock(change):
    then = """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stock, fast = pair()
        bertfast.optimize(fast)
    same_as_stock(stock, fast)
    assert type(fast) is hf.BertModel
    print(*(w.message for w in caught), bertfast.report(fast), sep="\\n")
    """
    printed = next_release(change, textwrap.dedent(then))
    assert "models stay stock" in printed.splitlines()[0]
    assert "0 of" in printed
    assert printed.count("is not what this bertfast was made for") >= 3


def test_code_replaced_before_bertfast_was_imported():
    script = """
        import functools, sys
        from transformers.models.bert import modeling_bert as hf
        original = hf.BertSelfOutput.forward
        @functools.wraps(original)
        def forward(self, hidden_states, input_tensor):
            return original(self, hidden_states, input_tensor) * 0.5
        hf.BertSelfOutput.forward = forward
        sys.path.insert(0, {tests!r})
        from bert_cases import *
        from test_installed import same_as_stock
        stock, fast = pair(); same_as_stock(stock, fast); print(bertfast.report(fast))
    """
    script = textwrap.dedent(script).format(tests=__file__.rpartition("/")[0])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "BertSelfOutput.forward was replaced" in result.stdout
