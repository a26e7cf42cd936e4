"""Checkpoints both ways between transformers and bertfast.models, older and sharded ones, and every way one can be wrong."""

import json
import os
import warnings

import pytest
import torch
import transformers
from model_cases import HEADS, labels_of, options, ours, padded, pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bertfast import models
from bertfast.models import files

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
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=shard.name):
        models.BertForMaskedLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(models.WeightsError, match="not a file beside it"):
        models.BertForMaskedLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(models.WeightsError, match="no.* index of shards"):
        models.BertForMaskedLM.from_pretrained(tmp_path)


def lose(name):
    return lambda state: state.pop(name)


def cut(name):
    return lambda state: state.update({name: state[name][:-1].clone()})


def differ(state):
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"] + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lose("bert.encoder.layer.1.output.dense.weight"), r"lacks 'bert.encoder.layer.1.output.dense.weight' of shape \(64, 128\)"),
        (cut("bert.encoder.layer.0.output.dense.weight"), r"\(63, 128\) where 'bert.encoder.*\(64, 128\)"),
        (cut("cls.seq_relationship.bias"), r"\(1,\) where 'cls.seq_relationship.bias' of the model has \(2,\)"),
        (lose("cls.seq_relationship.bias"), "only a part of 'cls.seq_relationship'"),
        (differ, "differs from 'bert.embeddings.word_embeddings.weight'"),
        (lambda state: state.update({"embeddings.LayerNorm.bias": torch.zeros(64)}), "the same weight twice"),
    ],
)
def test_wrong_weights(change, said, tmp_path):
    ours("BertForPreTraining").save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(models.WeightsError, match=said) as caught:
        models.BertForPreTraining.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_weights_that_nothing_uses_are_named(tmp_path):
    ours("BertModel").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"does not use: encoder.layer.1.*and 11 more"):
        models.BertModel.from_pretrained(tmp_path, num_hidden_layers=1)


def test_damaged_and_absent_files(tmp_path):
    ours("BertModel").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(models.WeightsError, match=r"model.safetensors cannot be read"):
        models.BertModel.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor"):
        models.BertModel.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(models.WeightsError, match=r"pickle alone.*save_pretrained"):
        models.BertModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        models.BertModel.from_pretrained(tmp_path)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    ours("BertModel").save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    other = ours("BertModel", hidden_act="gelu_new")
    other.init_weights()
    with pytest.raises(OSError, match="no space"):
        other.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_gathered_state_and_parameters_without_data(tmp_path):
    model = ours("BertForMaskedLM")
    state = {name: value * 2 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(weights(tmp_path)["cls.predictions.bias"], state["cls.predictions.bias"])
    state.pop("cls.predictions.bias")
    with pytest.raises(ValueError, match="lacks \\['cls.predictions.bias'\\]"):
        model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="meta device.*gather"):
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
    assert torch.equal(again(**inputs, **labels).loss, model(**inputs, **labels).loss)
    assert os.listdir(tmp_path).count("model.safetensors") == 1
