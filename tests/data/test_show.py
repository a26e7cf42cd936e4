"""What a batch looks like: the worked example to the letter, masks, corpora, the picture, the commands."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("tokenizers")

from bertfast.cli import app
from bertfast.data import picture
from bertfast.data.show import EXAMPLE, example_tokenizer, sequences, text_batch
from bertfast.data.tokenizer import tokenizer_from_files
from bertfast.data.vocab import VocabularyOptions, tokenizer_files

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIALS, "play", "##ing", "##s", "a", "b", "."]


@pytest.fixture
def tokenizer():
    return tokenizer_from_files(tokenizer_files(PIECES, VocabularyOptions()))


def test_the_worked_example():
    pytest.importorskip("fugashi")
    batch = text_batch(example_tokenizer(), EXAMPLE)
    (shown,) = sequences(batch, example_tokenizer())
    assert " ".join(token.piece for token in shown.tokens) == "[CLS] 私 は 学生 です [SEP] 東京 に 住んで います [SEP]"
    assert [token.position for token in shown.tokens] == list(range(11))
    assert [token.segment for token in shown.tokens] == [0] * 6 + [1] * 5
    assert [token.word for token in shown.tokens] == [-1, 0, 1, 2, 3, -1, 4, 5, 6, 7, -1]
    assert [token.target for token in shown.tokens] == [None] * 11
    assert batch.cu_seqlens.tolist() == [0, 11]


def test_words_unknown_pieces_and_single_texts(tokenizer):
    batch = text_batch(tokenizer, ["playing xyz plays.", "a", "b"])
    first, second = sequences(batch, tokenizer)
    assert " ".join(token.piece for token in first.tokens) == "[CLS] play ##ing [UNK] play ##s . [SEP] a [SEP]"
    assert [token.word for token in first.tokens] == [-1, 0, 0, 1, 2, 2, 3, -1, 4, -1]
    assert [token.segment for token in second.tokens] == [0, 0, 0]
    assert (second.first, second.end) == (10, 13)


def test_special_tokens_of_a_text_and_a_vocabulary_of_its_words(tokenizer):
    (shown,) = sequences(text_batch(tokenizer, ["a [MASK] b"]), tokenizer)
    assert [token.piece for token in shown.tokens] == ["[CLS]", "a", "[MASK]", "b", "[SEP]"]
    pytest.importorskip("fugashi")
    made = example_tokenizer(["私は[MASK]です"])
    assert made.pieces[5:] == ["私", "は", "です"]
    said = run("data", "show", "--text", "私は[MASK]です")
    assert "[MASK]" in said
    assert "ids are of a vocabulary made of these words alone" in said


def test_masked(tokenizer):
    text = "playing a b plays . " * 8
    batch = text_batch(tokenizer, [text], masked=True, seed=1)
    (masked,), (plain,) = sequences(batch, tokenizer), sequences(batch, tokenizer, masked=False)
    true = text_batch(tokenizer, [text])
    assert [token.id for token in plain.tokens] == true.input_ids.tolist()
    assert all(token.target is None for token in plain.tokens)
    chosen = [at for at, token in enumerate(masked.tokens) if token.target is not None]
    assert len(chosen) == round(0.15 * len(masked.tokens))
    for at, (token, was) in enumerate(zip(masked.tokens, plain.tokens, strict=True)):
        assert token.word == was.word
        assert token.target == was.piece if at in chosen else token == was
    assert any(token.piece == "[MASK]" for token in masked.tokens)


def test_font():
    pytest.importorskip("matplotlib_fontja")
    assert "DejaVu" in picture.find_font(frozenset("abc##é"))
    found = picture.find_font(frozenset("私は学生です住東京に"))
    assert "LastResort" not in found
    assert picture._covers(found, frozenset("私は学生です"))


def test_no_font_names_the_extra(monkeypatch):
    from matplotlib import font_manager

    font_manager.findfont("DejaVu Sans")  # which is kept: only Japanese is looked for in the empty list
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"-e \'\.\[ja\]\'"):
        picture.find_font(frozenset("雨"))


def test_picture(tokenizer, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    # $ and _ are no mathematics, an Arabic letter that the font may lack is no warning, and long sequences go on below.
    drawn = sequences(text_batch(tokenizer, ["playing $x_1$ a b \u0628 " * 6, "a"], masked=True), tokenizer)
    picture.draw(drawn, tmp_path / "long.png", "Title")
    picture.draw(sequences(text_batch(tokenizer, ["a", "b"]), tokenizer), tmp_path / "short.png", "Title")
    long, short = image.imread(tmp_path / "long.png"), image.imread(tmp_path / "short.png")
    assert long.shape[0] > 2 * short.shape[0]
    assert short[..., :3].std() > 0.05


def test_a_picture_that_would_be_too_high_ends(tokenizer, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    drawn = sequences(text_batch(tokenizer, ["a b . " * 60]), tokenizer)
    assert picture.draw(drawn, tmp_path / "high.png", "Title") == picture.MOST_LINES * picture.PER_LINE
    assert image.imread(tmp_path / "high.png").shape[0] < 4200


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_commands(tmp_path):
    """From a text to a vocabulary, a corpus, and a look at its first batch."""
    pytest.importorskip("datasets")
    text = tmp_path / "t.txt"
    text.write_bytes(b"".join(b"playing %d a b.\nthe sea is %d wide.\n\n" % (n, n) for n in range(60)) + b"\xff\n")
    vocab, corpus, png = tmp_path / "vocab", tmp_path / "corpus", tmp_path / "p.png"
    said = run("data", "vocab", text, "--out", vocab, "--size", 60, "--workers", 1)
    assert "60 pieces from 60 documents" in said
    assert f"1 bad lines were left out: {text}:181 (invalid UTF-8: byte 0 of the line" in said
    assert "were asked for" not in said
    said = run("data", "vocab", text, "--out", tmp_path / "large", "--size", 6000, "--workers", 1)
    assert "6,000 were asked for" in said
    said = run("data", "build", text, "--tokenizer", vocab, "--out", corpus, "--holdout", 0.2, "--workers", 1)
    assert "not taken: 1 invalid UTF-8" in said
    assert f"{corpus / 'train'}: " in said
    assert f"{corpus / 'eval'}: " in said
    assert "already built" not in said
    said = run("data", "build", text, "--tokenizer", vocab, "--out", corpus, "--holdout", 0.2, "--workers", 1)
    assert said.count("already built: ") == 2
    result = CliRunner().invoke(app, ["data", "show", str(corpus)])
    assert f"did you mean {corpus / 'train'}?" in result.output
    assert json.loads((corpus / "train/manifest.json").read_text())["split"] == "train"
    said = run("data", "show", corpus / "train", "--masked", "--sequences", 1, "--png", png)
    for word in ("position", "segment", "predict", "[CLS]", "[MASK]", "cu_seqlens [0, "):
        assert word in said
    bounds = json.loads(said.split("cu_seqlens ")[1].splitlines()[0])
    assert bounds == sorted(set(bounds)), "no places that stand empty"
    assert png.stat().st_size > 10_000
    assert "predict" not in run("data", "show", corpus / "train", "--sequences", 1)
    said = run("data", "show", "--tokenizer", vocab, "--text", "playing the sea", "--text", "a b")
    assert "playing" in said or "##ing" in said
    assert "in 1 sequence, " in said
    assert "made of these words" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--tokenizer", "{}/absent", "--out", "{}/o", "{}/t"], "is not a folder"),
        (["vocab", "--out", "{}/o"], "no source"),
        (["vocab", "--out", "{}/o", "{}/absent"], "absent does not exist"),
        (["vocab", "--out", "{}/o", "--format", "pdf", "{}/t"], "--format pdf: known are text"),
        (["vocab", "--out", "{}/o", "--language", "de", "{}/t"], "language is 'de'"),
        (["show", "{}/absent"], "this is no corpus, it does not exist"),
        (["show", "--png", "{}"], "this is a folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments, message):
    (tmp_path / "t").write_text("text\n")
    result = CliRunner().invoke(app, ["data", *(argument.format(tmp_path) for argument in arguments)])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
