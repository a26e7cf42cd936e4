"""The fine-tuning benchmark: splits that do not leak, and both sides on a tiny model from the same weights."""

import json

import pytest
import torch

from bertfast import models

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("yaml")

from benchmarks import finetune as suite
from bertfast.train.finetune_config import config_class

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "?", "paris", "is", "big", "rome", "small"]


@pytest.fixture
def squad(tmp_path):
    def question(name, text, start):
        return {"id": name, "question": "what?", "answers": [{"text": text, "answer_start": start}] if text else [],
                "is_impossible": not text}  # fmt: skip

    articles = []
    for title in ("A", "B", "C"):
        asked = [question(f"{title}1", "paris", 0), question(f"{title}2", "", 0)]
        articles.append({"title": title, "paragraphs": [{"context": "paris is big", "qas": asked}]})
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}))
    return path


def questions(path):
    return [q["id"] for a in json.loads(path.read_text())["data"] for p in a["paragraphs"] for q in p["qas"]]


def test_articles_are_held_out(tmp_path, squad):
    train, dev = suite.split_articles(squad, tmp_path, {"B"})
    assert questions(train) == ["A1", "A2", "C1", "C2"]
    assert questions(dev) == ["B1", "B2"]
    train, dev = suite.split_articles(squad, tmp_path, {"B"}, answerable=True)
    assert (questions(train), questions(dev)) == (["A1", "C1"], ["B1"])


def test_pairs_about_a_picture_stay_together(tmp_path):
    path = tmp_path / "jnli.jsonl"
    path.write_text("\n".join(json.dumps({"yjcaptions_id": f"{i % 10}-{i}-x"}) for i in range(50)))
    train, dev = (
        {json.loads(line)["yjcaptions_id"].split("-")[0] for line in part.read_text().splitlines()}
        for part in suite.split_pairs(path, tmp_path)
    )
    assert len(train | dev) == 10
    assert not train & dev
    assert len(dev) == 2


def test_both_sides_begin_with_the_same_weights(tmp_path, squad):
    folder = tmp_path / "model"
    config = models.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    models.BertForPreTraining(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    rows = []
    for side in ("bertfast", "transformers"):
        options = config_class("qa")(
            model=str(folder), train_file=str(squad), dev_file=str(squad), max_length=32, max_question=8, batch_size=3,
            layout="padded", train=suite.training(0, 1.0, 1e-3, 1, 2),
        )  # fmt: skip
        rows.append(suite.measure(options, tmp_path / side, stock=side == "transformers"))
    # All sequences are equally long, so that there is no padding, over which stock's loss would run as well.
    assert rows[0]["steps"] == rows[1]["steps"] == 2
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
    assert rows[0]["f1"] == pytest.approx(rows[1]["f1"])
    ours, stock = (
        models.BertForQuestionAnswering.from_pretrained(tmp_path / side / "model").state_dict()
        for side in ("bertfast", "transformers")
    )
    # A softmax does not see its bias: that gradient is rounding alone, which Adam makes steps of.
    del ours["qa_outputs.bias"], stock["qa_outputs.bias"]
    torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-5)


def test_an_article_that_is_not_there_is_named(tmp_path, squad):
    with pytest.raises(suite.typer.BadParameter, match="'Z'"):
        suite.split_articles(squad, tmp_path, {"A", "Z"})
