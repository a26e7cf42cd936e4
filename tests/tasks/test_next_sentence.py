"""next-sentence: the probabilities of transformers' own head, yes and no, files of pairs, and models without that head."""

import json

import pytest
import torch
from task_cases import ENGLISH
from test_finetune import run, save_model

from bertfast import models
from bertfast.tasks.lines import DataError
from bertfast.tasks.next_sentence import Judgement, judge, load_next_sentence
from bertfast.tasks.pair import PairExample

PAIRS = [("the film is good", "who plays?"), ("paris", "the capital of france is paris")]


@pytest.fixture(scope="module", params=["BertForPreTraining", "BertForNextSentencePrediction"])
def checkpoint(request, tmp_path_factory):
    pytest.importorskip("tokenizers")
    return save_model(tmp_path_factory.mktemp("nsp"), getattr(models, request.param), len(ENGLISH), "en")


def test_probabilities_are_transformers(checkpoint):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.BertForNextSentencePrediction.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = judge(*load_next_sentence(checkpoint, "cpu"), [PairExample(a, b, None, "") for a, b in PAIRS])
    for (a, b), each in zip(PAIRS, found, strict=True):
        with torch.no_grad():
            expected = oracle(**tokenizer(a, b, return_tensors="pt")).logits.softmax(-1)[0, 0].item()
        assert each.probability == pytest.approx(expected, abs=1e-5)
        assert each.answer == ("yes" if expected >= 0.5 else "no")


def test_yes_from_one_half_on():
    assert [Judgement(p).answer for p in (0.0, 0.499, 0.5, 1.0)] == ["no", "no", "yes", "yes"]


def test_command_line(checkpoint, tmp_path):
    said = run("next-sentence", checkpoint, *PAIRS[0])
    row = json.loads(run("next-sentence", checkpoint, *PAIRS[0], "--json"))
    assert said == f"{row['answer']} (B follows A with probability {row['probability']:.4f})\n"
    (tmp_path / "in.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS))
    rows = [json.loads(line) for line in run("next-sentence", checkpoint, "--pairs", tmp_path / "in.tsv").splitlines()]
    assert [(row["sentence1"], row["sentence2"]) for row in rows] == PAIRS
    assert rows[0]["probability"] == pytest.approx(row["probability"], abs=1e-6)
    run("next-sentence", checkpoint, "--pairs", tmp_path / "in.tsv", "--out", tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows


def test_mistakes(checkpoint, tmp_path):
    for given in ((), ("a",), ("a", "b", "--pairs", tmp_path)):
        assert "give two texts, A and B, or a file of pairs" in run("next-sentence", checkpoint, *given, status=2)
    assert "the text is empty: give B something to read" in run("next-sentence", checkpoint, "a", " ", status=2)
    (tmp_path / "in.tsv").write_text("alone\n")
    assert "in.tsv:1" in run("next-sentence", checkpoint, "--pairs", tmp_path / "in.tsv", status=2)
    with pytest.raises(DataError, match="there is no second text"):
        judge(*load_next_sentence(checkpoint, "cpu"), [PairExample("a", None, None, "x")])
    assert "1 of 1 pairs were cut to the model's 64 positions" in run("next-sentence", checkpoint, "a " * 80, "b")


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_a_model_without_the_head(tmp_path, head):
    pytest.importorskip("tokenizers")
    folder = save_model(tmp_path, getattr(models, head), len(ENGLISH), "en")
    said = " ".join(run("next-sentence", folder, "a", "b", status=2).split())
    assert f"{head} has no next-sentence head" in said
    assert "BertForPreTraining or BertForNextSentencePrediction" in said
