"""Tokens beside the vocabulary: wherever a folder keeps them, ids are AutoTokenizer's, and what we save it loads."""

import json
import os
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


# --- the same ids as AutoTokenizer, wherever the files keep their tokens ---

# No two of them equal in lower case.
CONTENTS = [
    "[E1]",
    "[/E1]",
    "<ent>",
    "new",
    "Ab",
    "new word",
    "東京",
    "É",
    "E1E1",
    "##ab",
]
FIRST = len(PIECES)


def drawn(draw: random.Random, most: int = 4) -> list[dict]:
    """A few added tokens with flags."""
    return [
        {"content": content, **{flag: draw.random() < 0.3 for flag in ("lstrip", "rstrip", "single_word")}}
        | {"normalized": draw.random() < 0.5, "special": draw.random() < 0.5}
        for content in draw.sample(CONTENTS, draw.randint(1, most))
    ]


def numbered(tokens: list[dict]) -> dict[str, dict]:
    """By id as transformers numbers them: a piece keeps its own, new ones follow the vocabulary."""
    ids, after = {}, FIRST
    for token in tokens:
        known = token["content"] in PIECES
        ids[str(PIECES.index(token["content"]) if known else after)] = token
        after += not known
    return ids


def by_added_tokens_json(folder, draw, **kind):
    write(folder, **kind, slow=True, added_tokens_decoder=None)
    tokens = {token["content"]: int(index) for index, token in numbered(drawn(draw)).items()}
    (folder / "added_tokens.json").write_text(json.dumps(tokens))


def by_special_tokens_map(folder, draw, **kind):
    by_added_tokens_json(folder, draw, **kind)
    usual = {"content": "[CLS]", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    change(folder / "special_tokens_map.json", {"cls_token": usual, "additional_special_tokens": ["[E1]", "<more>"]})


def by_decoder(folder, draw, **kind):
    write(folder, slow=draw.random() < 0.5, added_tokens_decoder=numbered(drawn(draw)), **kind)


def by_decoder_over_older_files(folder, draw, **kind):
    by_special_tokens_map(folder, draw, **kind)
    change(folder / "tokenizer_config.json", {"added_tokens_decoder": numbered(drawn(draw))})


def by_tokenizer_json(folder, draw, class_name="BertTokenizer", **kind):
    write(folder, tokenizer_class=class_name, **kind)
    state = json.loads((folder / "tokenizer.json").read_text())
    specials = {token["content"] for token in state["added_tokens"]}
    more = [{"id": int(i), **token} for i, token in numbered(drawn(draw)).items() if token["content"] not in specials]
    change(folder / "tokenizer.json", {"added_tokens": state["added_tokens"] + more})


def by_tokenizer_json_as_it_is(folder, draw, **kind):
    by_tokenizer_json(folder, draw, "PreTrainedTokenizerFast", **kind)
    state = json.loads((folder / "tokenizer.json").read_text())
    change(folder / "tokenizer.json", {"normalizer": state["normalizer"] | {"lowercase": draw.random() < 0.5}})


def by_extra_special_tokens(folder, draw, **kind):
    lists = [["[E1]", "new"], ["[E1]", {"content": "[/E1]", "lstrip": True, "__type": "AddedToken"}], {"it": "<it>"}]
    name = draw.choice(["extra_special_tokens", "additional_special_tokens"])
    write(
        folder, slow=draw.random() < 0.5, bos_token="<bos>", image_token="<image>", **{name: draw.choice(lists)}, **kind
    )


def by_other_names(folder, draw, **kind):
    names = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    }
    renamed = [*names.values(), *PIECES[5:]]
    write(folder, slow=True, pieces=renamed, **dict.fromkeys(names), **kind)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    change(folder / draw.choice(["tokenizer_config.json", "special_tokens_map.json"]), names)


def by_settings(folder, draw, **kind):
    flags = {name: draw.choice([True, False]) for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    write(folder, slow=draw.random() < 0.5, added_tokens_decoder=numbered(drawn(draw)), **flags, **kind)


def by_model_type(folder, draw, **kind):
    write(folder, slow=True, tokenizer_class=None, added_tokens_decoder=numbered(drawn(draw)), **kind)
    (folder / "config.json").write_text('{"model_type": "bert"}')


def by_ids_with_gaps(folder, draw, **kind):
    tokens = [token for token in drawn(draw) if token["content"] not in PIECES] or [
        {"content": "[E1]", "special": True}
    ]
    write(folder, slow=True, added_tokens_decoder={str(FIRST + 5 * n): t for n, t in enumerate(tokens)}, **kind)


def characters(folder, draw, **kind):
    by_decoder(folder, draw, subword_tokenizer_type="character", do_lower_case=draw.random() < 0.5, **kind)


ENGLISH_FOLDERS = [
    by_added_tokens_json, by_special_tokens_map, by_decoder, by_decoder_over_older_files, by_tokenizer_json,
    by_tokenizer_json_as_it_is, by_extra_special_tokens, by_other_names, by_settings, by_model_type, by_ids_with_gaps,
]  # fmt: skip
JAPANESE_FOLDERS = [
    by_added_tokens_json, by_special_tokens_map, by_decoder, by_decoder_over_older_files, by_extra_special_tokens, by_other_names,
    by_ids_with_gaps, characters,
]  # fmt: skip
PARTS = [
    *CONTENTS,
    *SPECIALS,
    "<s>",
    "<mask>",
    "<more>",
    "<it>",
    "<image>",
    "<bos>",
    "éa",
    "abé",
    "。",
    "私",
    "にゆ",
    "Word",
    "e1",
    ".",
    "㌔",
    "x",
]
SPACES = ["", "", " ", "  ", "\n", "\u3000"]


@pytest.fixture
def fresh_seed() -> int:
    """Another one each time, in the output of a failure; BERTFAST_SEED sets it."""
    seed = int(os.environ.get("BERTFAST_SEED") or random.SystemRandom().randrange(2**31))
    print(f"BERTFAST_SEED={seed}")
    return seed


def random_text(draw: random.Random) -> str:
    return "".join(draw.choice(PARTS) + draw.choice(SPACES) for _ in range(draw.randint(0, 12)))


@pytest.mark.parametrize(
    ("make", "ja"), [*((make, False) for make in ENGLISH_FOLDERS), *((make, True) for make in JAPANESE_FOLDERS)]
)
def test_ids_are_those_of_transformers(tmp_path, make, ja, fresh_seed):
    draw = random.Random(fresh_seed)
    for number in range(4):
        folder = tmp_path / str(number)
        make(folder, draw, ja=ja)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
            ours.save(tmp_path / f"{number}-saved")
            saved = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{number}-saved")
            ours.add_special_tokens(["[E9]"])
            ours.save(tmp_path / f"{number}-more")
            more = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{number}-more")
            ours = load_tokenizer(folder)
        roles = [getattr(theirs, f"{role}_token_id") for role in ("pad", "unk", "cls", "sep", "mask")]
        assert roles == [ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id]
        assert set(theirs.all_special_ids) <= set(np.flatnonzero(ours.special).tolist())
        for text in (random_text(draw) for _ in range(40)):
            found, want = ours.encode(text, specials=True), theirs(text, add_special_tokens=False)["input_ids"]
            told = (fresh_seed, text, ours.tokens(found.ids), theirs.convert_ids_to_tokens(want))
            assert found.ids == want, told
            for name, other in (("saved", saved), ("more", more)):
                assert other(text, add_special_tokens=False)["input_ids"] == want, (name, *told)
            if theirs.is_fast:
                offsets = theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
                assert found.offsets == [tuple(pair) for pair in offsets], told
            plain = ours.encode(text)
            assert ours.ids_batch([text]) == [plain.ids], told
            if not any(name in text for name in ours.specials):
                assert plain.ids == want, told
