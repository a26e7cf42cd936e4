"""Multiple choice: files of SWAG's and other forms, what is read for each choice, heads, and answers of the command line."""

import json

import pytest
from task_cases import ENGLISH
from test_finetune import FAST, answers, choice_file, run, save_model

from bertfast import models
from bertfast.tasks.choice import ChoiceExample, choice_features, read_choices
from bertfast.tasks.lines import BadLines


def read(tmp_path, name, text, labelled=True):
    (tmp_path / name).write_text(text)
    return read_choices(tmp_path / name, BadLines(), labelled)


def test_swag(tmp_path):
    header = "video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
    (example,) = read(tmp_path, "swag.csv", f'{header}\nv,1,s,"A film.",The,gold,is good,is bad,plays,is,2\n')
    assert (example.context, example.question, example.answer) == ("A film.", "The", 2)
    assert [(pair.first, pair.second) for pair in example.pairs()][:2] == [
        ("A film.", "The is good"),
        ("A film.", "The is bad"),
    ]


@pytest.mark.parametrize(
    ("choices", "answer", "place"),
    [
        (["a", "b", "c"], 2, 2),
        (["a", "b", "c"], "1", 1),
        (["good", "bad"], "bad", 1),
        (["good", "bad"], "B", 1),
        (["B", "A"], "A", 1),  # its text goes before its letter
        (["7", "8"], "1", 1),
    ],
)
def test_an_answer_is_a_number_a_text_or_a_letter(tmp_path, choices, answer, place):
    line = json.dumps({"question": "what", "choices": choices, "answer": answer})
    (example,) = read(tmp_path, "in.jsonl", line)
    assert (example.answer, list(example.choices)) == (place, choices)


def test_questions_may_have_different_numbers_of_choices(tmp_path):
    text = "question\tending0\tending1\tending2\tlabel\nwhat\ta\tb\t\t1\nwho\ta\tb\tc\t2\n"
    assert [len(example.choices) for example in read(tmp_path, "in.tsv", text)] == [2, 3]


def test_answers_are_not_needed_for_prediction(tmp_path):
    (example,) = read(tmp_path, "in.jsonl", '{"context": "a", "endings": ["b", "c"]}\n', labelled=False)
    assert (example.choices, example.answer) == (("b", "c"), None)


def test_what_is_read_of_each_choice(english):
    example = ChoiceExample("the film", "who", ("play", "the the the the the"), 0, "")
    features, cut = choice_features([example], english, 9)
    assert cut == 1
    assert english.tokens(features[0].ids.tolist())[:4] == ["[CLS]", "the", "film", "[SEP]"]
    assert [len(feature) for feature in features] == [7, 9]
    alone, _ = choice_features([ChoiceExample("", "who", ("play", "the"), 0, "")], english, 9)
    assert english.tokens(alone[0].ids.tolist()) == ["[CLS]", "who", "[SEP]", "play", "[SEP]"]


def test_japanese(japanese):
    example = ChoiceExample("", "私は", ("学生。", "東京。"), 0, "")
    features, _ = choice_features([example], japanese, 20)
    assert japanese.tokens(features[0].ids.tolist()) == ["[CLS]", "私", "は", "[SEP]", "学生", "。", "[SEP]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step from a checkpoint whose classifier is of another head."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("yaml")
    folder = tmp_path_factory.mktemp("choice")
    save_model(folder / "start", models.BertForSequenceClassification, len(ENGLISH), "en")
    train = choice_file(folder / "train.jsonl", 8, 1)
    options = ("--model", folder / "start", "--train", train, "--dev", train, *FAST[2:], "--steps", 1)
    said = run("finetune", "choice", *options, "--out", folder / "run")
    return folder, " ".join(said.split())


def test_the_head_of_another_task_is_not_continued(trained):
    assert (
        "the checkpoint's head is not continued: it is one of a BertForSequenceClassification; a new one" in trained[1]
    )
    assert "8 questions (of 2 choices " in trained[1]


def test_the_head_is_continued(trained, tmp_path):
    train = choice_file(tmp_path / "train.jsonl", 8, 2)
    start = trained[0] / "run" / "model"
    said = run(
        "finetune", "choice", "--model", start, "--train", train, *FAST[2:], "--steps", 1, "--out", tmp_path / "r"
    )
    assert "new head" not in said
    assert "head is not" not in said


def test_answers_of_the_command_line(trained):
    model = trained[0] / "run" / "model"
    row = json.loads(answers(model, "--question", "what film", "--choice", "good", "--choice", "bad"))
    assert row.keys() == {"question", "answer", "choice", "probabilities"}
    assert row["choice"] == ("good", "bad")[row["answer"]]
    assert sum(row["probabilities"]) == pytest.approx(1.0)
    for given in (("--choice", "a"), ("--choice", "a", "--choice", "b")):
        said = run("predict", model, *given, status=2)
        assert f"{len(given) // 2} choices were given with --choice; give two or more" in said
    assert "this model is for the task 'choice': give --choice" in run("predict", model, "--text", "a", status=2)
