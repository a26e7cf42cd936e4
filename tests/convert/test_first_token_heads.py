"""Heads that read the pooler alone: the last layer's output is made for the first token of each sequence, and only there."""

import inspect

import pytest
import torch
from bert_cases import PADDINGS, assert_same, feed_forward_rows, head_inputs, outcome, pair
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.convert.families import FAMILIES
from bertfast.convert.first_token_heads import FIRST_ALONE
from bertfast.nn import stack
from bertfast.ops import packed_linear
from bertfast.testing import rounding_step

by_name = pytest.mark.parametrize("head", FAMILIES["bert"].pooled_heads, ids=lambda head: head.__name__)


@pytest.fixture
def rows(monkeypatch):
    return feed_forward_rows(monkeypatch)


@pytest.mark.parametrize("padding", ["none", "right", "holes"])
@pytest.mark.parametrize("train", [True, False])
@by_name
def test_the_last_layer_computes_what_is_read(rows, head, train, padding):
    stock, fast = pair(head, train=train, options={"prepack": False})
    inputs = head_inputs(head, padding)
    with torch.set_grad_enabled(train):
        want, got = stock(**inputs), fast(**inputs)
    assert_same(got.logits, want.logits)
    sequences, tokens = inputs["attention_mask"].flatten(0, -2).shape[0], int(inputs["attention_mask"].sum())
    assert rows == [tokens, sequences]
    assert outcome(fast, head.__name__) == {FIRST_ALONE: 1}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@by_name
def test_one_call_for_the_whole_stack(monkeypatch, head, dtype, padding):
    stock, fast = pair(head, dtype=dtype)  # before anything is counted: a process's first swap tries a tiny model
    read = []
    original = stack.Native.forward

    def forward(self, *args):
        read.append(args[-1])
        return original(self, *args)

    monkeypatch.setattr(stack.Native, "forward", forward)
    inputs = head_inputs(head, padding)
    with torch.no_grad():
        want, got = stock(**inputs), fast(**inputs)
        fast.bert.register_forward_hook(lambda *_: None)  # so that every token is computed
        whole = fast(**inputs)
    # The same arithmetic but for the order of some float32 sums.
    step = rounding_step(torch.bfloat16) if dtype is torch.bfloat16 else 0.0
    assert_same(got.logits.float(), whole.logits.float(), tolerance=max(2e-5, 2 * step))
    if dtype is torch.float32:
        assert_same(got.logits, want.logits)
    if padding == "left":  # the pooler reads padding there
        assert not read
    else:
        assert len(read[0]) == inputs["attention_mask"].flatten(0, -2).shape[0]


@pytest.mark.skipif(not packed_linear.available(torch.float32, 4, int8=True), reason="no int8 kernels here")
def test_int8():
    fast = pair(hf.BertForSequenceClassification, options={"dtype": "int8"})[1]
    inputs = head_inputs(hf.BertForSequenceClassification, "right")
    with torch.no_grad():
        got = fast(**inputs).logits
        fast.bert.register_forward_hook(lambda *_: None)
        assert_same(got, fast(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "bert.encoder", "bert.pooler"])
def test_whoever_may_look_sees_every_token(rows, name):
    fast = pair(hf.BertForSequenceClassification, options={"prepack": False})[1]
    fast.get_submodule(name).register_forward_hook(lambda *_: None)
    inputs = head_inputs(hf.BertForSequenceClassification, "right")
    with torch.no_grad():
        fast(**inputs)
    assert rows == [int(inputs["attention_mask"].sum())] * 2
    assert outcome(fast, "BertForSequenceClassification") == {
        "all tokens: somebody else may read the last hidden state": 1
    }


def test_hidden_states_that_are_asked_for_are_whole():
    stock, fast = pair(hf.BertForSequenceClassification)
    inputs = head_inputs(hf.BertForSequenceClassification, "right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        want, got = (m(**inputs, output_hidden_states=True).hidden_states for m in (stock, fast))
    for ours, theirs in zip(got, want, strict=True):
        assert_same(ours[real], theirs[real])


@by_name
def test_arguments_names_and_restore(head, tmp_path):
    stock, fast = pair(head)
    assert inspect.signature(fast.forward) == inspect.signature(stock.forward)
    fast.save_pretrained(tmp_path)
    assert head.from_pretrained(tmp_path).config.architectures == [head.__name__]
    assert type(bertfast.restore(fast)) is head
