"""What is said of corpora that can be read and quietly mean less: measured, and silent where there is nothing to say."""

import random

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("datasets")

from bertfast.data.build import build
from bertfast.data.build_options import Options
from bertfast.data.corpus import Corpus
from bertfast.data.encodings import likely
from bertfast.data.pairs import IS_NEXT, LABEL, PairOptions, make_pairs
from bertfast.data.remarks import encoding_remark, pairs_remark
from bertfast.data.sources import FileSource
from bertfast.data.tokenizer import SPECIAL_ROLES, tokenizer_from_files
from bertfast.data.vocab import VocabularyOptions, tokenizer_files, train_vocabulary

OPTIONS = PairOptions(max_seq_length=64)
PIECES = [
    *SPECIAL_ROLES.values(),
    *"abcdefghijklmnopqrstuvwxyz.",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    "[",
    "]",
]


def corpus(documents: int, sentences, seed: int = 0) -> Corpus:
    draw = random.Random(seed)
    return Corpus.from_documents(
        [[[5] * draw.randint(3, 20) for _ in range(sentences(draw))] for _ in range(documents)]
    )


def test_ordinary_documents_are_half_and_nothing_is_said():
    for seed in range(5):
        assert pairs_remark(corpus(300, lambda draw: draw.randint(4, 30), seed), OPTIONS) is None
        assert pairs_remark(corpus(6, lambda draw: draw.randint(2, 9), seed), OPTIONS) is None, "few pairs are chance"


def test_documents_of_one_sentence():
    made = corpus(200, lambda draw: 1)
    assert pairs_remark(made, OPTIONS).startswith("100 % of the pairs are NotNext (of 200 measured)")
    said = pairs_remark(made, OPTIONS)
    assert "200 of 200 documents (100 %) have one sentence" in said
    assert "between documents, not sentences), or pre-train with --no-nsp" in said
    mixed = corpus(300, lambda draw: 1 if draw.random() < 0.7 else 3)
    said = pairs_remark(mixed, OPTIONS, seed=3)
    labels = make_pairs(mixed, pytest.importorskip("numpy").arange(300), OPTIONS, 3, 0)[:, LABEL]
    assert said.startswith(f"{100 * (labels != IS_NEXT).mean():.0f} % of the pairs are NotNext"), "as they are drawn"
    assert pairs_remark(made, PairOptions(64, nsp=False)) is None


def test_one_document_is_all_is_next():
    assert "all are IsNext: the corpus is a single document" in pairs_remark(corpus(1, lambda draw: 40), OPTIONS)


@pytest.fixture
def tokenizer():
    return tokenizer_from_files(tokenizer_files(PIECES, VocabularyOptions()))


def remarks(tmp_path, tokenizer, text: str, **options) -> list[str]:
    path = tmp_path / "t.txt"
    path.write_text(text, "utf-8")
    options = Options(**{"shard_characters": 1000, **options})
    return build(FileSource([path], "text"), tokenizer, tmp_path / "out", options)["remarks"]


def test_nothing_is_said_of_good_text(tmp_path, tokenizer):
    assert (
        remarks(
            tmp_path, tokenizer, "".join(f"the sea is {a}{b}.\nit is deep.\n\n" for a in "abcdefghij" for b in "klmno")
        )
        == []
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("今日はとても良い天気です。\n明日は雨です。\n\n" * 9, "kana, so it looks Japanese, and it is read as English: build with"),
        ("10 % of 99.\n\n" * 40, "of the tokens are [UNK]"),
        ("the sea is wide. " * 300 + "\n\n" + "a b.\n\n", "longer than 510 tokens"),
        ("[e1] a [/e1] b.\n<3 c.\n\n" * 3 + "[x] a.\n\n", "[/e1] in 3 documents, [e1] in 3 documents; those"),
    ],
)  # fmt: skip
def test_texts_that_mean_less(tmp_path, tokenizer, text, said):
    assert any(said in remark for remark in remarks(tmp_path, tokenizer, text))


def test_known_markers_are_not_told(tmp_path, tokenizer):
    tokenizer.add_special_tokens(["[e1]"])
    assert not any("markers" in remark for remark in remarks(tmp_path, tokenizer, "[e1] a b.\nc d.\n\n" * 9))


def test_remarks_do_not_depend_on_shards(tmp_path, tokenizer):
    text = "[e1] a.\n今日はとても良い天気です。\n\n" * 200
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one = remarks(tmp_path / "one", tokenizer, text, shard_characters=1 << 25)
    many = remarks(tmp_path / "many", tokenizer, text, shard_characters=300)
    assert [remark for remark in one if "markers" in remark] == [remark for remark in many if "markers" in remark]
    assert [remark for remark in one if "copies" in remark] == [remark for remark in many if "copies" in remark]
    assert len(one) == len(many) == 4


def test_copies_of_documents_are_counted(tmp_path, tokenizer):
    text = "".join(f"the sea is {a}{b}.\nit is deep.\n\n" for a in "abcdefghij" for b in "kl") + "one.\n\n" * 3
    said = "2 of 23 documents (9 %) are copies of another one, word for word"
    assert any(remark.startswith(said) for remark in remarks(tmp_path, tokenizer, text, shard_characters=60))


def test_a_vocabulary_of_japanese_text_as_english(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("今日はとても良い天気です。\n" * 20, "utf-8")
    with pytest.warns(UserWarning, match="looks Japanese, and it is read as English: give --language ja"):
        train_vocabulary(FileSource([path], "text"), tmp_path / "v", VocabularyOptions(size=60), split=False)


def test_special_tokens_of_a_vocabulary(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("[E1] sea [/E1] lobster sea\n" * 20, "utf-8")
    options = VocabularyOptions(size=40, special_tokens=("[E1]", "[/E1]"))
    made = train_vocabulary(FileSource([path], "text"), tmp_path / "v", options, split=False)
    assert made.pieces[-2:] == ["[E1]", "[/E1]"]
    assert made.vocab_size <= 40
    assert not {"[", "]", "/", "e1"} & set(made.vocab), "markers are no words of the text"
    assert made.tokens(made.encode("[E1]sea[/E1]").ids) == ["[E1]", "sea", "[/E1]"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("今日は良い天気です。", "cp932"), ("今日は良い天気です。", "euc_jp"), ("半角とＡＢＣ", "cp932"), ("漢字とかな", "euc_jp"),
        ("le café est ouvert", "cp1252"), ("Straße und Größe", "cp1252"), ("“quoted” — text", "cp1252"),
    ],
)  # fmt: skip
def test_likely_encodings(text, encoding):
    assert likely(text.encode(encoding)) == encoding


@pytest.mark.parametrize("line", [b"\xff\xfe\x81", bytes(range(128, 256))])
def test_no_likely_encoding(line):
    assert likely(line) is None


def test_the_encoding_of_most_lines_is_named():
    details = ["byte 3; it reads as text with --encoding cp932"] * 3 + ["byte 4"]
    assert (
        encoding_remark(details)
        == "of 4 lines that are no UTF-8, 3 read as text in cp932: if the file is, give --encoding cp932"
    )
    assert encoding_remark(["byte 4"]) is None
