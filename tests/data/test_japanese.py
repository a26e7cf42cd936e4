"""Japanese pieces against transformers' BertJapaneseTokenizer, and offsets into the original text."""

import json
import sys
import unicodedata
from pathlib import Path

import pytest

pytest.importorskip("fugashi")
pytest.importorskip("unidic_lite")
transformers = pytest.importorskip("transformers")

from bertfast.data import japanese  # noqa: E402
from bertfast.data.japanese import mecab_tagger, normalise, word_spans  # noqa: E402
from bertfast.data.tokenizer import TokenizerError, load_tokenizer  # noqa: E402

JSQUAD = Path(__file__).parents[3] / "shared/data/jsquad_v1.3_valid.json"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PLAIN = [
    "私は学生です。",
    "東京に住んでいます。吾輩は猫である。名前はまだ無い。",
    "国境の長いトンネルを抜けると雪国であった。",
]
ODD = [
    "", " ", "　", "㌔メートル", "１２３ＡＢＣ", "ｶﾞｷﾞ ﾊﾟﾝ", "か\u3099 は\u309a", "ẛ̣ 각 각", " 全角　空白 ", "\t\n東京\r\n大阪",
    "İ東京İ ΑΣ", "ক\u09c7\u09be", "𠮷野家😀です", "a\x1fb\u2028c\x85d", "a" * 130 + "あ" * 200, "2⁵ ℡ ㋿ ﷺ ½ ℃",
    "[UNK]", "東京[MASK]に[SEP] 住む", "e\u0334\u0302",
    "\x01\x7f\u200b\ufeff", "か゛", "[MASK][MASK]",
]  # fmt: skip


def contexts() -> list[str]:
    if not JSQUAD.is_file():
        return []
    return [
        p["context"] for article in json.loads(JSQUAD.read_text("utf-8"))["data"][:8] for p in article["paragraphs"]
    ]


def write(folder: Path, texts: list[str], **config) -> Path:
    tagger = mecab_tagger()
    normal = [unicodedata.normalize("NFKC", text) for text in texts]
    words = {word.surface for text in normal for word in tagger(text)}
    letters = sorted({char for text in normal for char in text.lower() + text if not char.isspace()})
    pieces = [*SPECIALS, *letters[3:], *("##" + char for char in letters[2:]), *sorted(words)[::2]]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", "utf-8")
    usual = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "mecab",
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**usual, **config}))
    return folder


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("specials", [False, True])
def test_ids_are_transformers(tmp_path, lower, specials):
    texts = [*PLAIN, *ODD, *contexts()]
    folder = write(tmp_path / "t", texts, do_lower_case=lower)
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    for text in texts:
        want = theirs(text, add_special_tokens=False, split_special_tokens=not specials)["input_ids"]
        assert ours.encode(text, specials=specials).ids == want, text
    if not specials:
        assert ours.ids_batch(texts) == [ours.encode(text).ids for text in texts]
    assert ours.encode_words(["東京", "に", "住んで"]).ids == theirs.convert_tokens_to_ids(
        [piece for word in ("東京", "に", "住んで") for piece in theirs.tokenize(word)]
    )


@pytest.mark.parametrize("lower", [False, True])
def test_offsets_give_the_piece_back(tmp_path, lower):
    texts = [*PLAIN, *ODD, *contexts()]
    tokenizer = load_tokenizer(write(tmp_path / "t", texts, do_lower_case=lower))
    for text in texts:
        encoding = tokenizer.encode(text)
        assert len(encoding.ids) == len(encoding.offsets) == len(encoding.words)
        assert encoding.offsets == sorted(encoding.offsets)
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            assert 0 <= start < end <= len(text)
            original = unicodedata.normalize("NFKC", text[start:end])
            piece = tokenizer.pieces[index].removeprefix("##")
            # A piece may be one of the characters that a single original character became.
            assert index == tokenizer.unk_id or piece in original or (lower and piece.casefold() in original.casefold())


def test_offsets_by_hand(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "t", ["キロメートル", "ガギパン", "123", "東京"]))

    def cut(text: str) -> list[str]:
        return [text[start:end] for start, end in tokenizer.encode(text).offsets]

    assert "".join(cut("㌔")) in ("㌔", "㌔㌔")
    assert "".join(cut("ｶﾞｷﾞ ﾊﾟﾝ")) == "ｶﾞｷﾞﾊﾟﾝ"
    assert cut("　東京") == ["東京"] or cut("　東京") == ["東", "京"]
    assert "".join(cut("１２３")) == "１２３"
    assert tokenizer.encode("ｶﾞ").offsets == [(0, 2)]


@pytest.mark.parametrize("text", [*ODD, "각", "조\u1100\u1161\u11a8", "a\u0334\u0302b\u0323\u0307"])
def test_normalise_is_nfkc_with_a_map(text):
    normal, starts, ends = normalise(text)
    assert normal == unicodedata.normalize("NFKC", text)
    assert len(starts) == len(ends) == len(normal)
    # The map covers the text, in order, without a gap.
    assert starts == sorted(starts)
    if text:
        assert starts[0] == 0
        assert ends[-1] == len(text)
    assert all(
        after in (start, end) or after == end for start, end, after in zip(starts, ends, starts[1:], strict=False)
    )


def test_inflected_words():
    tagger = mecab_tagger()

    def words(text: str) -> str:
        return " ".join(text[start:end] for start, end in word_spans(tagger, text, "inflected"))

    assert words("私は学生です") == "私 は 学生 です"
    assert words("東京に住んでいます") == "東京 に 住んで います"
    assert words("学生でした。") == "学生 でした 。"
    assert words("食べられなかったので") == "食べられなかった の で"
    assert words("美しくて高い") == "美しくて 高い"
    assert words("住ん で") == "住ん で"  # a space keeps words apart
    assert words("東京で") == "東京 で"  # the particle de after a noun is another word
    assert (
        " ".join("東京に住んでいます"[a:b] for a, b in word_spans(tagger, "東京に住んでいます"))
        == "東京 に 住ん で い ます"
    )


def test_text_after_nul_and_endless_space_is_not_lost(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "t", PLAIN))
    for gap in ("\0", " " * 70_000, "\0 \0"):
        encoding = tokenizer.encode("東京" + gap + "東京")
        assert encoding.ids == tokenizer.encode("東京").ids * 2
        assert encoding.offsets[-1][1] == 4 + len(gap)


def test_long_texts_go_in_parts(monkeypatch):
    text, tagger = "東京に住んでいます。 名前はまだ無い。" * 40, mecab_tagger()
    for kind in ("morphemes", "inflected"):
        whole = word_spans(tagger, text, kind)
        with monkeypatch.context() as patch:
            patch.setattr(japanese, "MECAB_CHARACTERS", 50)
            assert word_spans(tagger, text, kind) == whole


def test_processes_give_the_same(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "t", PLAIN))
    texts = [f"{PLAIN[index % 3]}{index}" for index in range(600)]
    assert tokenizer.encode_batch(texts, workers=2) == tokenizer.encode_batch(texts)


def test_save_and_words_setting(tmp_path):
    folder = write(tmp_path / "t", PLAIN, bertfast_words="inflected")
    tokenizer = load_tokenizer(folder)
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.words("住んでいます") == ["住んで", "います"]
    assert again.sha256 == tokenizer.sha256 != load_tokenizer(write(tmp_path / "u", PLAIN)).sha256
    assert (again.language, again.is_japanese) == ("ja", True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert set(theirs("私", "私")["token_type_ids"]) == {0, 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"word_tokenizer_type": "sudachi"}, "word_tokenizer_type is 'sudachi'"),
        ({"subword_tokenizer_type": "sentencepiece"}, "subword_tokenizer_type is 'sentencepiece'"),
        ({"do_word_tokenize": False}, "do_word_tokenize is False"),
        ({"mecab_kwargs": {"mecab_dic": "neologd"}}, "neologd"),
        ({"bertfast_words": "syllables"}, "syllables"),
    ],
)
def test_unsupported(tmp_path, config, message):
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(write(tmp_path / "t", PLAIN, **config))


@pytest.mark.parametrize("absent", ["fugashi", "unidic_lite"])
def test_a_missing_package_names_its_extra(tmp_path, absent, monkeypatch):
    folder = write(tmp_path / "t", PLAIN)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=r"Japanese text needs .*-e '\.\[ja\]'"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("dictionary", "brought_by"),
    [("ipadic", "pip install ipadic"), ("unidic", "pip install unidic, then python -m unidic download")],
)
def test_a_missing_dictionary_names_what_brings_it(tmp_path, dictionary, brought_by, monkeypatch):
    monkeypatch.setitem(sys.modules, dictionary, None)
    folder = write(tmp_path / "t", PLAIN, mecab_kwargs={"mecab_dic": dictionary})
    with pytest.raises(ImportError, match=brought_by) as caught:
        load_tokenizer(folder)
    assert ".[ja]" not in str(caught.value)


def test_options_that_mecab_refuses(tmp_path):
    folder = write(tmp_path / "t", PLAIN, mecab_kwargs={"mecab_dic": None, "mecab_option": "-d /nowhere"})
    with pytest.raises(TokenizerError, match="MeCab cannot begin with the options"):
        load_tokenizer(folder)
