"""Masks filled as transformers' pipeline does; clear errors where there is nothing to fill or nothing to fill with."""

import json

import pytest
import torch
from task_cases import ENGLISH, JAPANESE
from test_finetune import run, save_model

from bertfast import models
from bertfast.tasks.fill_mask import fill_masks, load_masked_lm
from bertfast.tasks.lines import DataError


@pytest.fixture(scope="module")
def english_model(tmp_path_factory):
    pytest.importorskip("tokenizers")
    return save_model(tmp_path_factory.mktemp("model"), models.BertForPreTraining, len(ENGLISH), "en")


@pytest.mark.parametrize("text", ["Paris is the [MASK] of France.", "the [MASK] is [MASK] good"])
def test_guesses_are_those_of_transformers(english_model, text):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(english_model)
    oracle = transformers.AutoModelForMaskedLM.from_pretrained(english_model).eval()
    given = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = oracle(**given).logits[0, given["input_ids"][0] == tokenizer.mask_token_id]
    logits[:, tokenizer.all_special_ids] = -torch.inf
    got = fill_masks(*load_masked_lm(english_model), text, top=4)
    assert len(got) == text.count("[MASK]")
    for guesses, row in zip(got, logits, strict=True):
        shares, ids = row.softmax(-1).topk(4)
        assert [g.piece for g in guesses] == tokenizer.convert_ids_to_tokens(ids)
        assert [g.probability for g in guesses] == pytest.approx(shares.tolist(), rel=1e-4)


def test_text_is_filled_in(english_model):
    got = fill_masks(*load_masked_lm(english_model), "Play [MASK] film", top=len(ENGLISH))
    texts = {g.piece: g.text for g in got[0]}
    assert texts["good"] == "Play good film"
    assert texts["##s"] == "Plays film"
    assert not texts.keys() & {"[PAD]", "[MASK]", "[UNK]", "[CLS]", "[SEP]"}
    assert len(got[0]) == len(ENGLISH) - 5


def test_japanese(tmp_path):
    pytest.importorskip("fugashi")
    pytest.importorskip("unidic_lite")
    folder = save_model(tmp_path, models.BertForMaskedLM, len(JAPANESE), "ja")
    (guesses,) = fill_masks(*load_masked_lm(folder), "私は[MASK]に住んでいます", top=50)
    assert {g.piece: g.text for g in guesses}["東京"] == "私は東京に住んでいます"


def test_command(english_model):
    rows = json.loads(run("fill-mask", english_model, "the [MASK] is good", "--top", 3, "--json"))
    assert len(rows[0]) == 3
    assert "probability" in run("fill-mask", english_model, "[MASK] is [MASK]")
    assert "the text has no [MASK]" in run("fill-mask", english_model, "nothing here", status=2)


def test_what_cannot_be_filled(english_model, tmp_path):
    with pytest.raises(DataError, match="64 positions"):
        fill_masks(*load_masked_lm(english_model), "good " * 70 + "[MASK]")
    classifier = save_model(tmp_path, models.BertForSequenceClassification, len(ENGLISH), "en")
    with pytest.raises(DataError, match="BertForSequenceClassification has no masked-LM head"):
        load_masked_lm(classifier)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(models.WeightsError, match="pickle alone"):
        load_masked_lm(tmp_path)
