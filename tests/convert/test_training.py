"""Training through the drop-in: dropout that repeats, checkpointing, autocast, parts frozen, a few real steps."""

import copy

import pytest
import torch
from bert_cases import assert_same, batch_of, head_inputs, loss_of, outcome, pair
from torch import nn
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.testing import max_error, rounding_step


def gradients(model, inputs, **context):
    model.zero_grad()
    loss = loss_of(model(**inputs), inputs["attention_mask"])
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got, want, tolerance=1e-4):
    assert got.keys() == want.keys()
    whole = max(float(value.abs().max()) for name, value in want.items() if name != "loss")
    for name, value in want.items():
        scale = max(float(value.abs().max()), 0.01 * whole)
        assert float((got[name] - value).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("unpad", [True, False])
def test_dropout_repeats_bit_for_bit_from_a_seed(unpad):
    fast = pair(hf.BertForPreTraining, train=True, dropout=0.1, options={"unpad": unpad})[1]
    inputs = head_inputs(hf.BertForPreTraining, "right")
    runs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        runs.append(gradients(fast, inputs))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["loss"], runs[2]["loss"])


def test_dropout_has_the_mean_of_stock():
    stock, fast = pair(train=True, dropout=0.3)
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        means = [torch.stack([m(**inputs).last_hidden_state[real] for _ in range(300)]).mean(0) for m in (stock, fast)]
        spread = torch.stack([stock(**inputs).last_hidden_state[real] for _ in range(50)]).std(0)
    # Each mean of 300 has a standard error of spread / 17; the two differ by sqrt(2) of that.
    assert ((means[0] - means[1]).abs() / spread).square().mean().sqrt() < 1.5 * (2 / 300) ** 0.5


def test_dropout_switched_on_alone():
    fast = pair(dropout=0.3)[1]
    inputs = batch_of("right")
    with torch.no_grad():
        assert torch.equal(fast(**inputs).pooler_output, fast(**inputs).pooler_output)
        for module in fast.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        assert not torch.equal(fast(**inputs).pooler_output, fast(**inputs).pooler_output)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.tool("transformers", "gradient checkpointing, reentrant or not", "fast")
def test_gradient_checkpointing(reentrant, padding):
    stock, fast = pair(hf.BertForTokenClassification, train=True)
    inputs = head_inputs(hf.BertForTokenClassification, padding)
    want = gradients(stock, inputs)
    fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
    bertfast.optimize(fast)
    assert_same_gradients(gradients(fast, inputs), want)
    layers = [row["calls"] for row in bertfast.report(fast).to_dict()["modules"] if row["kind"] == "BertLayer"]
    assert layers == [{"fast, padding removed": 2}] * 2, "each layer runs once forward and once again in backward"


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_repeats_dropout(reentrant):
    fast = pair(hf.BertForTokenClassification, train=True, dropout=0.2)[1]
    inputs = head_inputs(hf.BertForTokenClassification, "right")
    fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs = []
    for checkpointing in (True, False):
        for layer in fast.bert.encoder.layer:
            layer.gradient_checkpointing = checkpointing
        torch.manual_seed(3)
        runs.append(gradients(fast, inputs))
    assert_same_gradients(runs[0], runs[1], tolerance=1e-5)


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_while_attentions_are_recorded(reentrant, how):
    options = {"output_attentions": True} if how == "config" else {}
    stock, fast = pair(train=True, attn_implementation="eager", **options)
    fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inputs = batch_of("right") | ({"output_attentions": True} if how == "argument" else {})
    assert_same_gradients(gradients(fast, inputs), gradients(stock, inputs))
    assert outcome(fast, "BertLayer") == {"attentions were asked for": 2}, "backward repeats what forward did"


@pytest.mark.tool("PyTorch", "autocast to bfloat16", "fast")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_autocast(padding, train):
    stock, fast = pair(hf.BertForPreTraining, train=train)
    exact = copy.deepcopy(stock).double()
    inputs = head_inputs(hf.BertForPreTraining, padding)
    real = inputs["attention_mask"].bool()
    outputs = []
    for model in (stock, fast):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(train):
            outputs.append(model(**inputs))
            states = model.bert(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        assert states.dtype == torch.float32
    want, got = outputs
    oracle = exact(**inputs)
    assert got.prediction_logits.dtype == want.prediction_logits.dtype
    assert got.seq_relationship_logits.dtype == want.seq_relationship_logits.dtype
    ours, eager, right = (o.prediction_logits[real].double() for o in (got, want, oracle))
    step = rounding_step(torch.bfloat16) * float(right.abs().max())
    assert max_error(ours, right) <= 2 * max_error(eager, right) + step
    if train:
        got.loss.backward()
        want.loss.backward()
        oracle.loss.backward()
        errors = [
            torch.cat(
                [(a.grad - b.grad).flatten() for a, b in zip(m.parameters(), exact.parameters(), strict=True)]
            ).norm()
            for m in (fast, stock)
        ]
        assert errors[0] <= 2 * errors[1]
        assert all(p.grad.dtype == torch.float32 for p in fast.parameters())


@pytest.mark.parametrize("part", ["embeddings", "first layer", "all but the pooler"])
def test_frozen_parts(part):
    stock, fast = pair(train=True)
    for model in (stock, fast):
        frozen = {
            "embeddings": model.embeddings,
            "first layer": model.encoder.layer[0],
            "all but the pooler": nn.ModuleList([model.embeddings, model.encoder]),
        }[part]
        frozen.requires_grad_(False)
    inputs = batch_of("right")
    assert_same_gradients(gradients(fast, inputs), gradients(stock, inputs))


@pytest.mark.tool("transformers", "inputs_embeds, with their gradient", "fast")
def test_inputs_embeds_get_their_gradient():
    stock, fast = pair(train=True)
    embeds = torch.randn(4, 12, 64)
    found = []
    for model in (stock, fast):
        x = embeds.clone().requires_grad_()
        mask = batch_of("right")["attention_mask"]
        loss_of(model(inputs_embeds=x, attention_mask=mask), mask).backward()
        found.append(x.grad)
    assert_same(found[1], found[0], tolerance=1e-4)
    assert outcome(fast, "BertEncoder") == {"fast, padding removed": 1}


def test_a_few_steps_with_dropout_learn():
    fast = pair(hf.BertForPreTraining, train=True, dropout=0.1, initializer_range=0.02)[1]
    inputs = head_inputs(hf.BertForPreTraining, "right")
    optimizer = torch.optim.AdamW(fast.parameters(), lr=2e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(30):
        loss = fast(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert outcome(fast, "BertEncoder") == {"fast, padding removed": 30}


def test_several_steps_follow_stock():
    stock, fast = pair(hf.BertForPreTraining, train=True)
    inputs = head_inputs(hf.BertForPreTraining, "right")
    losses = []
    for model in (stock, fast):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses.append([])
        for _ in range(5):
            loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
