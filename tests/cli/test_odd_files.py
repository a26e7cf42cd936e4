"""Every command that reads data on every odd file: no traceback, what is said names file and line, and nothing is lost unsaid."""

import json
import re

import odd_files
import pytest
import torch
from odd_choices import CHOICE
from odd_files import Odd
from odd_pairs import PAIR
from odd_questions import QA
from odd_tokens import TOKEN
from typer.testing import CliRunner

from bertfast import models
from bertfast.cli import app

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = [
    *SPECIALS,
    *LETTERS,
    *".,?![]()/'\"-_",
    *(f"##{c}" for c in LETTERS),
    "the",
    "film",
    "is",
    "good",
    "bad",
    "paris",
    "france",
    "capital",
    "of",
    "what",
]
HEADS = {
    "pair": models.BertForSequenceClassification,
    "qa": models.BertForQuestionAnswering,
    "token": models.BertForTokenClassification,
    "choice": models.BertForMultipleChoice,
}
KINDS = {"pair": PAIR, "qa": QA, "token": TOKEN, "choice": CHOICE}
UNITS = "examples|questions|sentences"
LENGTHS = {"qa": ("--max-question", "8")}
ROWS = [pytest.param(kind, odd, id=odd.name) for kind, table in KINDS.items() for odd in table]


def save_checkpoint(folder, head):
    torch.manual_seed(0)
    more = {"num_labels": 3, "id2label": {0: "B-LOC", 1: "I-LOC", 2: "O"}} if head is HEADS["token"] else {}
    config = models.BertConfig(
        vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=96, **more,
    )  # fmt: skip
    head(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("yaml")
    folder = tmp_path_factory.mktemp("checkpoints")
    started = {"start": save_checkpoint(folder / "start", models.BertForPreTraining)}
    return started | {kind: save_checkpoint(folder / kind, head) for kind, head in HEADS.items()}


def run(*arguments):
    """Exit status and what was said, on one line; a traceback fails."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def without_steps(monkeypatch):
    """Fine-tuning ends where its first step would begin: what files hold is read, said and made into features before that."""
    from bertfast.train import finetune
    from bertfast.train.loop import Outcome

    def train(task, config, out, **more):
        next(iter(task.loader(0, 1)))
        out.mkdir()
        return Outcome(finished=True, step=0, total_steps=0)

    monkeypatch.setattr(finetune, "train", train)


def left_out(said):
    """How many examples a note counts as left out."""
    counts = re.search(r"(?<!\w)left out: ((?:[\d,]+ with [^;]*?)+);", said)
    return sum(int(n) for n in re.findall(r"(?:^|, )(\d+) with ", counts[1])) if counts else 0


def check_refusal(odd: Odd, status, said):
    assert status == 2, said
    assert odd.refused in said
    message = said[said.index("bertfast: ") :]
    assert odd.file in message, "the file is named"


@pytest.mark.parametrize(("kind", "odd"), ROWS)
def test_finetune(tmp_path, checkpoints, without_steps, kind, odd):
    data = odd.write(tmp_path)
    common = (
        "finetune",
        kind,
        "--model",
        checkpoints["start"],
        "--train",
        data,
        "--max-length",
        40,
        *LENGTHS.get(kind, ()),
        *odd.options,
    )
    status, said = run(*common, "--out", tmp_path / "run")
    if odd.refused:
        check_refusal(odd, status, said)
        assert not (tmp_path / "run").exists()
        status, said = run(*common, "--out", tmp_path / "run", "--bad-lines", "skip")
    if odd.read is None:
        check_refusal(odd, status, said)
        return
    assert status == 0, said
    read = re.search(rf": ([\d,]+) ({UNITS})\b", said)
    assert read, said
    assert (int(read[1].replace(",", "")), left_out(said)) == (odd.read, odd.left), said
    notes = json.loads((tmp_path / "run" / "metrics.json").read_text())["notes"]
    assert odd.noted in said
    assert any(odd.noted in note for note in notes) or not odd.noted, "what was said is kept beside the scores"


@pytest.mark.parametrize(("kind", "odd"), ROWS)
def test_predict(tmp_path, checkpoints, kind, odd):
    data, out = odd.write(tmp_path), tmp_path / "out"
    common = ("predict", checkpoints[kind], data, "--out", out, *odd.options)
    status, said = run(*common)
    reads_all = odd.labels
    if odd.refused and not reads_all:
        check_refusal(odd, status, said)
        assert not out.exists()
        status, said = run(*common, "--bad-lines", "skip")
    if odd.read is None and not reads_all:
        check_refusal(odd, status, said)
        return
    assert status == 0, said
    text = out.read_text(encoding="utf-8")
    count = len(json.loads(text)) if kind == "qa" else text.count("\n")
    assert reads_all or (count, left_out(said)) == (odd.read, odd.left), said
    assert not reads_all or (left_out(said) == 0 and count >= (odd.read or 0) + odd.left), said


def test_the_table_is_large_and_has_no_name_twice():
    for kind, table in KINDS.items():
        assert len(table) >= 40, kind
    names = [odd.name for table in KINDS.values() for odd in table]
    assert len(names) == len(set(names))
    assert len(odd_files.WHOLE_FILE) >= 15
