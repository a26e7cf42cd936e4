"""Each value that stock's forwards read from a module is read by bertfast too, or compared, and the call sent to stock."""

from typing import Any

import pytest
import torch
from bert_cases import assert_same
from family_cases import inputs_of, loss_of, models_of, real_of, tensors_of
from stock_reads import LEAVES, changes_of, classes_of, leaf, own_changes_of, read_by
from torch import nn

from bertfast.convert.families import FAMILIES

ACTIVATIONS = {"GELUTanh": "gelu_pytorch_tanh", "GELU": "gelu"}
CONFIGS = {"ernie": {"use_task_id": True}}
# Of families whose file is BERT's with another prefix, what they read besides; of the others all.
BESIDES = ("roberta", "xlm_roberta", "camembert", "electra", "ernie")


def reads(family, stock):
    return read_by(stock, family.module if stock is family.holders[family.attention] else None)


def cases():
    """(family, stock class, attribute, change)"""
    for name, family in FAMILIES.items():
        for stock in classes_of(family):
            own = own_changes_of(family, stock)
            for attribute, change in changes_of(family, stock).items():
                if change is None or (name in BESIDES and attribute not in own):
                    continue
                if name == "bert" or attribute in reads(family, stock):
                    yield name, stock, attribute, change


CASES = list(cases())
LEAF_CASES = [
    (kind, name) for kind, changes in LEAVES.items() for name, change in changes.items() if change is not None
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lists_are_whole(name):
    family = FAMILIES[name]
    for stock in classes_of(family):
        unlisted = reads(family, stock) - changes_of(family, stock).keys()
        assert not unlisted, f"the installed {stock.__name__} reads {unlisted}, which stock_reads.py does not list"


@pytest.mark.parametrize("kind", LEAVES)
def test_the_list_of_leaves_is_whole(kind):
    if leaf(kind) is None:
        pytest.skip(f"this transformers has no {kind}")
    assert read_by(leaf(kind)) <= LEAVES[kind].keys(), "the installed release reads what stock_reads.py does not list"


def run(model: nn.Module, grad: bool, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs and gradients, or the type of what was raised."""
    model.zero_grad()
    real = real_of("right")
    try:
        with torch.set_grad_enabled(grad):
            outputs = model(**inputs)
            named = outputs if hasattr(outputs, "items") else {str(i): value for i, value in enumerate(outputs)}
            values: dict[str, Any] = tensors_of(named, real)
            if grad:
                loss_of(values).backward()
                values |= {f"d{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    except Exception as error:
        return {"raised": type(error)}
    return values


def assert_alike(stock, fast, grad, inputs, key_bias):
    want, got = run(stock, grad, inputs), run(fast, grad, inputs)
    assert want.keys() == got.keys()
    for what, value in want.items():
        if what == "raised":
            assert got[what] is value
        elif value.layout is torch.sparse_coo or not what.endswith(key_bias):  # zero but for rounding
            assert_same(got[what].to_dense(), value.to_dense(), what, tolerance=1e-4)


def inputs_without_types(family):
    inputs = inputs_of(family, "Model", "right")
    inputs.pop("token_type_ids", None)
    return inputs


def try_a_change(family, grad, places, change, **config):
    """Stock and fast alike before a change of the modules that `places` finds in a model, and after it."""
    stock, fast, _ = models_of(family, family.model.__name__, **config)
    inputs, key_bias = inputs_without_types(family), f"{family.places.attention.key}.bias"
    for model in (stock, fast):
        assert "raised" not in run(model, grad, inputs)
        changed = places(model)
        assert changed
        for module in changed:
            change(module)
    assert_alike(stock, fast, grad, inputs, key_bias)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "attribute", "change"), CASES, ids=[f"{c[0]}-{c[1].__name__}-{c[2]}" for c in CASES]
)
def test_a_changed_value_is_seen(name, kind, attribute, change, grad):
    family = FAMILIES[name]
    try_a_change(
        family,
        grad,
        lambda model: [m for m in model.modules() if isinstance(m, kind)],
        change,
        **CONFIGS.get(name, {}),
    )


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("kind", "attribute"), LEAF_CASES, ids=[f"{kind}-{name}" for kind, name in LEAF_CASES])
def test_a_changed_value_of_a_leaf_is_seen(kind, attribute, grad):
    if leaf(kind) is None:
        pytest.skip(f"this transformers has no {kind}")

    def places(model):
        if kind == "GELU":
            for layer in model.encoder.layer:
                layer.intermediate.intermediate_act_fn = nn.GELU()
        # Those of encoder and embeddings alone: the pooler is stock code.
        return [m for name, m in model.named_modules() if type(m) is leaf(kind) and "pooler" not in name]

    change = LEAVES[kind][attribute]
    try_a_change(FAMILIES["bert"], grad, places, change, hidden_act=ACTIVATIONS.get(kind, "gelu"))
