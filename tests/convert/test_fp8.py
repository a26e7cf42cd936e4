"""optimize(precision="fp8"): inference and training of Hugging Face models in FP8, captured, only where asked for."""

import pytest
import torch
from bert_cases import batch_of, head_inputs, loss_of, outcome, pair
from captured import captured_on_cpu
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.nn import device

ASKED = {"precision": "fp8"}


@pytest.fixture
def gpu():
    with captured_on_cpu():
        yield


def hidden(model):
    with torch.no_grad():
        return model(**batch_of("right")).last_hidden_state


def apart(one, two):
    return float((one.float() - two.float()).norm() / two.float().norm())


@pytest.mark.parametrize("autocast", [False, True])
def test_inference(gpu, autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    _, plain = pair(dtype=dtype)
    _, fast = pair(dtype=dtype, options=ASKED)
    real = batch_of("right")["attention_mask"].bool()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = hidden(plain)[real]
        calls = [hidden(fast)[real] for _ in range(3)]
        assert all(torch.equal(each, calls[0]) for each in calls)
        assert 0 < apart(calls[0], expected) < 0.1
        said = outcome(fast, "BertModel")
        assert {how.split(": ")[-1] for how in said} == {"first call of its bucket", "captured", "replayed"}
        with torch.no_grad():
            for model in (plain, fast):
                model.encoder.layer[0].output.dense.weight.data.neg_()
        assert 0 < apart(hidden(fast)[real], hidden(plain)[real]) < 0.1
        bertfast.optimize(fast)  # the later options count
        assert torch.equal(hidden(fast)[real], hidden(plain)[real])


@pytest.mark.parametrize("head", [hf.BertForSequenceClassification, hf.BertForMaskedLM])
def test_training(gpu, head):
    """Under autocast, in a loop that knows nothing of it; near bfloat16, and not it."""
    gradients, models = [], []
    for options in ({}, ASKED):
        _, fast = pair(head, train=True, options=options, dropout=0.1)
        inputs = head_inputs(head, "right")
        for _ in range(4):
            fast.zero_grad()
            torch.manual_seed(5)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(fast(**inputs), inputs["attention_mask"])
            loss.backward()
        gradients.append({name: p.grad.clone() for name, p in fast.named_parameters() if p.grad is not None})
        models.append(fast)
    said = outcome(models[1], "BertEncoder")
    prefix = "fast, padding removed: "
    assert said == {
        f"{prefix}eager: its FP8 scales are known after the first backward": 1,
        f"{prefix}eager: first call of its bucket": 1,
        f"{prefix}captured": 1,
        f"{prefix}replayed": 1,
    }
    bfloat16, in_fp8 = gradients
    assert bfloat16.keys() == in_fp8.keys()
    name = next(name for name in bfloat16 if name.endswith("layer.0.intermediate.dense.weight"))
    assert 0 < apart(in_fp8[name], bfloat16[name]) < 0.4


def test_report(gpu):
    _, fast = pair(dtype=torch.bfloat16, options=ASKED)
    text = str(bertfast.report(fast))
    assert "fast calls on a GPU multiply in FP8: not the numbers of the model's own dtype" in text
    assert "under bfloat16 autocast" in str(bertfast.report(fast.float()))
    assert "precision fp8 has no effect: products are in float16" in str(bertfast.report(fast.half()))
    _, odd = pair(dtype=torch.bfloat16, options=ASKED, intermediate_size=40)
    assert "precision fp8 has no effect: the model's rows have 40 columns" in str(bertfast.report(odd))
    assert torch.equal(hidden(odd), hidden(pair(dtype=torch.bfloat16, intermediate_size=40)[1]))
    assert "fp8" not in str(bertfast.report(bertfast.restore(fast))).lower()


def test_on_a_cpu_nothing_changes(monkeypatch):
    """A model may be moved to the GPU later."""
    monkeypatch.setattr("bertfast.nn.fp8_state.unavailable", lambda: None)
    _, fast = pair(options=ASKED)
    assert torch.equal(hidden(fast), hidden(pair()[1]))
    assert "precision fp8 has no effect: a cpu device has no FP8 products of ours" in str(bertfast.report(fast))


REFUSED = {
    "precision must be None .* or \"fp8\", got 'fp4'": {"precision": "fp4"},
    'for GPUs and dtype="int8" for CPUs': {"precision": "fp8", "dtype": "int8"},
    "gpu_kernels=False switches off": {"precision": "fp8", "gpu_kernels": False},
    "cannot be had: torch sees no GPU here. It needs an NVIDIA GPU of sm_89 .* leave it out": {"precision": "fp8"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_refused(monkeypatch, said):
    if REFUSED[said].get("dtype"):
        monkeypatch.setattr("bertfast.ops.packed_linear.available", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stock, _ = pair()
    with pytest.raises(ValueError, match=said):
        bertfast.optimize(stock, **REFUSED[said])
    assert type(stock) is hf.BertModel


def test_gpus_of_which_none_can(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "NVIDIA A100")
    assert "cpu" not in device.KINDS
    with pytest.raises(ValueError, match="NVIDIA A100 is sm_80: FP8 products begin with sm_89"):
        bertfast.optimize(pair()[0], precision="fp8")
