"""Whose names the classes have: a checkpoint's head goes on in its own order, or a new one takes its place, and either is said."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from task_cases import ENGLISH
from test_finetune import answers, conll_file, run, save_model

from bertfast import models
from bertfast.tasks.labels import StoredHead, choose_classes, value_head
from bertfast.tasks.lines import DataError
from bertfast.tasks.stored import stored_head

NLI = StoredHead(("entailment", "neutral", "contradiction"))
GENERIC = StoredHead(("LABEL_0", "LABEL_1", "LABEL_2"))
SORTED = ["contradiction", "entailment", "neutral"]


@pytest.mark.parametrize(
    ("names", "head", "labels", "rows", "spelling", "said"),
    [
        (SORTED, None, SORTED, (), {}, None),
        (SORTED, NLI, list(NLI.labels), (0, 1, 2), {}, "is continued, with its classes in its order: entailment, neutral"),
        (["contradiction", "neutral"], NLI, list(NLI.labels), (0, 1, 2), {}, "the training data has no entailment"),
        (
            ["Contradiction", "ENTAILMENT"], NLI, list(NLI.labels), (0, 1, 2),
            {"Contradiction": "contradiction", "ENTAILMENT": "entailment"}, "the data's Contradiction is contradiction",
        ),
        (["0", "1", "2"], NLI, list(NLI.labels), (0, 1, 2), dict(zip("012", NLI.labels, strict=True)), "0 is entailment"),
        (["1", "2", "3"], NLI, ["1", "2", "3"], (), {}, "1, 2, 3 is none of these"),
        (["entailment", "other"], NLI, ["entailment", "other"], (), {}, "and other is none of these"),
        (["A", "a"], StoredHead(("a", "b")), ["A", "a"], (), {}, "A is none of these"),
        (["0", "2"], GENERIC, ["0", "1", "2"], (0, 1, 2), {}, "is continued"),
        (["LABEL_0", "LABEL_2"], GENERIC, list(GENERIC.labels), (0, 1, 2), {}, "is continued"),
        (SORTED, GENERIC, SORTED, (), {}, "does not say which is which; --labels can"),
        (SORTED, StoredHead(("x", "x", "y")), SORTED, (), {}, "does not say which is which"),
        (SORTED, StoredHead(("LABEL_0",)), SORTED, (), {}, "it has a single output"),
        (SORTED, StoredHead(NLI.labels, other="it is one of a BertForTokenClassification"), SORTED, (), {}, "BertForTokenClass"),
        (SORTED, StoredHead(NLI.labels, "multi_label_classification"), list(NLI.labels), (0, 1, 2), {}, "several labels at a time"),
    ],
)  # fmt: skip
def test_without_labels_of_the_user(names, head, labels, rows, spelling, said):
    classes = choose_classes(names, names, head)
    assert (classes.labels, classes.rows, classes.spelling) == (labels, rows, spelling)
    assert said in " ".join(classes.notes) if said else not classes.notes


@pytest.mark.parametrize(
    ("chosen", "head", "rows", "said"),
    [
        (SORTED, NLI, (2, 0, 1), "contradiction was its output 2 (contradiction)"),
        (["neutral", "entailment"], NLI, (1, 0), "dropped: contradiction"),
        (["Neutral", "Entailment"], NLI, (1, 0), "Neutral was its output 1 (neutral)"),
        (["good", "bad"], NLI, (), "good, bad is none of these"),
        (SORTED, GENERIC, (0, 1, 2), "contradiction was its output 0 (LABEL_0)"),
        (["good", "bad"], GENERIC, (), "does not say which is which"),
        (SORTED, None, (), ""),
    ],
)
def test_labels_of_the_user_are_the_order(chosen, head, rows, said):
    classes = choose_classes(SORTED, SORTED, head, chosen)
    assert (classes.labels, classes.rows, classes.spelling) == (chosen, rows, {})
    assert said in " ".join(classes.notes)


def test_a_label_twice_is_refused():
    with pytest.raises(DataError, match="a class stands twice"):
        choose_classes(["a"], ["a"], None, ["a", "b", "a"])


def test_a_head_that_predicts_a_number():
    assert value_head(None).notes == ()
    assert value_head(StoredHead(("score",))).labels == ["score"]
    assert value_head(StoredHead(("score",))).rows == (0,)
    for other in (NLI, StoredHead(("toxic",), "multi_label_classification")):
        assert value_head(other).rows == ()
        assert "is not continued" in value_head(other).notes[0]


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    """A checkpoint in MNLI's order, whose classes are told apart by nothing but its head's rows."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("yaml")
    folder = save_model(tmp_path_factory.mktemp("nli"), models.BertForPreTraining, len(ENGLISH), "en")
    config = models.BertConfig.from_pretrained(folder, num_labels=3, id2label=dict(enumerate(NLI.labels)))
    torch.manual_seed(1)
    models.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def data(path, labels=NLI.labels):
    texts = ("the film", "paris is good", "who")
    rows = [f"{text}\t{text}\t{label}\n" for text, label in zip(texts * 2, [*labels] * 2, strict=False)]
    path.write_text("".join(rows))
    return path


def finetuned(nli, tmp_path, *options, labels=NLI.labels):
    train = data(tmp_path / "train.tsv", labels)
    common = ("--max-length", 32, "--steps", 1, "--lr", 1e-12, "--threads", 1)
    said = run("finetune", "pair", "--model", nli, "--train", train, "--out", tmp_path / "run", *common, *options)
    folder = tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    return said, folder, list(config["id2label"].values())


def test_a_step_at_a_rate_of_nothing_changes_no_prediction(nli, tmp_path):
    said, folder, names = finetuned(nli, tmp_path)
    assert names == list(NLI.labels)
    assert "the checkpoint's head is continued" in said
    asked = ("--text", "paris is good", "--text", "the film")
    before, after = (json.loads(answers(model, *asked)) for model in (nli, folder))
    assert after["label"] == before["label"]
    assert after["probabilities"] == pytest.approx(before["probabilities"], abs=1e-5)


def test_the_order_of_the_user_moves_the_rows_with_the_names(nli, tmp_path):
    _, folder, names = finetuned(nli, tmp_path, "--labels", ",".join(SORTED))
    assert names == SORTED
    before, after = (load_file(model / "model.safetensors")["classifier.weight"] for model in (nli, folder))
    torch.testing.assert_close(after, before[[2, 0, 1]], rtol=0, atol=1e-6)
    asked = ("--text", "paris is good", "--text", "the film")
    before, after = (json.loads(answers(model, *asked))["probabilities"] for model in (nli, folder))
    assert after == pytest.approx(before, abs=1e-5)


def test_other_names_get_another_head(nli, tmp_path):
    said, folder, names = finetuned(nli, tmp_path, labels=("a", "b", "c"))
    assert names == ["a", "b", "c"]
    assert "new head: classifier" in said
    assert "it is for entailment, neutral, contradiction, and a, b, c is none of these" in " ".join(said.split())
    before, after = (load_file(model / "model.safetensors")["classifier.weight"] for model in (nli, folder))
    assert (after - before).abs().max() > 1e-3


def test_a_held_out_file_with_a_class_that_training_lacks(nli, tmp_path):
    dev = data(tmp_path / "dev.tsv", ("entailment", "neutral", "unsure"))
    train = data(tmp_path / "t.tsv")
    arguments = ("finetune", "pair", "--model", nli, "--train", train, "--dev", dev, "--max-length", 32, "--steps", 1)
    said = " ".join(run(*arguments, "--out", tmp_path / "refused", status=2).split())
    assert "dev.tsv:3: a label that is none of entailment, neutral, contradiction: 'unsure'" in said
    said = " ".join(run(*arguments, "--out", tmp_path / "run", "--bad-lines", "skip").split())
    assert "dev.tsv: 4 examples (entailment 2, neutral 2, contradiction 0)" in said
    assert "left out: 2 with a label that is none of" in said


def test_tags_in_the_order_of_the_checkpoint(tmp_path, nli):
    folder = tmp_path / "tags"
    shutil.copytree(nli, folder)
    order = {0: "O", 1: "I-Q", 2: "B-Q", 3: "B-LOC"}
    torch.manual_seed(2)
    models.BertForTokenClassification(
        models.BertConfig.from_pretrained(folder, num_labels=4, id2label=order)
    ).save_pretrained(folder)
    train = conll_file(tmp_path / "train.conll", 8, 1)
    common = ("--max-length", 32, "--steps", 1, "--lr", 1e-12, "--threads", 1)
    said = " ".join(
        run("finetune", "token", "--model", folder, "--train", train, "--out", tmp_path / "run", *common).split()
    )
    assert "with its classes in its order: O, I-Q, B-Q, B-LOC; the training data has no I-Q, B-LOC" in said
    config = models.BertConfig.from_pretrained(tmp_path / "run" / "model")
    assert config.id2label == order
    before, after = (
        load_file(model / "model.safetensors")["classifier.weight"] for model in (folder, tmp_path / "run" / "model")
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_what_a_folder_says_of_its_head(nli, tmp_path):
    assert stored_head(nli, "BertForSequenceClassification") == NLI
    assert stored_head(nli, "BertForTokenClassification").other == "it is one of a BertForSequenceClassification"
    plain = save_model(tmp_path, models.BertForPreTraining, len(ENGLISH), "en")
    assert stored_head(plain, "BertForSequenceClassification") is None


@pytest.mark.parametrize(
    ("problem_type", "labels", "expected"),
    [
        ("multi_label_classification", 3, {"labels", "probabilities"}),
        ("regression", 3, {"values"}),
        ("regression", 1, {"value"}),
        ("multi_label_classification", 1, {"labels", "probabilities"}),
        (None, 3, {"label", "probabilities"}),
    ],
)
def test_predict_says_what_the_head_was_trained_to_say(tmp_path, problem_type, labels, expected):
    transformers = pytest.importorskip("transformers")
    folder = save_model(tmp_path, models.BertForPreTraining, len(ENGLISH), "en")
    names = {place: f"class {place}" for place in range(labels)}
    config = models.BertConfig.from_pretrained(folder, num_labels=labels, id2label=names, problem_type=problem_type)
    models.BertForSequenceClassification(config).save_pretrained(folder)
    row = json.loads(answers(folder, "--text", "paris is good"))
    assert row.keys() - {"sentence1"} == expected
    if "labels" in expected:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        oracle = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            shares = oracle(**tokenizer("paris is good", return_tensors="pt")).logits.sigmoid()[0].tolist()
        assert list(row["probabilities"].values()) == pytest.approx(shares, rel=1e-4)
        assert row["labels"] == [name for name, share in row["probabilities"].items() if share > 0.5]


def test_predict_refuses_one_name_for_two_outputs(nli, tmp_path):
    folder = tmp_path / "twice"
    shutil.copytree(nli, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b", "2": "a"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "'a' more than once" in " ".join(run("predict", folder, "--text", "a", status=2).split())


def test_classes_that_are_no_tags_of_entities_are_predicted_as_tags(tmp_path):
    folder = save_model(tmp_path, models.BertForPreTraining, len(ENGLISH), "en")
    config = models.BertConfig.from_pretrained(folder, num_labels=2, id2label={0: "NOUN", 1: "VERB"})
    models.BertForTokenClassification(config).save_pretrained(folder)
    said = run("predict", folder, "--text", "paris plays")
    assert "predicted as tags of words, without entities" in " ".join(said.split())
    row = json.loads(said[said.index("{") :])
    assert row.keys() == {"text", "tokens", "tags"}
    assert set(row["tags"]) <= {"NOUN", "VERB"}


def test_names_of_a_folder_that_do_not_agree_are_told(nli, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(nli, folder)
    config = json.loads((folder / "config.json").read_text())
    config["label2id"] = {"entailment": 2, "neutral": 1, "contradiction": 0}
    (folder / "config.json").write_text(json.dumps(config))
    said = " ".join(run("predict", folder, "--text", "a", "--text", "b").split())
    assert "id2label and label2id in config.json do not agree; id2label counts: 0 is entailment" in said
    said, _, names = finetuned(folder, tmp_path)
    assert "do not agree" in " ".join(said.split())
    assert names == list(NLI.labels)


@pytest.mark.parametrize("skip", [False, True])
def test_tags_that_the_user_does_not_list_are_refused_or_take_their_sentence_with_them(nli, tmp_path, skip):
    train = tmp_path / "t.conll"
    train.write_text("paris B-LOC\n\nfilm B-Q\nis O\n\nthe O\n")
    arguments = (
        "finetune",
        "token",
        "--model",
        nli,
        "--train",
        train,
        "--out",
        tmp_path / "run",
        "--max-length",
        32,
        "--steps",
        1,
    )
    labels = ("--labels", "O,B-LOC,I-LOC")
    said = run(*arguments, *labels, *(("--bad-lines", "skip") if skip else ()), status=0 if skip else 2)
    assert "t.conll:3: a tag that is none of O, B-LOC, I-LOC: B-Q" in " ".join(said.split())
    assert not skip or "2 sentences, 2 words" in said
