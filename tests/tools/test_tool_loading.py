"""from_pretrained and save_pretrained around an optimised model: files, dtypes, devices, vocabularies."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM
from transformers_cases import FAMILIES_TRIED, TEXTS, outcomes, stock_model, tokenizer_of, trio

import bertfast
from bertfast.testing import assert_within_budget, rms_error

WHOLE = {"fast, from ids to hidden states": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock model's files."""
    path = tmp_path_factory.mktemp("model")
    stock_model("bert").save_pretrained(path)
    return path


def batch(family: str = "bert") -> dict[str, Tensor]:
    return dict(tokenizer_of(family)(list(TEXTS), padding=True, return_tensors="pt"))


def states(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Of the real tokens."""
    with torch.no_grad():
        return model(**inputs)[0][inputs["attention_mask"].bool()]


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "save_pretrained and from_pretrained: safetensors in a local folder, offline", "fast")
def test_round_trip(family, tmp_path):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    fast, stock, exact = trio(family)
    fast.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {type(module) for module in loaded.modules()} == {type(module) for module in stock.modules()}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded.parameters(), stock.parameters(), strict=True))
    inputs = batch(family)
    again = bertfast.optimize(loaded)
    assert_within_budget(*(states(model, inputs) for model in (again, stock, exact)))
    assert outcomes(again, "Model") == WHOLE


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.tool("transformers", "from_pretrained(dtype=torch.bfloat16)", "fast")
def test_bfloat16(folder, name):
    stock = AutoModel.from_pretrained(folder, **{name: torch.bfloat16})
    fast = bertfast.optimize(copy.deepcopy(stock))
    assert fast.dtype == torch.bfloat16
    found = [states(model, batch()) for model in (fast, stock, copy.deepcopy(stock).double())]
    assert found[0].dtype == torch.bfloat16
    assert_within_budget(*found, measure=rms_error)
    assert outcomes(fast, "Model") == WHOLE


@pytest.mark.tool("transformers", "from_pretrained(dtype=torch.float16) on a CPU", "falls back")
def test_float16(folder):
    stock = AutoModel.from_pretrained(folder, dtype=torch.float16)
    fast = bertfast.optimize(copy.deepcopy(stock))
    assert torch.equal(states(fast, batch()), states(stock, batch()))
    assert "hidden states are torch.float16; the kernels take float32 and bfloat16" in outcomes(fast, "Layer")


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
@pytest.mark.tool("transformers", 'device_map="cpu" or "auto", all on one device', "fast")
def test_device_map_of_one_device(folder, device_map):
    fast = bertfast.optimize(AutoModel.from_pretrained(folder, device_map=device_map))
    stock = AutoModel.from_pretrained(folder)
    assert_within_budget(*(states(model, batch()) for model in (fast, stock, copy.deepcopy(stock).double())))
    assert outcomes(fast, "Model") == WHOLE


@pytest.mark.tool("transformers", "device_map over several devices or the disk (accelerate's hooks)", "falls back")
def test_device_map_over_several(folder, tmp_path):
    """accelerate loads the weights in a forward of its own on each instance, which calls stock's."""
    places = {"embeddings": "cpu", "encoder.layer.0": "disk", "encoder.layer.1": "cpu", "pooler": "cpu"}
    split = bertfast.optimize(AutoModel.from_pretrained(folder, device_map=places, offload_folder=tmp_path))
    assert torch.equal(states(split, batch()), states(AutoModel.from_pretrained(folder), batch()))
    rows = {row["name"]: row for row in bertfast.report(split).to_dict()["modules"]}
    assert {row["state"] for row in rows.values()} == {"fallback"}
    assert rows["encoder"]["calls"] == {"kept padded: layer 0: the forward of it was replaced": 1}
    assert rows["encoder.layer.1"]["reason"] == "its forward was replaced"


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "resize_token_embeddings, before and after optimize", "fast")
def test_resize_token_embeddings(family, order):
    """Words that are new are read, and predicted."""
    stock = stock_model(family, "ForMaskedLM")
    fast = copy.deepcopy(stock)
    words = stock.config.vocab_size
    if order == "after":
        states(bertfast.optimize(fast), batch(family))
    for model in (stock, fast):
        torch.manual_seed(2)
        model.resize_token_embeddings(words + 3)
    if order == "before":
        bertfast.optimize(fast)
    inputs = batch(family)
    inputs["input_ids"][:, 1] = words + 2
    logits = [states(model, inputs) for model in (fast, stock, copy.deepcopy(stock).double())]
    assert logits[0].shape[-1] == words + 3
    assert_within_budget(*logits)
    assert set(outcomes(fast, "Model")) == set(WHOLE)


def test_a_resized_model_is_saved(tmp_path):
    fast = bertfast.optimize(stock_model("bert", "ForMaskedLM"))
    fast.resize_token_embeddings(50)
    fast.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 50
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, fast.get_input_embeddings().weight)
