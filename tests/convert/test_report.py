"""report(): what is fast, what is not and why, as a table and as plain types."""

import copy
import json

import pytest
import torch
from bert_cases import batch_of, outcome, pair
from torch import nn

import bertfast
from bertfast.nn import stack


def test_report_of_stock_and_optimised_models():
    stock, fast = pair()
    assert bertfast.report(stock).to_dict()["fast"] == 0
    assert "not optimised" in str(bertfast.report(stock))
    fast.encoder.layer[1].output.dense = nn.Identity()
    described = bertfast.report(fast).to_dict()
    assert [row["state"] for row in described["modules"]] == ["fallback", "fast", "fast", "fast", "fallback"]
    assert "Identity" in str(bertfast.report(fast))


def test_counts_are_not_shared_with_copies():
    fast = pair()[1]
    with torch.no_grad():
        fast(**batch_of("right"))
    assert outcome(fast, "BertEncoder") == {"fast, padding removed": 1}
    assert outcome(copy.deepcopy(fast), "BertEncoder") == {}


def test_to_dict_is_json_and_counts_prepacked_bytes():
    fast = pair()[1]
    with torch.no_grad():
        fast(**batch_of("right"))
    described = json.loads(json.dumps(bertfast.report(fast).to_dict()))
    assert described["fast"] == 5
    copied = sum(
        p.nbytes
        for m in fast.encoder.layer.modules()
        # One call for the whole stack keeps the norms' parameters too; layer by layer only Linears are reordered.
        if isinstance(m, (nn.Linear, nn.LayerNorm) if stack.memory(fast) else nn.Linear)
        for p in m.parameters()
    )
    assert described["prepacked_bytes"] in (0, copied)  # 0 where torch has no oneDNN
    assert described["prepacked_bytes"] >= stack.memory(fast)
    bertfast.optimize(fast, prepack=False)
    assert bertfast.report(fast).to_dict()["prepacked_bytes"] == 0


def test_what_is_no_module():
    for call in (bertfast.report, bertfast.restore):
        with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got NoneType"):
            call(None)


def test_a_module_without_bert():
    report = bertfast.report(nn.Linear(2, 2))
    assert report.rows == ()
    assert "Linear holds no module that bertfast knows" in str(report)
