"""Every command that loads a model on every odd folder, and every odd text of the command line: one line, exit status 2."""

import shutil

import pytest
from odd_checkpoints import CONFIG_ROWS, FOLDERS, TEXTS, WEIGHT_ROWS, weights
from odd_pairs import GOOD_TSV
from test_odd_files import HEADS, run, save_checkpoint

from bertfast import models

COMMANDS = {
    "fill-mask": lambda folder, data: ("fill-mask", folder, "paris is [MASK]"),
    "predict": lambda folder, data: ("predict", folder, data),
    "finetune": lambda folder, data: (
        "finetune", "pair", "--model", folder, "--train", data, "--out", data.parent / "run", "--max-length", 40, "--steps", 1,
    ),
}  # fmt: skip
STOCK = {
    "verify": lambda folder: ("verify", folder),
    "bench": lambda folder: ("bench", folder, "--batch", 1, "--length", 4, "--runs", 1),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("yaml")
    folder = tmp_path_factory.mktemp("good")
    masked = save_checkpoint(folder / "masked", models.BertForPreTraining)
    pair = save_checkpoint(folder / "pair", HEADS["pair"])
    return {"fill-mask": masked, "finetune": masked, "predict": pair, "verify": pair, "bench": pair}


@pytest.fixture
def changed(tmp_path, good):
    def make(command, change):
        shutil.copytree(good[command], tmp_path / "odd")
        change(tmp_path / "odd")
        data = tmp_path / "in.tsv"
        data.write_bytes(b"\n".join(GOOD_TSV) + b"\n")
        return tmp_path / "odd", data

    return make


def check(status, said, words):
    assert status == 2, said
    assert words in said
    assert "odd" in said[said.index("bertfast: ") :], "the folder is named"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("row", [row for row in FOLDERS if row.said is not None], ids=lambda row: row.name)
def test_our_own_models(changed, command, row):
    folder, data = changed(command, row.change)
    check(*run(*COMMANDS[command](folder, data)), row.said)
    assert not (data.parent / "run").exists()


@pytest.mark.parametrize("command", STOCK)
@pytest.mark.parametrize(
    "row", [row for row in (*CONFIG_ROWS, *WEIGHT_ROWS) if row.stock is not None], ids=lambda row: row.name
)
def test_models_of_transformers(changed, command, row):
    pytest.importorskip("transformers")
    folder, _ = changed(command, row.change)
    check(*run(*STOCK[command](folder)), row.stock)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_the_command_line(good, tmp_path, name):
    text, words = TEXTS[name]
    questions = save_checkpoint(tmp_path / "qa", HEADS["qa"])
    for arguments in (
        ("fill-mask", good["fill-mask"], text),
        ("predict", good["predict"], "--text", text),
        ("predict", good["predict"], "--text", "a film", "--text", text),
        ("predict", questions, "--question", text, "--context", "a film"),
        ("predict", questions, "--question", "what", "--context", text),
    ):
        status, said = run(*arguments)
        assert status == 2, said
        assert words in said


def test_a_file_whose_name_is_no_utf8(good, tmp_path):
    data = tmp_path / "caf\udce9.tsv"
    data.write_bytes(b"\n".join(GOOD_TSV) + b"\n")
    for command in ("predict", "finetune"):
        status, said = run(*COMMANDS[command](good[command], data))
        assert status == 2, said
        assert "the file's name is no UTF-8" in said


@pytest.mark.parametrize("command", ["predict", "fill-mask"])
def test_weights_that_are_not_finite_give_no_answer(changed, command):
    def broken(stored):
        stored["bert.encoder.layer.0.output.dense.weight"].fill_(float("nan"))

    folder, data = changed(command, weights(broken))
    status, said = run(*COMMANDS[command](folder, data))
    assert status == 2, said
    assert "the model's output is not finite" in said


def test_the_tables_are_large():
    assert len(FOLDERS) >= 40
    assert sum(row.stock is not None for row in FOLDERS) >= 40
