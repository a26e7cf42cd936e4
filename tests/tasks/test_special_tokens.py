"""Markers in texts: told where they are cut, one token each where the user says so, and the same to transformers."""

import json

import pytest
import torch
from task_cases import ENGLISH
from test_finetune import answers, run, save_model

from bertfast import models
from bertfast.data.tokenizer import load_tokenizer
from bertfast.tasks.special_tokens import cut_markers_note

TEXT = "the [E1] paris [/E1] is <e2>good</e2> film"


def test_markers_that_recur_are_named(english):
    note = cut_markers_note([TEXT, TEXT, "a [X] b"], english)
    assert "[E1] in 2 texts ([ e ##1 ])" in note
    assert "<e2> in 2 texts" in note
    assert "[X]" not in note
    assert cut_markers_note(["no [1] marker [a b]"] * 9, english) == ""
    assert cut_markers_note([TEXT] * 2 + [""] * 5000, english) == "", "two of thousands do not recur"


def test_a_special_token_of_bert_is_text_and_said_so_where_it_matters(english):
    assert "[SEP] in 2 texts" in cut_markers_note(["a [SEP] b"] * 2, english)
    assert cut_markers_note(["a [SEP] b"] * 2, english, specials=False) == ""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("yaml")
    return save_model(tmp_path_factory.mktemp("model"), models.BertForPreTraining, len(ENGLISH), "en")


def write(tmp_path):
    train = tmp_path / "train.tsv"
    train.write_text(
        "".join(f"the [E1] {word} [/E1] film\t{label}\n" for word, label in (("good", "x"), ("bad", "y")) * 4)
    )
    return train


def finetuned(checkpoint, tmp_path, *options):
    common = ("--max-length", 32, "--steps", 2, "--threads", 1)
    said = run(
        "finetune",
        "pair",
        "--model",
        checkpoint,
        "--train",
        write(tmp_path),
        "--out",
        tmp_path / "run",
        *common,
        *options,
    )
    return " ".join(said.split())


def test_without_the_option_the_run_says_what_is_cut(checkpoint, tmp_path):
    assert "[E1] in 8 texts ([ e ##1 ]), [/E1] in 8 texts" in finetuned(checkpoint, tmp_path)


def test_tokens_of_the_user_are_whole_and_new_and_transformers_agrees(checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    said = finetuned(checkpoint, tmp_path, "--special-tokens", "[E1],[/E1]")
    assert "markers are cut" not in said
    assert f"[E1] is id {len(ENGLISH)}, [/E1] is id {len(ENGLISH) + 1}; the word table has 2 new rows" in said
    folder = tmp_path / "run" / "model"
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    ids = oracle(TEXT)["input_ids"]
    assert {len(ENGLISH), len(ENGLISH) + 1} <= set(ids)
    assert load_tokenizer(folder).encode(TEXT).ids == ids[1:-1]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.vocab_size == len(ENGLISH) + 2
    row = json.loads(answers(folder, "--text", TEXT))
    with torch.no_grad():
        shares = theirs(**oracle(TEXT, return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert list(row["probabilities"].values()) == pytest.approx(shares, rel=1e-4)


def test_the_rows_of_known_words_stay_and_a_run_is_resumed(checkpoint, tmp_path):
    finetuned(checkpoint, tmp_path, "--special-tokens", "[E1]", "--lr", 1e-12, "--stop-at", 1)
    run("finetune", "pair", "--out", tmp_path / "run", "--resume")
    before = models.BertModel.from_pretrained(checkpoint).embeddings.word_embeddings.weight
    after = models.BertForSequenceClassification.from_pretrained(
        tmp_path / "run" / "model"
    ).bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(after[:-1], before, rtol=0, atol=1e-6)
    assert 0 < after[-1].std() < 0.1


def test_a_piece_that_there_is_keeps_its_id(checkpoint, tmp_path):
    said = finetuned(checkpoint, tmp_path, "--special-tokens", "paris")
    assert f"paris is id {ENGLISH.index('paris')}; the word table has 0 new rows" in said
    assert models.BertConfig.from_pretrained(tmp_path / "run" / "model").vocab_size == len(ENGLISH)


@pytest.mark.parametrize(
    ("tokens", "message"), [("[SEP]", "[SEP] is a special token of the tokenizer"), ("[E1],", "special token ''")]
)
def test_tokens_that_cannot_be(checkpoint, tmp_path, tokens, message):
    common = ("--model", checkpoint, "--train", write(tmp_path), "--out", tmp_path / "run", "--max-length", 32)
    assert message in " ".join(run("finetune", "pair", *common, "--special-tokens", tokens, status=2).split())


def test_a_word_table_grows_and_never_shrinks(checkpoint):
    torch.manual_seed(0)
    model = models.BertForSequenceClassification.from_pretrained(checkpoint)
    model.resize_token_embeddings(len(ENGLISH) + 3)
    assert model.config.vocab_size == model.bert.config.vocab_size == len(ENGLISH) + 3
    assert model(torch.tensor([[2, len(ENGLISH) + 2, 3]])).logits.shape == (1, 2)
    with pytest.raises(ValueError, match="can be given more"):
        model.resize_token_embeddings(3)
    with pytest.raises(ValueError, match="masked-LM"):
        models.BertForPreTraining.from_pretrained(checkpoint).resize_token_embeddings(len(ENGLISH) + 3)
