"""Checkpoints both ways between transformers and bertfast.models, older and sharded ones, and every way one can be wrong."""

import json
import os
import warnings

import pytest
import torch
import transformers
from model_cases import HEADS, assert_close, labels_of, options, ours, padded, pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bertfast import models

AUTO = {
    "BertModel": "AutoModel",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
    "BertForTokenClassification": "AutoModelForTokenClassification",
}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module="bertfast|test_models_files")
        yield


def weights(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, change):
    """The stored weights with `change` applied to their dict."""
    state = weights(folder)
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def assert_equal_outputs(stock, mine, dtype=torch.float32):
    inputs = padded("none")
    with torch.no_grad():
        want, got = stock(**inputs), mine(**inputs)
    for name, value in want.items():
        other = getattr(got, name)
        assert other.dtype == value.dtype == dtype
        assert float((other - value).abs().max()) <= TOLERANCE[dtype] * float(value.abs().max()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", HEADS)
def test_transformers_loads_ours(head, dtype, tmp_path):
    labels = {"num_labels": 3} if "Classification" in head else {}
    mine = ours(head, **labels).to(dtype).eval()
    mine.save_pretrained(tmp_path)
    stock, report = getattr(transformers, AUTO[head]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(stock).__name__ == head
    assert_equal_outputs(stock, mine, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", HEADS)
def test_ours_loads_transformers(head, dtype, tmp_path):
    stock, _ = pair(head, dtype)
    stock.save_pretrained(tmp_path)
    mine = getattr(models, head).from_pretrained(tmp_path)
    assert not mine.training
    assert all(p.requires_grad and not p.is_meta for p in mine.parameters())
    assert_equal_outputs(stock, mine, dtype)
    again = tmp_path / "again"
    mine.save_pretrained(again)
    first, second = weights(tmp_path), weights(again)
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with safe_open(again / "model.safetensors", "pt") as stored:
        assert stored.metadata() == {"format": "pt"}
    theirs, written = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, again))
    assert written == theirs
    assert sorted(path.name for path in again.iterdir()) == ["config.json", "model.safetensors"]


def test_dtype_of_what_is_loaded(tmp_path):
    ours("BertModel").to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in models.BertModel.from_pretrained(tmp_path).parameters()} == {torch.bfloat16}
    wide = models.BertModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert transformers.AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("source", ["BertModel", "BertForPreTraining", "BertForSequenceClassification"])
@pytest.mark.parametrize("target", HEADS)
def test_any_checkpoint_loads_into_any_model(source, target, tmp_path):
    """What the checkpoint lacks is named in one warning, and only that."""
    stored = ours(source)
    stored.save_pretrained(tmp_path)
    torch.manual_seed(7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = getattr(models, target).from_pretrained(tmp_path)
    have = {name.removeprefix("bert.") for name in stored.state_dict()}
    missing = [name for name in model.state_dict() if name.removeprefix("bert.") not in have]
    assert len(caught) == bool(missing)
    if missing:
        assert ", ".join(missing) in str(caught[0].message)
        assert caught[0].filename == __file__
    state = {name.removeprefix("bert."): value for name, value in stored.state_dict().items()}
    for name, value in model.state_dict().items():
        if name in missing:
            assert torch.isfinite(value).all()
            assert not name.endswith("bias") or not value.any()
            assert "weight" not in name or name.endswith("LayerNorm.weight") or 0.1 < float(value.std()) < 0.3
        else:
            assert torch.equal(value, state[name.removeprefix("bert.")])


def test_a_head_of_another_shape_is_replaced_where_asked(tmp_path):
    stored = ours("BertForSequenceClassification", num_labels=3)
    stored.save_pretrained(tmp_path)
    with pytest.raises(models.WeightsError, match="replace_head=True"):
        models.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    with pytest.warns(models.NewWeightsWarning, match="weights of another shape for classifier.weight") as caught:
        model = models.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=4, replace_head=True)
    assert caught[0].message.names == ["classifier.weight", "classifier.bias"]
    assert model.classifier.weight.shape[0] == 4
    assert torch.equal(model.bert.pooler.dense.weight, stored.bert.pooler.dense.weight)
    again = models.BertForSequenceClassification.from_pretrained(tmp_path, replace_head=True)
    assert torch.equal(again.classifier.weight, stored.classifier.weight)


def test_minilm_loads_and_agrees():
    cases = pytest.importorskip("bertfast.bench.cases")
    try:
        folder = cases.minilm_folder()
    except cases.BenchError as error:
        pytest.skip(str(error))
    mine, stock = models.BertModel.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()
    ids = torch.tensor([[101, 7592, 2088, 2003, 102], [101, 2023, 102, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        want, got = stock(ids, attention_mask=mask), mine(ids, mask)
    assert float((got.pooler_output - want.pooler_output).abs().max()) < 1e-5
    with pytest.warns(UserWarning, match="no weights for classifier.weight, classifier.bias"):
        head = models.BertForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert head.classifier.weight.shape == (3, 384)


def test_older_names_stored_positions_and_the_tied_decoder(tmp_path):
    mine = ours("BertForPreTraining")
    mine.save_pretrained(tmp_path)

    def age(state):
        for name in list(state):
            older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            state[older] = state.pop(name)
        state["bert.embeddings.position_ids"] = torch.arange(40)[None]
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
        state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")

    rewrite(tmp_path, age)
    again = models.BertForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in mine.state_dict().items())


def test_shards(tmp_path):
    stock, _ = pair("BertForMaskedLM")
    stock.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal_outputs(stock, models.BertForMaskedLM.from_pretrained(tmp_path))


def test_a_loaded_model_does_not_depend_on_the_file(tmp_path):
    ours("BertModel").save_pretrained(tmp_path)
    model = models.BertModel.from_pretrained(tmp_path)
    want = {name: value.clone() for name, value in model.state_dict().items()}
    with open(tmp_path / "model.safetensors", "r+b") as stored:
        stored.write(bytes(stored.seek(0, 2)))
        stored.seek(0)
        stored.write(bytes(10**5))
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


def test_a_gathered_state_and_parameters_without_data(tmp_path):
    model = ours("BertForMaskedLM")
    state = {name: value * 2 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(weights(tmp_path)["cls.predictions.bias"], state["cls.predictions.bias"])
    state.pop("cls.predictions.bias")
    with pytest.raises(ValueError, match=r"lacks \['cls.predictions.bias'\]"):
        model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"meta device.*gather"):
        model.to("meta").save_pretrained(tmp_path)


def test_labels_and_extra_keys_survive(tmp_path):
    config = models.BertConfig.from_dict({**options(), "house": "yes", "id2label": {"0": "O", "1": "人", "2": "地"}})
    model = models.BertForTokenClassification(config)
    model.save_pretrained(tmp_path)
    stock = transformers.AutoConfig.from_pretrained(tmp_path)
    assert stock.id2label == {0: "O", 1: "人", 2: "地"} == models.BertConfig.from_pretrained(tmp_path).id2label
    assert stock.label2id["人"] == 1
    assert stock.house == "yes"
    assert stock.architectures == ["BertForTokenClassification"]
    assert transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).classifier.weight.shape == (3, 64)


def test_saving_while_training_and_loading_goes_on_where_it_was(tmp_path):
    model = ours("BertForPreTraining")
    inputs, labels = padded(), labels_of("BertForPreTraining", padded())
    torch.optim.SGD(model.parameters(), 0.1).zero_grad()
    model(**inputs, **labels).loss.backward()
    model.save_pretrained(tmp_path)
    assert model.training
    again = models.BertForPreTraining.from_pretrained(tmp_path).train()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert_close(again(**inputs, **labels).loss, model(**inputs, **labels).loss, "loss")
    assert os.listdir(tmp_path).count("model.safetensors") == 1
