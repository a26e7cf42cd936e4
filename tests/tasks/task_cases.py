"""Tiny vocabularies and tokenizers for the tests of tasks."""

import json
from pathlib import Path

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = "the paris is capital of france what who ##s ##ing play good bad film very"
ENGLISH = list(dict.fromkeys([*SPECIALS, *LETTERS, *".,?![]()'-", *(f"##{c}" for c in LETTERS), *WORDS.split()]))
CHARACTERS = "私は学生です東京に住んでいますどこか。[]SEP梅雨北海道"
JAPANESE = [*SPECIALS, *dict.fromkeys(CHARACTERS), "学生", "東京", "住ん", "##道", "##海"]


def tokenizer_folder(folder: Path, language: str = "en") -> Path:
    """A folder that transformers' AutoTokenizer and `load_tokenizer` read."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    if language == "ja":
        config = {
            "tokenizer_class": "BertJapaneseTokenizer",
            "do_lower_case": False,
            "word_tokenizer_type": "mecab",
            "subword_tokenizer_type": "wordpiece",
            "mecab_kwargs": {"mecab_dic": "unidic_lite"},
        }
    (folder / "vocab.txt").write_text("\n".join(JAPANESE if language == "ja" else ENGLISH) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
