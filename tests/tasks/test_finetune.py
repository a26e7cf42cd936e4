"""Fine-tuning from command to folder: each kind learns a tiny task, is loaded by transformers, resumes, and predicts."""

import json
import random

import pytest
import torch
from task_cases import ENGLISH, JAPANESE, tokenizer_folder
from typer.testing import CliRunner

from bertfast import models
from bertfast.cli import app

WORDS = ["the", "film", "is", "very", "paris", "france", "play"]


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def answers(*arguments):
    """What `predict` gives to the next program: notes are not among it."""
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model of two layers, with an English tokenizer."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("yaml")
    return save_model(tmp_path_factory.mktemp("model"), models.BertForPreTraining, len(ENGLISH), "en")


def save_model(folder, cls, vocabulary, language):
    torch.manual_seed(0)
    config = models.BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    cls(config).save_pretrained(folder)
    return tokenizer_folder(folder, language)


def sentences(n, seed):
    draw = random.Random(seed)
    for _ in range(n):
        words = [draw.choice(WORDS) for _ in range(draw.randint(2, 6))]
        label = draw.choice(["good", "bad"])
        yield [*words, label, draw.choice(WORDS)], label


def pair_file(path, n, seed):
    path.write_text("".join(f"{' '.join(words)}\t{label}\n" for words, label in sentences(n, seed)))
    return path


def squad_file(path, n, seed):
    """What follows "capital of" is the answer."""
    draw = random.Random(seed)
    data = []
    for i in range(n):
        words = [draw.choice(["the", "film", "is", "very"]) for _ in range(draw.randint(1, 4))]
        place = draw.choice(["paris", "france"])
        context = " ".join([*words, "capital of", place, *words])
        impossible = i % 4 == 0
        if impossible:
            context = context.replace("capital of " + place, "play")
        answers = [] if impossible else [{"text": place, "answer_start": context.index(place)}]
        question = {"id": str(i), "question": "what?", "answers": answers, "is_impossible": impossible}
        data.append({"title": "t", "paragraphs": [{"context": context, "qas": [question]}]})
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def conll_file(path, n, seed):
    lines = []
    for words, label in sentences(n, seed):
        lines += [f"{word}\t{'B-Q' if word == label else 'O'}" for word in words] + [""]
    path.write_text("\n".join(lines))
    return path


def choice_file(path, n, seed):
    """The choice that says "good"; two or three choices."""
    draw = random.Random(seed)
    lines = []
    for _ in range(n):
        words = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 4))) for _ in range(draw.randint(2, 3))]
        right = draw.randrange(len(words))
        choices = [f"{text} {'good' if place == right else 'bad'}" for place, text in enumerate(words)]
        lines.append(json.dumps({"question": "what film", "choices": choices, "answer": right}))
    path.write_text("\n".join(lines) + "\n")
    return path


KINDS = {
    "pair": (pair_file, "train.tsv", "accuracy", 0.95, "AutoModelForSequenceClassification"),
    "text": (pair_file, "train.tsv", "accuracy", 0.95, "AutoModelForSequenceClassification"),
    "choice": (choice_file, "train.jsonl", "accuracy", 0.95, "AutoModelForMultipleChoice"),
    "qa": (squad_file, "train.json", "f1", 90.0, "AutoModelForQuestionAnswering"),
    "token": (conll_file, "train.conll", "f1", 0.95, "AutoModelForTokenClassification"),
}
FAST = ("--epochs", 5, "--learning-rate", 3e-3, "--batch-size", 16, "--max-length", 48, "--threads", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_transformers_computes_the_same(tmp_path, checkpoint, kind):
    transformers = pytest.importorskip("transformers")
    write, name, metric, least, auto = KINDS[kind]
    train, dev = write(tmp_path / name, 160, 1), write(tmp_path / f"dev-{name}", 40, 2)
    out = tmp_path / "run"
    more = ("--max-question", 8, "--keep-best", "f1") if kind == "qa" else ()
    said = run("finetune", kind, "--model", checkpoint, "--train", train, "--dev", dev, "--out", out, *FAST, *more)
    unit = {"qa": "questions", "token": "sentences", "choice": "questions"}.get(kind, "examples")
    assert f"train: 160 {unit}" in said.replace(str(train), "train")
    assert f"dev: 40 {unit}" in said.replace(str(dev), "dev")
    head = "qa_outputs" if kind == "qa" else "classifier"
    (note,) = [text for text in json.loads((out / "metrics.json").read_text())["notes"] if "new head" in text]
    assert note.startswith("new head: ")
    assert note.endswith(head)
    assert json.loads((out / "model" / "config.json").read_text())["bertfast"]["task"] == kind
    scores = json.loads((out / "metrics.json").read_text())
    assert scores[metric] >= least, scores
    oracle = getattr(transformers, auto).from_pretrained(out / "model").eval()
    ours = getattr(models, oracle.__class__.__name__).from_pretrained(out / "model")
    ids = torch.arange(5, 15)[None] if kind != "choice" else torch.arange(5, 25).view(1, 2, 10)
    with torch.no_grad():
        theirs, mine = oracle(ids), ours(ids)
    field = "start_logits" if kind == "qa" else "logits"
    torch.testing.assert_close(getattr(mine, field), getattr(theirs, field), rtol=1e-4, atol=1e-5)

    predicted = tmp_path / "predicted"
    run("predict", out / "model", dev, "--out", predicted)
    if kind == "qa":
        threshold = ours.config.extra["bertfast"]["no_answer_threshold"]
        assert threshold == pytest.approx(scores["best_f1_threshold"])
        assert json.loads(predicted.read_text()) == json.loads((out / "predictions.json").read_text())
        assert json.loads((out / "best" / "best_score.json").read_text())["score"] == pytest.approx(scores["f1"])
        assert "best: f1 " in said
        assert f" at step {json.loads((out / 'best' / 'best_score.json').read_text())['step']}, in " in said
    else:
        rows = [json.loads(line) for line in predicted.read_text().splitlines()]
        kept = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        label = {"token": "tags", "choice": "answer"}.get(kind, "label")
        assert [row[label] for row in rows] == [row[label] for row in kept]


def test_the_answers_of_a_run_are_those_of_predict(tmp_path, checkpoint):
    """A model that has learnt nothing gives other answers by a threshold of 0 than by the one that was found."""
    train, dev = squad_file(tmp_path / "train.json", 16, 1), squad_file(tmp_path / "dev.json", 40, 2)
    out, predicted = tmp_path / "run", tmp_path / "predicted.json"
    files = ("--model", checkpoint, "--train", train, "--dev", dev, "--out", out)
    run("finetune", "qa", *files, *FAST[2:], "--lr", 1e-6, "--max-question", 8, "--steps", 1)
    run("predict", out / "model", dev, "--out", predicted)
    found = json.loads((out / "predictions.json").read_text())
    scores = json.loads((out / "metrics.json").read_text())
    assert scores["best_f1"] > scores["f1"] + 1
    assert found == json.loads(predicted.read_text())


def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path, checkpoint):
    train, dev = pair_file(tmp_path / "train.tsv", 64, 1), pair_file(tmp_path / "dev.tsv", 16, 2)
    common = ("--model", checkpoint, "--train", train, "--dev", dev, *FAST, "--epochs", 2)
    run("finetune", "pair", *common, "--out", tmp_path / "whole")
    run("finetune", "pair", *common, "--out", tmp_path / "parts", "--stop-at", 3)
    assert not (tmp_path / "parts" / "model").exists()
    run("finetune", "pair", "--out", tmp_path / "parts", "--resume")  # with the options that it was begun with
    whole, parts = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_sequence_of_labels_is_in_the_config_and_texts_are_predicted(tmp_path, checkpoint):
    train = pair_file(tmp_path / "train.tsv", 32, 1)
    out = tmp_path / "run"
    run("finetune", "pair", "--model", checkpoint, "--train", train, "--out", out, *FAST, "--labels", "good,bad")
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "good", "1": "bad"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["bertfast"]["fields"] == ["sentence1", "sentence2", "label"]
    # A head for other labels is another one.
    more = pair_file(tmp_path / "more.tsv", 32, 1)
    more.write_text(more.read_text() + "the film\tneutral\n")
    said = run("finetune", "pair", "--model", out / "model", "--train", more, "--out", tmp_path / "three", *FAST)
    assert "a new one is trained for bad, good, neutral: it is for good, bad, and neutral is none of these" in said
    row = json.loads(answers(out / "model", "--text", "the film is good"))
    assert row["label"] in ("good", "bad")
    assert sum(row["probabilities"].values()) == pytest.approx(1.0)
    assert "give --text" in run("predict", out / "model", "--question", "a", "--context", "b", status=2)
    assert "2 texts were given" in run("predict", out / "model", "--text", "a", "--text", "b", status=2)


def test_regression(tmp_path, checkpoint):
    train = tmp_path / "train.tsv"
    train.write_text("".join(f"{' '.join(w)}\tthe\t{float(label == 'good')}\n" for w, label in sentences(160, 1)))
    out = tmp_path / "run"
    run(
        "finetune",
        "pair",
        "--model",
        checkpoint,
        "--train",
        train,
        "--dev",
        train,
        "--out",
        out,
        *FAST,
        "--epochs",
        15,
        "--regression",
    )
    assert json.loads((out / "metrics.json").read_text())["pearson"] > 0.95
    value = json.loads(answers(out / "model", "--text", "the film is good", "--text", "the"))["value"]
    assert value == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-length", 99), "64 positions"),
        (("--keep-best", "f1"), "give dev_file as well"),
        (("--keep-best", "exact", "--dev", "train.tsv"), "choose one of accuracy, f1"),
        (("--labels", "x,y"), "train.tsv:1: a label that is none of x, y"),
        (("--fields", "a,b,c,d"), "fields a,b,c,d: name"),
        (("--set", "train.lerning_rate=1"), "did you mean learning_rate"),
        (("--model", "bert-base-uncased"), "names of models on a hub are not looked up"),
    ],
)
def test_mistakes_end_as_one_line(tmp_path, checkpoint, options, message):
    train = pair_file(tmp_path / "train.tsv", 8, 1)
    arguments = {"--model": checkpoint, "--train": train, "--out": tmp_path / "run", "--max-length": 48}
    arguments |= dict(zip(options[::2], options[1::2], strict=True))
    if "--dev" in arguments:
        arguments["--dev"] = train
    output = run("finetune", "pair", *(part for pair in arguments.items() for part in pair), status=2)
    assert message in output.replace("\n", " ")
    assert "Traceback" not in output


def test_one_rank_tells_the_mistake_of_all(tmp_path, checkpoint, monkeypatch):
    train = pair_file(tmp_path / "train.tsv", 8, 1)

    def ended(seconds):  # as torchrun does while this rank waits
        raise KeyboardInterrupt

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("bertfast.cli.common.time.sleep", ended)
    options = ("--model", checkpoint, "--train", train, "--out", tmp_path / "run", "--lr", -1)
    assert "must be" not in run("finetune", "pair", *options, status=130)
    monkeypatch.delenv("LOCAL_RANK")
    assert "must be at least 0, got -1.0" in run("finetune", "pair", *options, status=2)


def test_the_folder_is_looked_at_before_anything_is_loaded(tmp_path, checkpoint):
    train = pair_file(tmp_path / "train.tsv", 8, 1)
    common = ("finetune", "pair", "--model", tmp_path / "none", "--train", train, "--out")
    assert "run's folder is not empty" in run(*common, tmp_path, status=2).replace("\n", " ")
    for arguments in ((*common, tmp_path / "absent", "--resume"), ("finetune", "pair", "--out", "absent", "--resume")):
        assert "there is no such folder, so nothing to resume" in run(*arguments, status=2).replace("\n", " ")


def test_bad_lines_and_headers_are_noted(tmp_path, checkpoint):
    train = pair_file(tmp_path / "train.tsv", 16, 1)
    train.write_text("sentence\tLabel\n" + train.read_text() + "only text\n")
    out = ("--out", tmp_path / "run", *FAST, "--epochs", 1)
    assert "train.tsv:18" in run("finetune", "pair", "--model", checkpoint, "--train", train, *out, status=2)
    output = run("finetune", "pair", "--model", checkpoint, "--train", train, *out, "--bad-lines", "skip")
    assert "1 with another number of columns" in output.replace("\n", " ")
    assert "16 examples (bad " in output.replace("\n", " ")
    assert "line 1 names the columns and was passed over" in output.replace("\n", " ")


def test_japanese_questions(tmp_path):
    pytest.importorskip("fugashi")
    pytest.importorskip("unidic_lite")
    pytest.importorskip("yaml")
    folder = save_model(tmp_path / "model", models.BertForMaskedLM, len(JAPANESE), "ja")
    context = "東京 [SEP] 私は東京に住んでいます。学生です。"
    answer = {"text": "学生", "answer_start": context.index("学生")}
    item = {"id": "a", "question": "私は?", "answers": [answer], "is_impossible": False}
    data = tmp_path / "train.json"
    data.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [item]}]}]}), encoding="utf-8")
    out = tmp_path / "run"
    more = ("--max-question", 8, "--steps", 30, "--learning-rate", 3e-3, "--max-length", 48, "--threads", 1)
    run("finetune", "qa", "--model", folder, "--train", data, "--dev", data, "--out", out, *more)
    assert json.loads((out / "metrics.json").read_text())["exact"] == 100.0
    found = answers(out / "model", "--question", "私は?", "--context", context)
    assert found.strip() == "学生"
