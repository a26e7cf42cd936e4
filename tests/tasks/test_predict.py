"""What a folder is for, input without labels, and how the command line refuses what does not fit."""

import dataclasses
import json
import subprocess
import sys

import pytest
from task_cases import ENGLISH
from test_finetune import run, save_model

from bertfast import models
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.predict import Fitted
from bertfast.tasks.task import Line


def fitted(folder, cls, **settings):
    pytest.importorskip("tokenizers")
    save_model(folder, cls, len(ENGLISH), "en")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return Fitted.load(folder)


def test_kind_and_lengths_come_from_the_folder(tmp_path):
    mine = fitted(tmp_path / "a", models.BertForSequenceClassification, bertfast={"max_length": 12, "sentences": 2})
    assert (mine.task.name, mine.labels, mine.options.max_length) == ("pair", ["LABEL_0", "LABEL_1"], 12)
    foreign = fitted(tmp_path / "b", models.BertForQuestionAnswering)
    assert (foreign.task.name, foreign.options.max_length, foreign.options.threshold) == ("qa", 64, None)


def test_settings_of_questions_are_kept(tmp_path):
    kept = {"max_length": 40, "stride": 7, "max_question": 9, "max_answer": 5, "no_answer_threshold": -2.0}
    options = fitted(tmp_path, models.BertForQuestionAnswering, bertfast=kept).options
    assert (options.max_length, options.stride, options.max_question, options.max_answer) == (40, 7, 9, 5)
    assert options.threshold == -2.0


def test_a_model_without_a_head_of_ours(tmp_path):
    with pytest.raises(DataError, match="BertForPreTraining, which predicts nothing"):
        fitted(tmp_path, models.BertForPreTraining)


def test_a_tokenizer_of_another_model(tmp_path):
    fitted(tmp_path, models.BertForSequenceClassification)
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(DataError, match="are not of one checkpoint"):
        Fitted.load(tmp_path)


def test_pairs_of_a_file_without_labels(tmp_path):
    mine = fitted(tmp_path / "m", models.BertForSequenceClassification, bertfast={"sentences": 2})
    (tmp_path / "in.tsv").write_text("the film\tgood\nparis\tbad\n")
    rows = mine.predict(mine.read(tmp_path / "in.tsv", BadLines())).rows
    assert [(row["sentence1"], row["sentence2"]) for row in rows] == [("the film", "good"), ("paris", "bad")]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1.0) for row in rows)


def test_order_of_predictions_is_that_of_the_input(tmp_path):
    mine = fitted(tmp_path / "m", models.BertForSequenceClassification)
    lines = [" ".join(["good"] * (1 + i * 7 % 11)) for i in range(30)]
    (tmp_path / "in.txt").write_text("\n".join(lines))
    together = mine.predict(mine.read(tmp_path / "in.txt", BadLines())).rows
    for line, row in zip(lines, together, strict=True):
        (alone,) = mine.predict(mine.example(Line(text=[line]))).rows
        assert row["sentence1"] == line
        assert row["probabilities"] == pytest.approx(alone["probabilities"], rel=1e-4)


def test_entities_of_plain_text_have_characters(tmp_path):
    mine = fitted(tmp_path / "m", models.BertForTokenClassification)
    mine = dataclasses.replace(mine, labels=["B-X", "B-Y"])
    (tmp_path / "in.txt").write_text("Who  plays, Paris?\n")
    (row,) = mine.predict(mine.read(tmp_path / "in.txt", BadLines())).rows
    assert row["text"] == "Who  plays, Paris?"
    assert [e["text"] for e in row["entities"]] == ["Who", "plays", ",", "Paris", "?"]
    assert all(row["text"][e["start"] : e["end"]] == e["text"] for e in row["entities"])


def test_one_question(tmp_path):
    mine = fitted(tmp_path, models.BertForQuestionAnswering)
    mine = dataclasses.replace(mine, options=dataclasses.replace(mine.options, max_length=48, max_question=8))
    with pytest.raises(DataError, match="the text is empty: give --context"):
        mine.example(Line(question="who?", context=""))
    found = mine.predict(mine.example(Line(question="who?", context="Paris plays.")))
    assert found.rows[0]["answer"] in "Paris plays."
    assert found.document == {"1": found.rows[0]["answer"]}
    assert found.n_best["1"]["answers"]


def test_command_line(tmp_path):
    fitted(tmp_path / "m", models.BertForSequenceClassification)
    assert "give one of INPUT" in run("predict", tmp_path / "m", status=2)
    assert "belong together" in run("predict", tmp_path / "m", "--question", "a", status=2)
    assert "cannot be read" in run("predict", tmp_path / "m", tmp_path / "none.tsv", status=2)
    assert "names of models on a hub are not looked up" in run("predict", "bert-base-uncased", "--text", "a", status=2)
    assert "the text is empty" in run("predict", tmp_path / "m", "--text", " ", status=2)
    for more in (("--n-best", tmp_path / "n.json"), ("--threshold", 1)):
        assert f"{more[0]} is for models of the task 'qa'" in run(
            "predict", tmp_path / "m", "--text", "a", *more, status=2
        )
    (tmp_path / "in.jsonl").write_text('{"sentence1": "good"}\n{\n')
    assert "in.jsonl:2" in run("predict", tmp_path / "m", tmp_path / "in.jsonl", status=2)
    out = tmp_path / "out.jsonl"
    run("predict", tmp_path / "m", tmp_path / "in.jsonl", "--bad-lines", "skip", "--out", out)
    assert len(out.read_text().splitlines()) == 1


def test_fields(tmp_path):
    kept = {"task": "pair", "sentences": 1, "fields": ["a", "gold"]}
    fitted(tmp_path / "m", models.BertForSequenceClassification, bertfast=kept)
    (tmp_path / "in.jsonl").write_text('{"a": "good", "b": "bad"}\n')
    said = {name: run("predict", tmp_path / "m", tmp_path / "in.jsonl", *more) for name, more in {
        "good": (), "bad": ("--fields", "b"),
    }.items()}  # fmt: skip
    assert all(json.loads(text)["sentence1"] == name for name, text in said.items())
    message = run("predict", tmp_path / "m", tmp_path / "in.jsonl", "--fields", "a,b,c,d", status=2)
    assert "fields a,b,c,d: name sentence1,sentence2,label or sentence,label" in message


def test_help_does_not_import_what_only_commands_need():
    code = (
        "import sys, torch, bertfast.cli;"
        "print(sorted({'tokenizers', 'datasets', 'transformers', 'yaml', 'matplotlib', 'bertfast.models'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
