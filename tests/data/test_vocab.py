"""Vocabularies: the same each time, loaded alike by transformers, and what cannot be trained."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from bertfast.data.lines import BadLine, Document
from bertfast.data.vocab import VocabularyError, VocabularyOptions, train_pieces, train_vocabulary

pytest.importorskip("tokenizers")

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENGLISH = [
    Document(
        "a:1", ["The lobster is a lobster. Lobsters live in the sea, in the SEA!", "Café au lait; naïve lobsters."]
    ),
    BadLine("a:3", "invalid UTF-8"),
    Document("b:1", ["the sea, the sea and the lobster"]),
]
JAPANESE = [Document("j:1", ["私は学生です。東京に住んでいます。", "学生は東京に住んでいます。ＡＢＣ"])] * 3


def train(tmp_path, documents, name="v", split=True, **options):
    return train_vocabulary(documents, tmp_path / name, VocabularyOptions(**options), split=split)


def test_english(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = train(tmp_path, ENGLISH, size=50, limit_alphabet=30)
    assert tokenizer.pieces[:5] == SPECIALS
    assert tokenizer.vocab_size == 50
    assert {"the", "sea", "lobster"} <= set(tokenizer.vocab)
    assert "é" not in tokenizer.vocab  # lower-cased text has no accents
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "v")
    assert (theirs.pad_token_id, theirs.mask_token_id, len(theirs)) == (0, 4, 50)
    for text in ("The lobsters, café!", "unseen 東京 SEA"):
        assert tokenizer.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert theirs("sea", "the")["input_ids"] == [2, *tokenizer.encode("sea").ids, 3, *tokenizer.encode("the").ids, 3]
    assert theirs("sea", "the")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert theirs.mask_token == "[MASK]"


def test_case_is_kept(tmp_path):
    tokenizer = train(tmp_path, ENGLISH, size=90, lowercase=False)
    assert {"T", "##é", "ï"} & set(tokenizer.vocab) >= {"T", "##é"}
    assert tokenizer.encode("The").ids != tokenizer.encode("the").ids


def test_japanese_vocabulary(tmp_path):
    pytest.importorskip("fugashi")
    transformers = pytest.importorskip("transformers")
    tokenizer = train(tmp_path, JAPANESE, size=80, language="ja", lowercase=False)
    assert tokenizer.pieces[:5] == SPECIALS
    assert {"学生", "東京", "住ん"} <= set(tokenizer.vocab)
    assert "Ａ" not in tokenizer.vocab  # NFKC
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "v")
    assert type(theirs).__name__ == "BertJapaneseTokenizer"
    assert theirs("私", "東京")["token_type_ids"] == [0] * 3 + [1] * 2
    for text in ("私は学生です。", "東京にＡＢＣ", "犬"):
        assert tokenizer.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]
    inflected = train(tmp_path, JAPANESE, "w", size=80, language="ja", lowercase=False, words="inflected")
    assert {"住んで", "います"} <= set(inflected.vocab)
    assert inflected.tokens(inflected.encode("東京に住んでいます").ids) == ["東京", "に", "住んで", "います"]


PRINT = """
import sys, json
from collections import Counter
from bertfast.data.vocab import VocabularyOptions, train_pieces
words = Counter({f"{a}{b}{c}": 3 for a in "abcdefgh" for b in "ijklmn" for c in "xyzé"})
print(json.dumps(train_pieces(words, VocabularyOptions(size=60, limit_alphabet=15))))
"""


def test_the_same_in_every_process():
    """All counts tie, so that any order that a hash table decides would show."""
    runs = [
        subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    assert runs[0] == runs[1]
    assert len(json.loads(runs[0])) == 60


def test_workers_do_not_matter(tmp_path):
    documents = [document for document in ENGLISH * 50 if isinstance(document, Document)]
    one, two = (
        train_vocabulary(documents, tmp_path / str(workers), VocabularyOptions(size=80), split=True, workers=workers)
        for workers in (1, 2)
    )
    assert one.pieces == two.pieces
    assert (tmp_path / "1/tokenizer.json").read_bytes() == (tmp_path / "2/tokenizer.json").read_bytes()


def test_alphabet_and_frequency():
    words = Counter({"aa": 50, "ab": 40, "abc": 5, "zz": 1, "y" * 101: 9})
    pieces = train_pieces(words, VocabularyOptions(size=40, limit_alphabet=2))
    assert set(pieces) == {*SPECIALS, "a", "##a", "b", "##b", "aa", "ab"}
    assert "zz" in train_pieces(words, VocabularyOptions(size=40, min_frequency=1))
    assert "zz" not in train_pieces(words, VocabularyOptions(size=40, min_frequency=2))
    assert "abc" not in train_pieces(words, VocabularyOptions(size=40, min_frequency=6))


def test_never_larger_than_asked(tmp_path):
    for size in (40, 60):
        assert train(tmp_path, ENGLISH, f"v{size}", size=size).vocab_size <= size


def test_refused(tmp_path):
    with pytest.raises(VocabularyError, match="size 12 is too small: special tokens and 20 characters need"):
        train_pieces(Counter({"abcdefghijklmnopqrst": 9}), VocabularyOptions(size=12, limit_alphabet=20))
    with pytest.raises(VocabularyError, match="has no words"):
        train(tmp_path, [Document("e:1", [" "])])
    train(tmp_path, ENGLISH, size=80)
    train(tmp_path, ENGLISH, size=80)  # the same again
    with pytest.raises(VocabularyError, match="holds another tokenizer"):
        train(tmp_path, ENGLISH, size=80, lowercase=False)
    with pytest.raises(VocabularyError, match="is not empty and no tokenizer's folder"):
        train(tmp_path.parent, ENGLISH, tmp_path.name, size=80)


@pytest.mark.parametrize(
    "options",
    [
        {"language": "de"},
        {"words": "syllables"},
        {"words": "inflected"},
        {"size": 0},
        {"min_frequency": 0},
        {"limit_alphabet": 0},
    ],
)
def test_options(options):
    with pytest.raises(VocabularyError):
        VocabularyOptions(**options)
