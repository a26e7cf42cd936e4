"""Checkpoints that are wrong, cut short, in part absent or stored as pickle: what is said, and what is left on disk."""

import json

import pytest
import torch
from model_cases import ours, pair
from safetensors.torch import load_file, save_file

from bertfast import models
from bertfast.models import files


def rewrite(folder, change):
    """The stored weights with `change` applied to their dict."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def lose(name):
    return lambda state: state.pop(name)


def cut(name):
    return lambda state: state.update({name: state[name][:-1].clone()})


def differ(state):
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"] + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lose("bert.encoder.layer.1.output.dense.weight"),
            r"lacks 'bert.encoder.layer.1.output.dense.weight' of shape \(64, 128\)",
        ),
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


def test_shards_that_are_absent_or_elsewhere(tmp_path):
    pair("BertForMaskedLM")[0].save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=shard.name):
        models.BertForMaskedLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(models.WeightsError, match="not a file beside it"):
        models.BertForMaskedLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(models.WeightsError, match=r"is not an index of shards"):
        models.BertForMaskedLM.from_pretrained(tmp_path)
