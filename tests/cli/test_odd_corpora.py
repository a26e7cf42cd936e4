"""`data vocab`, `build` and `show`, `pretrain` and `fill-mask` on odd texts and folders: no traceback, nothing lost unsaid."""

import json
import re
import shutil

import pytest
from odd_corpora import DAMAGES, GOOD, TEXTS, TOKENIZERS, OddText, copied
from typer.testing import CliRunner

pytest.importorskip("tokenizers")
pytest.importorskip("datasets")
pytest.importorskip("yaml")

from bertfast import models
from bertfast.cli import app
from bertfast.data.tokenizer import load_tokenizer
from bertfast.data.vocab import VocabularyOptions, tokenizer_files

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["the", "film", "is", "good", "paris", "france", "capital", "of"]
PIECES = [*SPECIALS, *LETTERS, *".?[]/-", *(f"##{c}" for c in LETTERS), *WORDS]
CORPUS_FILES = (
    "manifest.json", "state.json", "dataset_info.json", "data-00000-of-00001.arrow", "tokenizer/vocab.txt",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
)  # fmt: skip
TINY = (
    "--layers",
    1,
    "--hidden",
    8,
    "--heads",
    2,
    "--max-seq-length",
    32,
    "--token-budget",
    64,
    "--steps",
    1,
    "--workers",
    0,
)


def run(*arguments):
    """Exit status and what was said, on one line; a traceback fails."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in tokenizer_files(PIECES, VocabularyOptions()).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in.txt").write_bytes(GOOD)
    status, said = run(
        "data", "build", folder / "in.txt", "--tokenizer", tokenizer, "--out", folder / "c", "--workers", 1
    )
    assert status == 0, said
    return folder / "c"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("checkpoint")
    config = models.BertConfig(
        vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=64,
    )  # fmt: skip
    models.BertForPreTraining(config).save_pretrained(folder)
    load_tokenizer(tokenizer).save(folder)
    return folder


def check_refusal(odd, status, said):
    assert status == 2, said
    assert odd.refused in said
    assert odd.file in said or odd.refused.startswith("--encoding"), "the file is named"
    assert odd.place in said


ROWS = [pytest.param(odd, id=odd.name) for odd in TEXTS]


@pytest.mark.parametrize("odd", ROWS)
def test_build(tmp_path, tokenizer, odd: OddText):
    data, out = odd.write(tmp_path), tmp_path / "corpus"
    command = ("data", "build", data, "--tokenizer", tokenizer, "--workers", 1, *odd.options)
    status, said = run(*command, "--out", out)
    if odd.refused:
        check_refusal(odd, status, said)
        assert not out.exists()
        return
    assert status == 0, said
    assert odd.said in said
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text("utf-8").splitlines()]
    assert manifest["documents"] == odd.documents
    assert sum(manifest["skipped"].values()) == len(skipped) == odd.left
    assert f"{odd.documents:,} documents" in said
    if odd.left:
        assert f"not taken: {odd.left} " in said
        assert odd.place in skipped[0]["where"]
        status, said = run(*command, "--out", tmp_path / "other", "--bad-lines", "refuse")
        assert status == 2
        assert odd.place in said


# What is said of pairs, pieces and sentences needs a tokenizer that there is.
OF_CORPORA = (
    "single document",
    "have one sentence",
    "510 tokens",
    "pairs are NotNext",
    "--special-tokens",
    "no pieces",
    "copies",
)


@pytest.mark.parametrize("odd", ROWS)
def test_vocab(tmp_path, odd: OddText):
    data, out = odd.write(tmp_path), tmp_path / "vocab"
    status, said = run("data", "vocab", data, "--out", out, "--size", 300, "--workers", 1, *odd.options)
    if odd.refused:
        check_refusal(odd, status, said)
        assert not out.exists()
        return
    assert status == 0, said
    left = 0 if odd.said == "no pieces" else odd.left  # the vocabulary is not there yet
    assert f"from {odd.documents + odd.left - left:,} documents" in said
    assert sum(map(int, re.findall(r"(\d+) bad lines were left out", said))) == left
    if left:
        assert odd.place in said
    if not any(words in odd.said for words in OF_CORPORA):
        assert odd.said in said
    assert load_tokenizer(out).vocab_size > 5


DAMAGED = [pytest.param(file, damage, id=f"{file}: {damage.name}") for file in CORPUS_FILES for damage in DAMAGES]
# The corpus is what it was without these: tokenizer.json has the pieces and settings too, and the Arrow file its columns.
HARMLESS = {
    *(("tokenizer/vocab.txt", damage.name) for damage in DAMAGES),
    *(("tokenizer/tokenizer.json", name) for name in ("absent", "a folder")),
    *(("tokenizer/tokenizer_config.json", name) for name in ("absent", "a folder", "an empty object")),
    ("dataset_info.json", "an empty object"),
}


@pytest.mark.parametrize("command", ["show", "pretrain"])
@pytest.mark.parametrize(("file", "damage"), DAMAGED)
def test_damaged_corpora(tmp_path, corpus, command, file, damage):
    folder = copied(corpus, tmp_path / "odd", file, damage)
    if command == "show":
        status, said = run("data", "show", folder)
    else:
        status, said = run("pretrain", folder, "--out", tmp_path / "run", *TINY)
    if (file, damage.name) in HARMLESS:
        assert status == 0, said
        changed = file == "tokenizer/vocab.txt" and damage.name not in ("absent", "a folder")
        assert ("vocab.txt is not used" in said) == changed
        return
    assert status == 2, said
    assert "odd" in said[said.index("bertfast: ") :], "the folder is named"
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("command", ["show", "pretrain"])
def test_another_tokenizer_in_a_corpus_is_refused(tmp_path, corpus, command):
    folder = copied(corpus, tmp_path / "odd", "tokenizer/vocab.txt", DAMAGES[0])
    path = folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    command = ("data", "show", folder) if command == "show" else ("pretrain", folder, "--out", tmp_path / "run", *TINY)
    status, said = run(*command)
    assert status == 2
    assert "is not the tokenizer that the corpus was built with" in said


@pytest.mark.parametrize("odd", [pytest.param(odd, id=odd.name) for odd in TOKENIZERS])
@pytest.mark.parametrize("command", ["fill-mask", "build"])
def test_odd_tokenizers(tmp_path, checkpoint, command, odd):
    if odd.said in ("its tokenizer has",) and command == "build":
        pytest.skip("a corpus has no model yet")
    shutil.copytree(checkpoint, folder := tmp_path / "odd")
    odd.change(folder)
    (tmp_path / "in.txt").write_bytes(GOOD)
    if command == "fill-mask":
        status, said = run("fill-mask", folder, "paris is [MASK]")
    else:
        status, said = run(
            "data", "build", tmp_path / "in.txt", "--tokenizer", folder, "--out", tmp_path / "c", "--workers", 1
        )
    assert status == (0 if odd.read else 2), said
    if command == "build" or not odd.read:
        assert odd.said in said
    if not odd.read:
        assert "odd" in said[said.index("bertfast: ") :], "the folder is named"
        assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damaged_tokenizers(tmp_path, checkpoint, file, damage):
    folder = copied(checkpoint, tmp_path / "odd", file, damage)
    status, said = run("fill-mask", folder, "paris is [MASK]")
    harmless = (f"tokenizer/{file}", damage.name) in HARMLESS
    assert status == (0 if harmless else 2), said
    assert harmless or "odd" in said, "the folder is named"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("caf\udce9", "invalid UTF-8"),
        ("\ud800", "invalid UTF-8"),
        ("a\0b", "NUL character"),
        ("", "is empty"),
        (" \u3000\n", "is empty"),
    ],
)
def test_texts_of_the_command_line(tokenizer, text, said):
    for more in ((), ("--tokenizer", tokenizer)):
        status, message = run("data", "show", "--text", "paris", "--text", text, *more)
        assert status == 2, message
        assert "--text number 2" in message
        assert said in message


SHOWN = ["\u200b", "[SEP]", "[MASK] [CLS]", "\x01", "日本", "a" * 9000, "\u2028 paris", "[bold]paris[/bold]"]


@pytest.mark.parametrize("text", SHOWN)
def test_texts_that_are_shown(tokenizer, text):
    status, message = run("data", "show", "--text", text, "--tokenizer", tokenizer)
    assert status == 0, message
    assert "in 1 sequence" in message


def test_pretraining_says_that_pairs_teach_nothing(tmp_path, tokenizer):
    (tmp_path / "in.txt").write_text("".join(f"film {chr(97 + n % 26)}{n // 26}.\n\n" for n in range(300)))
    build = ("data", "build", tmp_path / "in.txt", "--tokenizer", tokenizer, "--workers", 1)
    assert "100 % of the pairs are NotNext" in run(*build, "--out", tmp_path / "c", "--holdout", 0.5)[1]
    options = ("pretrain", tmp_path / "c/train", "--eval", tmp_path / "c/eval", *TINY)
    status, said = run(*options, "--out", tmp_path / "run")
    assert status == 0, said
    for side in ("train", "eval"):
        assert f"c/{side}: 100 % of the pairs are NotNext" in said
    assert "pairs" not in run(*options, "--out", tmp_path / "other", "--no-nsp")[1]


def test_special_tokens_from_vocabulary_to_corpus(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"[E1] paris [/E1] is good.\nthe film [E2].\n\n" * 30)
    text, one = tmp_path / "in.txt", ("--workers", 1)
    status, said = run("data", "vocab", text, "--out", tmp_path / "v", "--special-tokens", "[E1], [/E1]", *one)
    assert status == 0, said
    build = ("data", "build", text, "--tokenizer", tmp_path / "v", *one)
    status, said = run(*build, "--special-tokens", "[E2]", "--out", tmp_path / "c")
    assert status == 0, said
    assert "markers" not in said
    tokenizer = load_tokenizer(tmp_path / "c/tokenizer")
    assert tokenizer.pieces[-3:] == ["[E1]", "[/E1]", "[E2]"]
    assert "[E1]" in run("data", "show", tmp_path / "c", "--sequences", 20)[1]
    status, said = run(*build, "--special-tokens", "a\0b", "--out", tmp_path / "d")
    assert (status, "special token 'a\\x00b'" in said) == (2, True)
