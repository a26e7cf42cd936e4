"""What a whole call found out serves the next calls, until anything about the model changes."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from bert_cases import assert_same, batch_of, outcome, pair
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.convert import checks, verdicts
from bertfast.ops import packed_linear

pytestmark = pytest.mark.skipif(
    not packed_linear.available(torch.float32, 64), reason="no C++ extension, or no product of ours on this processor"
)


def call(model, **options):
    with torch.no_grad():
        return model(**batch_of("none"), **options)


@pytest.fixture
def models():
    """A stock model and an optimised one whose verdict is kept."""
    stock, fast = pair()
    call(fast)
    assert verdicts.find(fast) is None, "gradients are enabled here"
    with torch.no_grad():
        assert verdicts.find(fast) is not None
    return stock, fast


def has_verdict(fast) -> bool:
    with torch.no_grad():
        return verdicts.find(fast) is not None


def test_the_model_is_looked_through_once(models, monkeypatch):
    stock, fast = models
    monkeypatch.setattr(checks, "layer_reason", None)
    for padding in ("none", "right"):
        inputs = batch_of(padding)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            assert_same(fast(**inputs).last_hidden_state[real], stock(**inputs).last_hidden_state[real])
    monkeypatch.undo()
    counted = {row["kind"]: row["calls"] for row in bertfast.report(fast).to_dict()["modules"]}
    assert counted["BertModel"] == {"fast, from ids to hidden states": 3}
    assert counted["BertEmbeddings"] == {"fast": 3}
    assert counted["BertEncoder"] == counted["BertLayer"] == {"fast, padding removed": 3}


def replaced_linear(model):
    torch.manual_seed(5)
    model.encoder.layer[1].output.dense = nn.Linear(128, 64)


def replaced_activation(model):
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()


def replaced_forward(model):
    attention = model.encoder.layer[0].attention
    original = attention.forward

    def forward(*args, **kwargs):
        found = original(*args, **kwargs)
        return (found[0] * 2, *found[1:]) if isinstance(found, tuple) else found * 2

    attention.forward = forward


def hooked(model):
    model.encoder.layer[1].intermediate.register_forward_hook(lambda module, args, output: output * 2)


def hooked_before(model):
    model.embeddings.word_embeddings.register_forward_pre_hook(lambda module, args: (args[0] * 0 + 1,))


def edited(model):
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight.mul_(2)


def edited_behind(model):
    model.encoder.layer[0].attention.self.query.weight.data.mul_(2)


def edited_table(model):
    model.embeddings.position_embeddings.weight.data.mul_(2)


def new_parameter(model):
    norm = model.embeddings.LayerNorm
    norm.weight = nn.Parameter(norm.weight.detach() * 2)


def new_table(model):
    torch.manual_seed(6)
    model.set_input_embeddings(nn.Embedding(99, 64))


def other_scale(model):
    model.encoder.layer[0].attention.self.scaling = 0.5


def other_eps(model):
    model.encoder.layer[1].output.LayerNorm.eps = 1.0


def new_layer(model):
    model.encoder.layer[0] = copy.deepcopy(model.encoder.layer[1])


def fewer_layers(model):
    del model.encoder.layer[1]


def moved_dtype(model):
    model.double()


CHANGES = [
    replaced_linear,
    replaced_activation,
    replaced_forward,
    hooked,
    hooked_before,
    edited,
    edited_behind,
    edited_table,
    new_parameter,
    new_table,
    other_scale,
    other_eps,
    new_layer,
    fewer_layers,
    moved_dtype,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_seen(models, change):
    stock, fast = models
    before = call(stock).last_hidden_state
    for model in (stock, fast):
        change(model)
    want = call(stock)
    assert want.last_hidden_state.dtype != before.dtype or not torch.equal(want.last_hidden_state, before)
    for _ in range(2):
        got = call(fast)
        assert_same(got.last_hidden_state, want.last_hidden_state)
        assert_same(got.pooler_output, want.pooler_output)


def test_config_is_seen(models):
    _, fast = models
    fast.config.output_hidden_states = True
    assert len(call(fast).hidden_states) == 3
    assert call(fast, output_hidden_states=False).hidden_states is None
    assert len(call(fast).hidden_states) == 3, "what an argument allowed once is no plan"
    fast.config.output_hidden_states = False
    fast.config.return_dict = False
    assert type(call(fast)) is tuple
    call(fast, return_dict=True)
    assert type(call(fast)) is tuple


def test_attention_implementation_is_seen(models):
    _, fast = models
    fast.set_attn_implementation("eager")
    call(fast)
    assert outcome(fast, "BertModel") == {"fast, from ids to hidden states": 2}
    fast.config._attn_implementation = "flash_attention_2"
    assert not has_verdict(fast)


def test_dropout_is_seen(models):
    _, fast = models
    for part in (fast.encoder.layer[0].output.dropout, fast.embeddings.dropout):
        part.p = 0.5
        part.train()
        assert not torch.equal(call(fast).last_hidden_state, call(fast).last_hidden_state)
        part.eval()
    assert torch.equal(call(fast).last_hidden_state, call(fast).last_hidden_state)


def test_autocast_and_global_hooks_are_seen(models):
    _, fast = models
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert verdicts.find(fast) is None
    seen = []
    handle = torch_module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    call(fast)
    handle.remove()
    assert nn.LayerNorm in seen
    assert has_verdict(fast)


def test_restore_and_copies(models):
    stock, fast = models
    twin = pickle.loads(pickle.dumps(copy.deepcopy(fast)))
    assert not has_verdict(twin)
    assert_same(call(twin).last_hidden_state, call(stock).last_hidden_state)
    bertfast.optimize(fast)
    assert not has_verdict(fast)
    call(fast)
    bertfast.restore(fast)
    assert not verdicts._kept.get(fast)
    assert type(fast) is hf.BertModel


@pytest.mark.parametrize("leads_back", [False, True])
def test_a_model_that_is_let_go_is_gone(leads_back):
    fast = pair()[1]
    if leads_back:  # a user's attributes may lead back to the model
        fast.again = fast.get_input_embeddings
        fast.kept = [fast]
    call(fast)
    assert has_verdict(fast)
    gone = weakref.ref(fast)
    del fast
    gc.collect()
    assert gone() is None


def test_no_plan_without_reordered_weights():
    fast = pair(options={"prepack": False})[1]
    call(fast)
    assert not has_verdict(fast)
