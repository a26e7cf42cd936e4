"""Each value that stock's forwards read from a module is read by bertfast too, or compared, and the call sent to stock."""

from typing import Any

import pytest
import torch
from bert_cases import assert_same, batch_of, loss_of, outputs_at_tokens, pair
from stock_reads import READS, class_of, read_by
from torch import nn

CASES = [(kind, name) for kind, changes in READS.items() for name, change in changes.items() if change is not None]
ACTIVATIONS = {"GELUTanh": "gelu_pytorch_tanh", "GELU": "gelu"}


@pytest.mark.parametrize("kind", READS)
def test_the_list_is_whole(kind):
    if class_of(kind) is None:
        pytest.skip(f"this transformers has no {kind}")
    assert read_by(kind) <= READS[kind].keys(), "the installed release reads what stock_reads.py does not list"


def places(model: nn.Module, kind: str) -> list[tuple[str, nn.Module]]:
    """The modules of this stock class, the encoder's and the embeddings' alone: heads and pooler are stock code."""
    cls: Any = class_of(kind)
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, cls)
        and "pooler" not in name
        and (kind in READS and (type(m) is cls or kind.startswith("Bert")))
    ]


def run(model: nn.Module, grad: bool, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs and gradients, or the type of what was raised."""
    model.zero_grad()
    try:
        with torch.set_grad_enabled(grad):
            outputs = model(**inputs)
            values = outputs_at_tokens(outputs, inputs["attention_mask"])
            if grad:
                loss_of(outputs, inputs["attention_mask"]).backward()
                values |= {f"d{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    except Exception as error:
        return {"raised": type(error)}
    return values


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_a_changed_value_is_seen(kind, name, grad):
    if class_of(kind) is None:
        pytest.skip(f"this transformers has no {kind}")
    stock, fast = pair(hidden_act=ACTIVATIONS.get(kind, "gelu"))
    inputs = batch_of("right", types=False)
    if kind == "GELU":
        for model in (stock, fast):
            for layer in model.encoder.layer:
                layer.intermediate.intermediate_act_fn = nn.GELU()
    before = run(fast, grad, inputs)
    assert "raised" not in before
    which = [place for place, _ in places(stock, kind)]
    assert which, f"no {kind} inside"
    for model in (stock, fast):
        modules = dict(model.named_modules())
        for place in which:
            READS[kind][name](modules[place])
    want, got = run(stock, grad, inputs), run(fast, grad, inputs)
    assert want.keys() == got.keys()
    for what, value in want.items():
        if what == "raised":
            assert got[what] is value
        elif value.layout is torch.sparse_coo or not what.endswith("key.bias"):
            assert_same(got[what].to_dense(), value.to_dense(), what, tolerance=1e-4)
