"""Text that the vocabulary cannot read is told: [UNK], and words and texts that leave no piece."""

import pytest

from bertfast.tasks.pair import PairExample, label_notes, pair_features
from bertfast.tasks.token import from_words
from bertfast.tasks.token_features import token_features, unread_words
from bertfast.tasks.unread import empty_texts_note, empty_words_note, unknown_note

READ, UNREAD, NOTHING = "the cat sat", "Собака видит дом", "\u200b\u200b"


@pytest.fixture
def tokenizer(tmp_path):
    from bertfast.data.tokenizer import load_tokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return load_tokenizer(tmp_path)


def pairs(*texts: tuple[str, str | None]) -> list[PairExample]:
    return [PairExample(first, second, "a", f"file:{i + 1}") for i, (first, second) in enumerate(texts)]


def test_unknown_pieces(tokenizer):
    def note(*texts):
        return unknown_note(pair_features(pairs(*texts), tokenizer, 32).features, tokenizer)

    assert note((READ, None), (READ, READ)) == ""
    assert note((READ, UNREAD)).startswith("50 % of the pieces are [UNK]")
    assert note(*[(READ, READ)] * 9, (READ, UNREAD)) == "", "5 % are not worth a word"
    assert unknown_note([], tokenizer) == ""


def test_texts_without_a_piece(tokenizer):
    def note(*texts):
        examples = pairs(*texts)
        features = pair_features(examples, tokenizer, 32).features
        return empty_texts_note(features, [example.where for example in examples])

    assert note((READ, None), (READ, READ)) == ""
    assert note((READ, None), (NOTHING, None)).startswith(
        "1 texts leave no piece of the vocabulary, and say nothing: file:2"
    )
    assert "2 texts" in note((READ, NOTHING), (NOTHING, READ), (READ, READ))


def test_words_without_a_piece(tokenizer):
    examples = [from_words(["the", NOTHING, "cat"], None, "file:1"), from_words(["sat"] * 9, None, "file:5")]
    windows = token_features(examples, tokenizer, max_length=5, stride=2)
    assert unread_words(examples, windows) == [("file:1", NOTHING)]
    assert empty_words_note(unread_words(examples, windows)).startswith("1 words leave no piece")
    assert empty_words_note([]) == ""


@pytest.mark.parametrize(
    ("labels", "told"), [(("-", "yes", "no"), True), (("-1", "yes"), True), (("-1", "0", "1"), False)]
)
def test_labels_that_stand_for_none(labels, told):
    examples = [PairExample("a", None, label, f"file:{i + 2}") for i, label in enumerate(labels * 3)]
    assert any("stands for no label" in note for note in label_notes(examples, True)) is told
