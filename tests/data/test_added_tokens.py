"""Tokens beside the vocabulary: wherever a folder keeps them, ids are AutoTokenizer's, and what we save it loads."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from bertfast.data.masking import Masker, MaskOptions, Vocabulary  # noqa: E402
from bertfast.data.tokenizer import TokenizerError, load_tokenizer  # noqa: E402
from bertfast.data.vocab import VocabularyOptions, tokenizer_files  # noqa: E402

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abceE1é東京私にんゆ[]<>/."
PIECES = [*SPECIALS, *LETTERS, *("##" + letter for letter in LETTERS), "東京", "ab", "##ab", "Ab", "new", "word", "e1"]


def write(folder: Path, *, ja: bool = False, slow: bool = False, pieces: list[str] = PIECES, **config) -> Path:
    """A folder as `data vocab` makes it; `config` goes over its tokenizer_config.json, None takes a setting out."""
    folder.mkdir(parents=True, exist_ok=True)
    if ja:
        pytest.importorskip("fugashi")
        pytest.importorskip("unidic_lite")
    for name, content in tokenizer_files(
        pieces, VocabularyOptions(language="ja" if ja else "en", lowercase=not ja)
    ).items():
        if not (slow and name == "tokenizer.json"):
            (folder / name).write_bytes(content)
    change(folder / "tokenizer_config.json", config)
    return folder


def change(path: Path, values: dict) -> None:
    content = (json.loads(path.read_text("utf-8")) if path.is_file() else {}) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")


@pytest.mark.parametrize("ja", [False, True])
@pytest.mark.parametrize("slow", [False, True])
def test_special_tokens_of_a_user(tmp_path, ja, slow):
    tokenizer = load_tokenizer(write(tmp_path / "t", ja=ja, slow=slow))
    before, hash_before = tokenizer.vocab_size, tokenizer.sha256
    text = "[E1]new[/E1] [E1] [e1] word"
    assert tokenizer.tokens(tokenizer.encode(text).ids)[0] == "["
    assert tokenizer.add_special_tokens(["[E1]", "[/E1]", "new"]) == 2
    assert tokenizer.add_special_tokens(["[E1]", "[E2]", "[E2]"]) == 1
    assert (tokenizer.vocab_size, tokenizer.vocab["[E1]"], tokenizer.vocab["[E2]"]) == (before + 3, before, before + 2)
    assert tokenizer.vocab["new"] == PIECES.index("new"), "a piece keeps its id"
    assert tokenizer.tokens(tokenizer.encode(text).ids)[:4] == ["[E1]", "new", "[/E1]", "[E1]"]
    assert tokenizer.sha256 != hash_before
    assert np.flatnonzero(tokenizer.user_special).tolist() == [PIECES.index("new"), before, before + 1, before + 2]
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.sha256 == tokenizer.sha256
    assert len(theirs) == tokenizer.vocab_size
    assert set(theirs.all_special_ids) == set(np.flatnonzero(tokenizer.special).tolist())
    for each in (text, "a[E2][E1]new. [SEP] [MASK]", "東京[E1]に"):
        want = theirs(each, add_special_tokens=False)["input_ids"]
        assert again.encode(each, specials=True).ids == want == tokenizer.encode(each, specials=True).ids
        assert tokenizer.ids_batch([each]) == [again.encode(each).ids]
    assert (2, 6) in tokenizer.encode("ab[E1]東京").offsets
    assert tokenizer.encode_words(["ab", "[E1]"]).ids[-1] == before


def test_literal_special_tokens_stay_text_beside_a_users_own(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "t"))
    plain = tokenizer.encode("[SEP]").ids
    tokenizer.add_special_tokens(["[E1]"])
    assert tokenizer.encode("[SEP]").ids == plain != [tokenizer.sep_id]
    assert tokenizer.encode("[SEP]", specials=True).ids == [tokenizer.sep_id]


def test_a_users_special_tokens_are_never_predicted(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "t"))
    tokenizer.add_special_tokens(["[E1]"])
    masker = Masker(Vocabulary.of(tokenizer), MaskOptions(), 16)
    fixed = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.vocab["[E1]"]}
    assert set(np.flatnonzero(masker.fixed).tolist()) == fixed
    assert tokenizer.vocab["[E1]"] not in masker.replacements


@pytest.mark.parametrize("token", ["", " ", "[E1] ", "a\0b", 5])
def test_no_token(tmp_path, token):
    with pytest.raises(TokenizerError, match="special token"):
        load_tokenizer(write(tmp_path / "t")).add_special_tokens([token])
