"""Traces and exports of an optimised model hold torch's own operators where the format knows no others."""

import io

import pytest
import torch
from bert_cases import assert_same, batch_of, pair
from torch import nn
from transformers.models.bert import modeling_bert as hf


class Logits(nn.Module):
    """A model behind the plain tensors that exporters take."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]


def models(head):
    stock, fast = pair(head)
    inputs = batch_of("right")
    return Logits(stock), Logits(fast), (inputs["input_ids"], inputs["attention_mask"])


HEADS = (hf.BertForSequenceClassification, hf.BertForTokenClassification)


@pytest.mark.tool("torch.jit.trace", "inference", "falls back")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_a_trace_needs_no_bertfast(head, gradients):
    stock, fast, arguments = models(head)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(fast, arguments, check_trace=False)
    assert "bertfast::" not in str(traced.inlined_graph)
    with torch.no_grad():
        assert_same(traced(*arguments), stock(*arguments))


@pytest.mark.tool("ONNX export", "torch.onnx.export, by tracing and by torch.export", "falls back")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_onnx(head, dynamo):
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")
    onnx = pytest.importorskip("onnx")
    _, fast, arguments = models(head)
    file = io.BytesIO()
    if dynamo:
        torch.onnx.export(fast, arguments, dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(fast, arguments, file, dynamo=False)
    domains = {node.domain for node in onnx.load_model_from_string(file.getvalue()).graph.node}
    assert domains <= {"", "ai.onnx", "pkg.onnxscript.torch_lib"}, domains


@pytest.mark.tool("torch.export", "saved, and loaded without bertfast", "falls back")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_export_saved_and_loaded(head, strict):
    stock, fast, arguments = models(head)
    file = io.BytesIO()
    torch.export.save(torch.export.export(fast, arguments, strict=strict), file)
    file.seek(0)
    with torch.no_grad():
        got = torch.export.load(file).module()(*arguments)
        want = stock(*arguments)
    real = arguments[1].bool()
    assert_same(got[real] if got.dim() == 3 else got, want[real] if want.dim() == 3 else want)
