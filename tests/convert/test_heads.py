"""Every head class: outputs, loss and all gradients against the stock model, over paddings and dtypes."""

import copy

import pytest
import torch
from bert_cases import HEADS, PADDINGS, assert_same, batch_of, head_inputs, loss_of, outcome, outputs_at_tokens, pair
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.testing import assert_within_budget, rounding_step

LOSS_OVER_PADDING = (hf.BertForQuestionAnswering, hf.BertLMHeadModel)
by_name = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)


def step(model, inputs):
    mask = inputs["attention_mask"]
    outputs = model(**inputs)
    loss = loss_of(outputs, mask)
    loss.backward()
    results = {"training loss": loss.detach()}
    for name, value in outputs_at_tokens(outputs, mask).items():
        results[name] = value.detach()
    for name, parameter in model.named_parameters():
        # The same parameters must have gradients: DistributedDataParallel counts them.
        results[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad
    return results


@pytest.mark.parametrize("padding", PADDINGS)
@by_name
def test_float32_step(head, padding):
    stock, fast = pair(head, train=True)
    inputs = head_inputs(head, padding)
    want, got = step(stock, inputs), step(fast, inputs)
    assert want.keys() == got.keys()
    whole = max(float(v.abs().max()) for name, v in want.items() if v is not None and name.startswith("gradient"))
    for name, value in want.items():
        assert (value is None) == (got[name] is None), name
        if value is not None and name.startswith("gradient"):
            # The gradient of key.bias is zero in exact arithmetic, so its own scale is only noise.
            assert float((got[name] - value).abs().max()) <= 2e-5 * max(float(value.abs().max()), 0.05 * whole), name
        elif value is not None:
            assert_same(got[name], value, name)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@by_name
def test_bfloat16_step_within_budget(head, padding):
    stock, fast = pair(head, dtype=torch.bfloat16, train=True)
    oracle = copy.deepcopy(stock).double()
    inputs = head_inputs(head, padding)
    exact, eager, ours = step(oracle, inputs), step(stock, inputs), step(fast, inputs)
    assert ours.keys() == eager.keys() == exact.keys()
    gradients = [name for name, v in exact.items() if v is not None and name.startswith("gradient")]
    for name in exact.keys() - {"training loss", *gradients}:
        if exact[name] is None:
            continue
        if exact[name].numel() == 1:  # stock may hit a single number exactly, by chance: no budget of its own error
            assert_same(ours[name].double(), exact[name], name, tolerance=8 * rounding_step(torch.bfloat16))
        else:
            assert_within_budget(ours[name], eager[name], exact[name], name)

    def error(results):  # for the same reason one number for all gradients
        return torch.cat([(results[name].double() - exact[name]).flatten() for name in gradients]).norm()

    assert error(ours) <= 2 * error(eager)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@by_name
def test_inference(head, padding, implementation):
    stock, fast = pair(head, attn_implementation=implementation)
    inputs = head_inputs(head, padding)
    with torch.no_grad():
        want, got = (outputs_at_tokens(m(**inputs), inputs["attention_mask"]) for m in (stock, fast))
    assert want.keys() == got.keys()
    for name, value in want.items():
        if name == "loss" and head in LOSS_OVER_PADDING:
            continue  # it reads logits at padding, which are not stock's without gradients; documented
        assert_same(got[name], value, name)
    pooled = getattr(fast, "pooler", None) or getattr(getattr(fast, "bert", None), "pooler", None)
    how = next(iter(outcome(fast, "BertEncoder")))
    if padding == "left" and pooled is not None:
        assert how.startswith("kept padded: the pooler reads position 0")
    else:
        assert how == "fast, padding removed"


@pytest.mark.parametrize("head", LOSS_OVER_PADDING, ids=lambda head: head.__name__)
def test_losses_over_padding_stay_padded_with_gradients(head):
    stock, fast = pair(head)
    inputs = head_inputs(head, "left")
    assert_same(fast(**inputs).loss, stock(**inputs).loss)
    assert outcome(fast, "BertEncoder") == {"kept padded: the loss of this head runs over padding too": 1}
    assert "its loss runs over padding" in str(bertfast.report(fast))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "gelu_fast", "quick_gelu"])
def test_activations(activation):
    stock, fast = pair(hidden_act=activation)
    inputs = batch_of("right")
    with torch.no_grad():
        want, got = (m(**inputs).last_hidden_state[inputs["attention_mask"].bool()] for m in (stock, fast))
    assert_same(got, want)
    fused = activation in ("gelu", "gelu_new", "gelu_pytorch_tanh")
    assert ("fast, padding removed" in outcome(fast, "BertEncoder")) == fused


@pytest.mark.parametrize("return_dict", [True, False])
def test_tuple_and_named_outputs(return_dict):
    stock, fast = pair()
    inputs = batch_of("none")
    want, got = (m(**inputs, return_dict=return_dict) for m in (stock, fast))
    assert type(want) is type(got)
    assert_same(got[0], want[0])


@pytest.mark.parametrize("ids", ["int32", "explicit positions", "one row of positions", "inputs_embeds", "no types"])
def test_forms_of_input(ids):
    stock, fast = pair()
    inputs = batch_of("right", types=ids != "no types")
    if ids == "int32":
        inputs["input_ids"] = inputs["input_ids"].int()
    if ids == "explicit positions":
        inputs["position_ids"] = torch.randint(0, 40, inputs["input_ids"].shape)
    if ids == "one row of positions":
        inputs["position_ids"] = torch.arange(12).flip(0)[None]
    if ids == "inputs_embeds":
        inputs["inputs_embeds"] = torch.randn(*inputs.pop("input_ids").shape, 64)
    real = inputs["attention_mask"].bool()
    assert_same(fast(**inputs).last_hidden_state[real], stock(**inputs).last_hidden_state[real])
    assert ("fast" in outcome(fast, "BertEmbeddings")) == (ids != "inputs_embeds")


def test_bad_ids_are_refused_by_name():
    _, fast = pair()
    ids = torch.full((2, 5), 7)
    ids[1, 2] = 1234
    with pytest.raises((IndexError, ValueError), match="1234"):
        fast(ids)
