"""optimize(masked_head=True): stock's loss and gradients without the logits that nobody needs."""

import copy
import io
import pickle

import pytest
import torch
from bert_cases import assert_same, feed_forward_rows, head_inputs, outcome, pair, tiny_config
from torch import nn
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.convert import masked_heads
from bertfast.convert.families import bert
from bertfast.testing import assert_within_budget, rms_error

HEADS = (hf.BertForPreTraining, hf.BertForMaskedLM)
OPTIONS = {"masked_head": True}
MASKED = {masked_heads.MASKED_ONLY: 1}


def inputs_of(head, padding="right", share=0.4):
    """Labels on some of the real tokens."""
    inputs = head_inputs(head, padding)
    drawn = torch.rand(inputs["labels"].shape, generator=torch.Generator().manual_seed(6))
    inputs["labels"] = inputs["labels"].masked_fill(drawn > share, -100)
    assert 0 < int((inputs["labels"] != -100).sum()) < int(inputs["attention_mask"].sum())
    return inputs


def gradients(model, inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return {"loss": outputs.loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_gradients_within_budget(ours, eager, oracle, each=True):
    """All gradients together within the budget, for the error of two or three numbers is luck; in float32
    each one by its own size too."""
    assert ours.keys() == eager.keys() == oracle.keys()
    names = [name for name in oracle if name != "loss"]
    whole = [torch.cat([side[name].flatten() for name in names]) for side in (ours, eager, oracle)]
    assert_within_budget(*whole, "all gradients", rms_error)
    largest = float(whole[2].abs().max())
    for name, right in oracle.items() if each else ():
        scale = max(float(right.abs().max()), 0.01 * largest)
        assert float((ours[name] - right).abs().max()) <= 1e-4 * scale, name


def logits(outputs):
    return outputs.prediction_logits if "prediction_logits" in outputs.__dataclass_fields__ else outputs.logits


@pytest.mark.parametrize("padding", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_loss_and_gradients_are_stocks(head, padding, autocast):
    stock, fast = pair(head, train=True, options=OPTIONS)
    inputs = inputs_of(head, padding)
    oracle = gradients(copy.deepcopy(stock).double(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours, eager = gradients(fast, inputs), gradients(stock, inputs)
    assert outcome(fast, head.__name__) == MASKED
    assert ours["loss"].dtype == torch.float32
    assert_gradients_within_budget(ours, eager, oracle, each=not autocast)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_bfloat16_weights(head):
    stock, fast = pair(head, train=True, dtype=torch.bfloat16, options=OPTIONS)
    inputs = inputs_of(head)
    found = [gradients(m, inputs) for m in (fast, stock, copy.deepcopy(stock).double())]
    assert outcome(fast, head.__name__) == MASKED
    assert_gradients_within_budget(*found, each=False)


@pytest.mark.parametrize("tie", [True, False])
def test_untied_decoder(tie):
    stock, fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS, tie_word_embeddings=tie)
    assert (fast.cls.predictions.decoder.weight is fast.bert.embeddings.word_embeddings.weight) == tie
    inputs = inputs_of(hf.BertForPreTraining)
    oracle = gradients(copy.deepcopy(stock).double(), inputs)
    assert_gradients_within_budget(gradients(fast, inputs), gradients(stock, inputs), oracle)
    assert outcome(fast, "BertForPreTraining") == MASKED


def test_logits_are_none_in_training_and_stocks_in_evaluation():
    for head in HEADS:
        stock, fast = pair(head, train=True, options=OPTIONS)
        inputs = inputs_of(head)
        outputs = fast(**inputs)
        assert logits(outputs) is None
        if head is hf.BertForPreTraining:
            assert_same(outputs.seq_relationship_logits, stock(**inputs).seq_relationship_logits)
        real = inputs["attention_mask"].bool()
        got, want = fast.eval()(**inputs), stock.eval()(**inputs)
        assert_same(logits(got)[real], logits(want)[real])
        assert_same(got.loss, want.loss)
        with torch.no_grad():  # what reentrant checkpointing does first of a training step
            assert logits(fast.train()(**inputs)) is None


def test_a_hook_sees_the_model_called_as_stock_calls_it():
    for head in HEADS:
        seen = []
        for model in pair(head, train=True, options=OPTIONS):
            model.bert.register_forward_pre_hook(lambda module, args, seen=seen: seen.append([type(a) for a in args]))
            model(**inputs_of(head))
        assert seen[0] == seen[1]


def test_no_masked_token_gives_zero():
    stock, fast = pair(hf.BertForMaskedLM, train=True, options=OPTIONS)
    inputs = inputs_of(hf.BertForMaskedLM)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    found = gradients(fast, inputs)
    assert float(found["loss"]) == 0.0
    assert all(bool((g == 0).all()) for g in found.values())
    assert stock(**inputs).loss.isnan(), "what the docstring says of stock"


def test_a_label_that_is_no_word_is_an_error():
    fast = pair(hf.BertForMaskedLM, train=True, options=OPTIONS)[1]
    inputs = inputs_of(hf.BertForMaskedLM)
    inputs["labels"][0, 1] = 1000
    with pytest.raises(IndexError, match="label 1000 at place 1"):
        fast(**inputs)


def test_the_last_layer_computes_what_is_read(monkeypatch):
    rows = feed_forward_rows(monkeypatch)
    fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS)[1]
    inputs = inputs_of(hf.BertForPreTraining)
    read = inputs["labels"] != -100
    read[:, 0] = True
    gradients(fast, inputs)
    assert rows == [int(inputs["attention_mask"].sum()), int(read.sum())]
    handle = fast.bert.register_forward_hook(lambda module, args, output: None)
    gradients(fast, inputs)
    assert rows[2:] == [int(inputs["attention_mask"].sum())] * 2, "a hook may look at every hidden state"
    handle.remove()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    stock, fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS)
    fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inputs = inputs_of(hf.BertForPreTraining)
    oracle = gradients(copy.deepcopy(stock).double(), inputs)
    assert_gradients_within_budget(gradients(fast, inputs), gradients(stock, inputs), oracle)
    assert outcome(fast, "BertForPreTraining") == MASKED


def test_dropout_repeats_from_a_seed():
    fast = pair(hf.BertForPreTraining, train=True, dropout=0.1, options=OPTIONS)[1]
    inputs = inputs_of(hf.BertForPreTraining)
    runs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        runs.append({name: g.clone() for name, g in gradients(fast, inputs).items()})
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["loss"], runs[2]["loss"])


def test_parts_frozen():
    stock, fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS)
    for model in (stock, fast):
        model.bert.embeddings.requires_grad_(False)
    inputs = inputs_of(hf.BertForPreTraining)
    oracle = gradients(copy.deepcopy(stock).double(), inputs)
    assert_gradients_within_budget(gradients(fast, inputs), gradients(stock, inputs), oracle)


def biasless(model):
    model.cls.predictions.decoder.bias = None


def replaced(model):
    model.cls.predictions.decoder = nn.Sequential(model.cls.predictions.decoder)


CHANGES = {
    "the decoder is wrapped": (replaced, "Sequential, not a plain Linear"),
    "the decoder has no bias": (biasless, "has no bias"),
    "a hook on the decoder": (lambda m: m.cls.predictions.decoder.register_forward_hook(lambda *a: None), "has hooks"),
    "a hook on the head": (lambda m: m.cls.register_full_backward_hook(lambda *a: None), "cls has hooks"),
    "another activation": (lambda m: setattr(m.cls.predictions.transform, "transform_act_fn", nn.ReLU()), "not GELU"),
    "tuples": (lambda m: setattr(m.config, "return_dict", False), "a tuple of outputs"),
    "hidden states": (lambda m: setattr(m.config, "output_hidden_states", True), "output_hidden_states"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_does_not_know_is_stocks(change):
    stock, fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS)
    inputs = inputs_of(hf.BertForPreTraining)
    edit, reason = CHANGES[change]
    for model in (stock, fast):
        edit(model)
    got, want = fast(**inputs), stock(**inputs)
    assert_same(got[0], want[0])
    real = inputs["attention_mask"].bool()
    assert_same(got[1][real], want[1][real])
    (counted,) = outcome(fast, "BertForPreTraining")
    assert counted.startswith("all logits: ")
    assert reason in counted


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions", "tuple", "no labels", "flat labels"])
def test_what_a_call_asks_for(asked):
    stock, fast = pair(hf.BertForMaskedLM, train=True, options=OPTIONS, attn_implementation="eager")
    inputs = inputs_of(hf.BertForMaskedLM, "none")
    if asked == "tuple":
        inputs["return_dict"] = False
    elif asked == "no labels":
        del inputs["labels"]
    elif asked == "flat labels":
        inputs["labels"] = inputs["labels"].flatten()
    else:
        inputs[asked] = True
    got, want = fast(**inputs), stock(**inputs)
    assert type(got) is type(want)
    assert len(got) == len(want)
    assert_same(got[0], want[0])
    assert next(iter(outcome(fast, "BertForMaskedLM"))).startswith("all logits: ")


def test_no_sentence_label_is_no_loss():
    stock, fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS)
    inputs = inputs_of(hf.BertForPreTraining, "none")
    del inputs["next_sentence_label"]
    got, want = fast(**inputs), stock(**inputs)
    assert got.loss is want.loss is None
    assert_same(got.prediction_logits, want.prediction_logits)


def test_restore_and_later_options():
    stock, fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS)
    types = [type(m) for m in stock.modules()]
    bertfast.restore(fast)
    assert [type(m) for m in fast.modules()] == types
    assert [m.__dict__.keys() for m in fast.modules()] == [m.__dict__.keys() for m in stock.modules()]
    bertfast.optimize(fast)
    assert type(fast) is hf.BertForPreTraining
    bertfast.optimize(bertfast.optimize(fast, masked_head=True), masked_head=True)
    assert type(fast) is bert.FastBertForPreTraining
    bertfast.optimize(fast)
    assert type(fast) is hf.BertForPreTraining
    assert "_bertfast" not in fast.__dict__
    assert "BertForPreTraining" not in {row["kind"] for row in bertfast.report(fast).to_dict()["modules"]}


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies(how):
    fast = pair(hf.BertForPreTraining, train=True, options=OPTIONS)[1]
    if how == "deepcopy":
        other = copy.deepcopy(fast)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(fast))
    else:
        buffer = io.BytesIO()
        torch.save(fast, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    inputs = inputs_of(hf.BertForPreTraining)
    ours, theirs = gradients(other, inputs), gradients(fast, inputs)
    for name in theirs:
        assert_same(ours[name], theirs[name], name, 1e-4)
    assert outcome(other, "BertForPreTraining") == MASKED


def test_saved_checkpoints_name_stocks_class(tmp_path):
    fast = pair(hf.BertForPreTraining, options=OPTIONS)[1]
    fast.save_pretrained(tmp_path)
    loaded = hf.BertForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["BertForPreTraining"]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), fast.parameters(), strict=True))


def test_report_has_a_row():
    fast = pair(hf.BertForMaskedLM, train=True, options=OPTIONS)[1]
    report = bertfast.report(fast)
    (row,) = [row for row in report.rows if row.kind == "BertForMaskedLM"]
    assert (row.state, row.reason) == ("fast", "")
    assert any("logits are not made in training" in note for note in report.notes)
    fast.cls.predictions.decoder.register_forward_hook(lambda *a: None)
    (row,) = [row for row in bertfast.report(fast).rows if row.kind == "BertForMaskedLM"]
    assert row.state == "fallback"
    assert "hooks" in row.reason


def test_asking_it_of_a_model_without_such_a_head_changes_nothing():
    model = hf.BertModel(tiny_config())
    types = [type(m) for m in model.modules()]
    with pytest.raises(
        bertfast.UnsupportedModelError, match="needs a masked-LM or pre-training head, and BertModel holds none"
    ):
        bertfast.optimize(model, masked_head=True)
    assert [type(m) for m in model.modules()] == types
