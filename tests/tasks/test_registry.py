"""The registry's records: one form for all tasks, options that are stored and read back, and which task a checkpoint is of."""

import dataclasses
import json

import pytest
from task_cases import ENGLISH
from test_finetune import pair_file, run, save_model

from bertfast import models
from bertfast.cli.predict import PredictOptions
from bertfast.tasks.lines import DataError
from bertfast.tasks.predict import Fitted
from bertfast.tasks.registry import TASKS
from bertfast.tasks.task import TaskOptions
from bertfast.train.errors import ConfigError
from bertfast.train.finetune_config import FinetuneConfig, check_task, config_class
from bertfast.train.settings import resolve, to_yaml


def names(cls):
    return {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("name", TASKS)
def test_a_record_is_whole(name):
    task = TASKS[name]
    own = names(task.options) - names(TaskOptions)
    assert not own & names(FinetuneConfig), "an option of the task would take the place of one of every run"
    assert getattr(models, task.head).__name__ == task.head
    assert all(field.metadata["help"] for field in dataclasses.fields(task.options))
    given = {field.name for field in dataclasses.fields(task.options) if field.metadata["predicting"]}
    assert not given & names(PredictOptions), "an option of the task would take the place of one of predict"


@pytest.mark.parametrize("name", TASKS)
def test_a_configuration_is_the_options_and_goes_through_yaml(tmp_path, name):
    config = config_class(name)(model="m", train_file="t", max_length=77)
    assert isinstance(config, TASKS[name].options)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert resolve(config_class(name), tmp_path / "config.yaml") == config
    check_task(tmp_path / "config.yaml", name)


@pytest.mark.parametrize("name", TASKS)
def test_stored_options_are_read_back(tmp_path, name):
    made = TASKS[name].options(max_length=77)
    assert TASKS[name].options.from_stored(json.loads(json.dumps(made.stored())), tmp_path) == made


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("qa", {"stride": 0}, "'stride' of 'bertfast' in config.json is a number (0), and must be at least 1"),
        ("qa", {"max_answer": "x"}, "'max_answer' of 'bertfast' in config.json is text; take it out"),
        ("pair", {"sentences": 3}, "must be at most 2"),
        ("pair", {"fields": [1, 2]}, "'fields' of 'bertfast' in config.json is a list"),
        ("choice", {"max_length": True}, "is a boolean"),
    ],
)
def test_stored_options_of_another_kind(tmp_path, task, settings, message):
    with pytest.raises(DataError) as caught:
        TASKS[task].options.from_stored(settings, tmp_path)
    assert message in str(caught.value)


def test_a_run_goes_on_as_the_task_that_it_is(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: m\ntask: text\n")
    with pytest.raises(
        ConfigError, match=r"config.yaml:2: this is of a run of `finetune text`, and this command is `finetune pair`"
    ):
        check_task(path, "pair")
    path.write_text("model: m\n")  # as before runs said it
    check_task(path, "pair")


def checkpoint(folder, head="BertForSequenceClassification", **settings):
    pytest.importorskip("tokenizers")
    save_model(folder, getattr(models, head), len(ENGLISH), "en")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | ({"bertfast": settings} if settings else {})))
    return folder


def test_the_task_is_stored_and_survives_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = checkpoint(tmp_path / "a", task="text", max_length=9)
    assert Fitted.load(folder).notes == ()
    transformers.AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "b")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "b")
    again = Fitted.load(tmp_path / "b")
    assert (again.task.name, again.options.max_length, again.options.sentences) == ("text", 9, 1)


def test_a_checkpoint_that_does_not_say_is_taken_by_its_head(tmp_path):
    folder = checkpoint(tmp_path / "a")
    taken = Fitted.load(folder)
    assert taken.task.name == "pair"
    assert taken.notes == (
        f"{folder}: config.json does not say which task the model is for; its BertForSequenceClassification is taken for 'pair' "
        "(pair, text have this head: --task chooses)",
    )
    chosen = Fitted.load(folder, task="text")
    assert (chosen.task.name, chosen.notes) == ("text", ())
    only = Fitted.load(checkpoint(tmp_path / "b", "BertForQuestionAnswering"))
    assert only.task.name == "qa"
    assert only.notes[0].endswith("its BertForQuestionAnswering is taken for 'qa'")


def test_what_is_given_goes_over_what_is_stored(tmp_path):
    folder = checkpoint(tmp_path / "a", task="text", fields=["text", "label"])
    assert Fitted.load(folder, task="pair").task.name == "pair"


@pytest.mark.parametrize(
    ("stored", "given", "message"),
    [
        (
            {"task": "token"},
            None,
            "'task' of 'bertfast' in config.json is 'token', and its head is a BertForSequenceCl",
        ),
        ({"task": "poems"}, None, "is 'poems', and the tasks are pair, text, qa, token, choice"),
        ({"task": 3}, None, "'task' of 'bertfast' in config.json is a number (3)"),
        (
            {"max_length": 9},
            "qa",
            "--task is 'qa', and its head is a BertForSequenceClassification; give --task pair or",
        ),
    ],
)
def test_a_task_that_is_not_the_heads(tmp_path, stored, given, message):
    folder = checkpoint(tmp_path / "a", **stored)
    with pytest.raises(DataError) as caught:
        Fitted.load(folder, task=given)
    assert message in str(caught.value)


def test_texts_have_columns_of_their_own(tmp_path):
    folder = checkpoint(tmp_path / "a", task="text", sentences=1, fields=["text", "label"])
    (tmp_path / "in.jsonl").write_text('{"text": "a film", "note": "x"}\n')
    assert json.loads(run("predict", folder, tmp_path / "in.jsonl"))["text"] == "a film"
    (tmp_path / "in.csv").write_text("mail,kind\ngood,ham\n")
    message = run("predict", folder, tmp_path / "in.csv", status=2).replace("\n", " ")
    assert "no column 'text'; it has mail, kind" in message
    assert json.loads(run("predict", folder, tmp_path / "in.csv", "--fields", "mail"))["text"] == "good"
    assert "2 texts were given with --text; this model reads 1" in run(
        "predict", folder, "--text", "a", "--text", "b", status=2
    )


def test_predict_says_whose_an_option_is(tmp_path):
    folder = checkpoint(tmp_path / "a", "BertForTokenClassification", task="token")
    said = run("predict", folder, "--text", "a film", "--fields", "x", status=2)
    assert "--fields is for models of the tasks 'pair' and 'text'; this one is for 'token': leave it out" in said
    assert "this model is for the task 'token': give --text" in run("predict", folder, "--choice", "a", status=2)


def test_a_family_that_cannot_be_fine_tuned(tmp_path):
    folder = checkpoint(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    train = pair_file(tmp_path / "train.tsv", 8, 1)
    said = run("finetune", "text", "--model", folder, "--train", train, "--out", tmp_path / "run", status=2)
    words = " ".join(said.split())
    assert "model_type 'roberta' is not supported" in words
    assert "train models of other families with transformers, where bertfast.optimize(model) makes them fast" in words
