"""Text to word pieces: one interface over `tokenizers` (English) and MeCab words (Japanese).

A folder is read as transformers reads it, and ids are those of its BertTokenizer and BertJapaneseTokenizer with
`add_special_tokens=False`. By default a literal "[SEP]" in a text is five ordinary characters, because a corpus must not be able
to write special tokens; `specials=True` recognises them, for texts such as "Paris is the [MASK] of France".
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.data.files import missing_extra, write_whole

CONTINUES = "##"
SPECIAL_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")  # a folder with one of them is a tokenizer's
FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# The settings of BertTokenizer that change ids, and BertNormalizer's own names for them.
NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class TokenizerError(ValueError):
    """A tokenizer folder that is incomplete or not understood."""


@dataclass
class Encoding:
    """Pieces of one text. `ids`; `offsets`: characters of the original text, end exclusive; `words`: index of each piece's word."""

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)


class Tokenizer:
    """English word pieces; JapaneseTokenizer overrides how text is cut. Made by `load_tokenizer`.

    `continuation` and `special` are bool arrays [vocab_size]: pieces that continue a word, and special tokens.
    """

    language = "en"
    is_japanese = False

    def __init__(self, files: dict[str, bytes], config: dict[str, Any], backend: Any) -> None:
        self.files, self.config, self._backend = files, config, backend
        self.vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.pieces = [""] * (max(self.vocab.values()) + 1)
        for piece, index in self.vocab.items():
            self.pieces[index] = piece
        self.vocab_size = len(self.pieces)
        names = {role: _content(config.get(f"{role}_token")) or usual for role, usual in SPECIAL_ROLES.items()}
        if absent := [name for name in names.values() if name not in self.vocab]:
            raise TokenizerError(
                f"the vocabulary of {self.vocab_size} pieces has no {', '.join(absent)}; BERT needs all of "
                f"{', '.join(names.values())}: add them to vocab.txt, or name yours in tokenizer_config.json"
            )
        ids = {role: self.vocab[name] for role, name in names.items()}
        self.pad_id, self.unk_id, self.cls_id = ids["pad"], ids["unk"], ids["cls"]
        self.sep_id, self.mask_id = ids["sep"], ids["mask"]
        self.specials = {name: self.vocab[name] for name in names.values()}
        added = [index for index, token in backend.get_added_tokens_decoder().items() if token.special]
        self.special = np.zeros(self.vocab_size, bool)
        self.special[[*self.specials.values(), *added]] = True
        self.continuation = np.array([len(piece) > 2 and piece.startswith(CONTINUES) for piece in self.pieces])

    def settings(self) -> dict[str, Any]:
        """What, besides the pieces, decides the ids of a text."""
        return {"normalizer": json.loads(self._backend.to_str())["normalizer"]}

    @cached_property
    def sha256(self) -> str:
        """A hash of pieces and settings: equal for two folders that give the same ids, however their files are written."""
        meaning = {"language": self.language, "pieces": self.pieces, "specials": self.specials, **self.settings()}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _backend_of_text(self) -> Any:
        """The same tokenizer, to which special tokens are text."""
        backend = type(self._backend).from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def _of(self, specials: bool) -> Any:
        return self._backend if specials else self._backend_of_text

    def encode(self, text: str, *, specials: bool = False) -> Encoding:
        """Pieces of `text`, no [CLS] or [SEP] added; `specials` recognises special tokens that are written in it."""
        return _encoding(self._of(specials).encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str], *, specials: bool = False, workers: int = 1) -> list[Encoding]:
        """`encode` of each text. `tokenizers` brings threads of its own; `workers` is for Japanese, which needs processes."""
        encodings = self._of(specials).encode_batch(list(texts), add_special_tokens=False)
        return [_encoding(encoding) for encoding in encodings]

    def encode_words(self, words: Sequence[str]) -> Encoding:
        """Pieces of words that are already apart; `offsets` count the characters of each piece's own word."""
        if not words:
            return Encoding()
        return _encoding(self._backend_of_text.encode(list(words), is_pretokenized=True, add_special_tokens=False))

    def ids_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids alone, faster: what `bertfast data build` stores."""
        encodings = self._backend_of_text.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def words(self, text: str) -> list[str]:
        """The words before they are cut into pieces, as the pieces see them (lower-cased where the vocabulary is)."""
        normal = self._backend.normalizer.normalize_str(text)
        return [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(normal)]

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The piece of each id."""
        return [self.pieces[int(index)] for index in ids]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the pieces without special tokens, a space between words: near the original, not equal to it."""
        text = " ".join(self.pieces[int(index)] for index in ids if not self.special[int(index)])
        return text.replace(" " + CONTINUES, "").strip()

    def save(self, folder: str | Path) -> None:
        """Writes the files this tokenizer came from: transformers' AutoTokenizer loads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            write_whole(folder / name, content)


def _encoding(encoding: Any) -> Encoding:
    return Encoding(encoding.ids, encoding.offsets, encoding.word_ids)


def _content(token: Any) -> str | None:
    """tokenizer_config.json names a token by a string, or by an object with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(files: dict[str, bytes], name: str, folder: Path) -> dict[str, Any]:
    try:
        return json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise TokenizerError(f"{folder / name} is not JSON ({error}); copy the tokenizer's files again") from None


def vocabulary(content: bytes, name: str = "vocab.txt") -> dict[str, int]:
    """Pieces of a vocab.txt, one a line, to the number of their line."""
    try:
        pieces = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is not UTF-8 ({error}); copy the tokenizer's files again") from None
    if pieces[-1] == "":
        pieces.pop()
    return {piece.rstrip("\r"): index for index, piece in enumerate(pieces)}


def bert_backend(vocab: dict[str, int], config: dict[str, Any]) -> Any:
    """The `tokenizers` object that BertTokenizer of transformers builds from the same vocabulary and settings."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    unknown = _content(config.get("unk_token")) or SPECIAL_ROLES["unk"]
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUES)
    names = [_content(config.get(f"{role}_token")) or usual for role, usual in SPECIAL_ROLES.items()]
    # A token that the vocabulary lacks would be appended to it here, and its absence never noticed.
    backend.add_special_tokens([name for name in names if name in vocab])
    return backend


def _english(folder: Path, files: dict[str, bytes], config: dict[str, Any]) -> Tokenizer:
    import tokenizers

    if "tokenizer.json" not in files:
        return Tokenizer(files, config, bert_backend(vocabulary(files["vocab.txt"], str(folder / "vocab.txt")), config))
    state = _read_json(files, "tokenizer.json", folder)
    normalizer = state.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        # transformers lets the settings of tokenizer_config.json win.
        normalizer |= {ours: config[name] for name, ours in NORMALIZER_SETTINGS.items() if name in config}
    if (kind := (state.get("model") or {}).get("type", "WordPiece")) != "WordPiece":
        raise TokenizerError(f"{folder / 'tokenizer.json'} holds a {kind} model; BERT's pieces are WordPiece")
    state |= {"truncation": None, "padding": None}
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"{folder / 'tokenizer.json'}: {error}") from None
    return Tokenizer(files, config, backend)


def tokenizer_from_files(files: dict[str, bytes], folder: Path = Path()) -> Tokenizer:
    """The tokenizer whose folder holds `files`; `folder` is for messages."""
    config = _read_json(files, "tokenizer_config.json", folder)
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise missing_extra(error, "data", "reading text") from None
    kind = config.get("word_tokenizer_type", "basic")
    if config.get("tokenizer_class") == "BertJapaneseTokenizer" or kind == "mecab":
        from bertfast.data.japanese import japanese_tokenizer

        return japanese_tokenizer(folder, files, config)
    return _english(folder, files, config)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads a tokenizer folder of transformers: tokenizer.json or vocab.txt, and tokenizer_config.json.

    Japanese where tokenizer_config.json names BertJapaneseTokenizer with MeCab words. Raises TokenizerError for a folder without a
    vocabulary, without one of the five special tokens, or of a kind that is not BERT's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder; name one with vocab.txt or tokenizer.json in it")
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    if not files.keys() & set(VOCABULARY_FILES):
        raise TokenizerError(
            f"{folder} has neither vocab.txt nor tokenizer.json; `bertfast data vocab` makes such a folder"
        )
    return tokenizer_from_files(files, folder)
