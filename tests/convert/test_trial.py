"""The trial of a tiny model: once a process, whatever mode the caller is in, without a trace in the caller's state."""

import importlib

import pytest
import torch
from bert_cases import tiny_config
from torch import nn
from transformers import RobertaConfig, RobertaModel
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.convert import embeddings, families, layer, trial
from bertfast.convert.families import bert

swap = importlib.import_module("bertfast.convert.optimize")._swap_for_trial  # the package's `optimize` is the function


@pytest.fixture
def untried(monkeypatch):
    monkeypatch.setattr(trial, "_verdicts", {})
    return monkeypatch


def fresh() -> hf.BertModel:
    return hf.BertModel(tiny_config()).eval()


def test_passes_once(untried):
    calls = []
    original = trial._tried
    untried.setattr(trial, "_tried", lambda *args: calls.append(1) or original(*args))
    for _ in range(3):
        assert trial.run(bert.FAMILY, swap) is None
    assert calls == [1]


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True),
    ],
)
def test_in_any_mode_of_the_caller(untried, mode):
    model = fresh()
    with mode():
        bertfast.optimize(model)
    assert trial.verdict(bert.FAMILY) is None
    assert isinstance(model, bert.FastBertModel)


def test_leaves_the_random_state_alone(untried):
    model = fresh()
    before = torch.get_rng_state()
    bertfast.optimize(model)
    assert torch.equal(torch.get_rng_state(), before)


def broken_attention(x, *args, **kwargs):
    return x


def raising_embed(*args, **kwargs):
    raise KeyError("a name that is gone")


@pytest.mark.parametrize(
    ("file", "name", "broken", "words"),
    [
        (layer, "attention_block", broken_attention, "differs by"),
        (embeddings, "embed", raising_embed, "KeyError: 'a name that is gone'"),
    ],
)
def test_a_difference_keeps_models_stock(untried, file, name, broken, words):
    untried.setattr(file, name, broken)
    model = nn.Sequential(fresh())
    with pytest.warns(UserWarning, match="models stay stock"):
        assert bertfast.optimize(model) is model
    assert words in trial.verdict(bert.FAMILY)
    assert type(model[0]) is hf.BertModel
    assert type(model[0].encoder.layer[0]) is hf.BertLayer
    assert all(words in row["reason"] for row in bertfast.report(model).to_dict()["modules"])


def test_not_made_while_code_is_replaced(untried):
    """It would compare stock with stock, and pass."""
    with untried.context() as patch:
        patch.setattr(hf.BertOutput, "forward", lambda self, hidden, residual: residual)
        bertfast.optimize(fresh())
        assert trial._verdicts == {}
    bertfast.optimize(fresh())
    assert trial._verdicts == {"bert": None}


def test_of_models_that_optimise_themselves(untried):
    """The trial makes such a model too, while whoever asked for it waits."""
    init = hf.BertModel.__init__

    def optimising(self, *args, **kwargs):
        init(self, *args, **kwargs)
        bertfast.optimize(self)

    untried.setattr(hf.BertModel, "__init__", optimising)
    assert isinstance(fresh(), bert.FastBertModel)
    assert trial.verdict(bert.FAMILY) is None


def test_a_release_that_lacks_a_class_costs_that_family_alone(monkeypatch):
    """Its record cannot be made then; nothing else may fail for it."""
    load = importlib.import_module

    def lacking(name, *args):
        if name.endswith(".families.roberta"):
            raise AttributeError("module 'modeling_roberta' has no attribute 'RobertaSelfOutput'")
        return load(name, *args)

    monkeypatch.setattr(families, "_unfit", {})
    monkeypatch.setattr(families.importlib, "import_module", lacking)
    tiny = families.FAMILIES["bert"].tiny()
    model = RobertaModel(RobertaConfig(**{**tiny.to_dict(), "pad_token_id": 1}))
    with pytest.raises(
        bertfast.UnsupportedModelError, match=r"roberta: AttributeError.*RobertaSelfOutput.*models stay stock"
    ):
        bertfast.optimize(model)
    assert type(bertfast.optimize(model, strict=False)) is RobertaModel
    assert "RobertaSelfOutput" in str(bertfast.report(model))
    assert "roberta" not in families.FAMILIES
    assert len(families.FAMILIES) == 7
    assert isinstance(bertfast.optimize(fresh()), bert.FastBertModel)
