"""Text to word pieces: one interface over `tokenizers` (English) and MeCab words (Japanese).

A folder is read as transformers reads it, and ids are those of its BertTokenizer and BertJapaneseTokenizer with
`add_special_tokens=False`. By default a literal "[SEP]" in a text is five ordinary characters, because a corpus must not be able
to write BERT's own special tokens; `specials=True` recognises them, for texts such as "Paris is the [MASK] of France". Every other
added token, a user's own special ones included, is recognised always: it was added to be written in texts.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.data.added_tokens import FLAGS, Added, TokenizerError, gather, recorded, text_of
from bertfast.data.files import missing_extra, write_whole
from bertfast.data.tokenizer_folder import (
    MOST_IDS,
    parse_json,
    pieces_of_json,
    tell_collisions,
    tell_differences,
    tell_moved_ids,
    tell_other_pieces,
    vocabulary,
)

CONTINUES = "##"
SPECIAL_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")  # a folder with one of them is a tokenizer's
# Not read where tokenizer_config.json has added_tokens_decoder.
OLD_FILES = ("special_tokens_map.json", "added_tokens.json")
FILES = (*VOCABULARY_FILES, "tokenizer_config.json", *OLD_FILES)
LONGEST_WORD = 100  # characters; WordPiece makes a longer one [UNK]
# The settings of BertTokenizer that change ids, and BertNormalizer's own names for them.
NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


# Classes of transformers that build their tokenizer from pieces and settings, whatever else tokenizer.json says.
BERT_CLASSES = frozenset(
    f"{name}Tokenizer"
    for name in (
        "Bert", "ConvBert", "DistilBert", "DPRContextEncoder", "DPRQuestionEncoder", "DPRReader", "Electra", "LayoutLM", "Lxmert",
        "MobileBert", "SqueezeBert",
    )
)  # fmt: skip
BERT_TYPES = frozenset(
    (
        "bert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "lxmert", "megatron-bert", "mobilebert", "nezha",
        "nomic_bert", "qdqbert", "realm", "retribert", "squeezebert",
    )
)  # fmt: skip
JAPANESE_CLASS = "BertJapaneseTokenizer"


@dataclass
class Encoding:
    """Pieces of one text. `ids`; `offsets`: characters of the original text, end exclusive; `words`: index of each piece's word."""

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)


class Tokenizer:
    """English word pieces; JapaneseTokenizer overrides how text is cut. Made by `load_tokenizer`.

    `continuation`, `special` and `user_special` are bool arrays [vocab_size]: continuing pieces, special tokens, and those
    of them besides BERT's five.
    """

    language = "en"
    is_japanese = False

    def __init__(self, files: dict[str, bytes], config: dict[str, Any], backend: Any, added: Added) -> None:
        self.files, self.config, self._backend = files, config, backend
        self.named = {name: text_of(token) for name, token in added.named.items()}
        self._listed = added.special_contents()  # what transformers calls all_special_tokens
        self._index()

    def _index(self) -> None:
        """What follows from the pieces and added tokens."""
        self.vocab = self._all_pieces()
        if not self.vocab or (highest := max(self.vocab.values())) >= MOST_IDS:
            raise TokenizerError(
                f"the vocabulary has {'an id ' + str(highest) if self.vocab else 'no pieces'}; fix its files"
            )
        self.pieces = [""] * (highest + 1)
        for piece, index in self.vocab.items():
            if self.pieces[index]:
                raise TokenizerError(
                    f"{self.pieces[index]!r} and {piece!r} have the same id {index}; fix the ids in the tokenizer's files"
                )
            self.pieces[index] = piece
        self.vocab_size = len(self.pieces)
        names = {role: self.named.get(f"{role}_token") or usual for role, usual in SPECIAL_ROLES.items()}
        if absent := [name for name in names.values() if name not in self.vocab]:
            raise TokenizerError(
                f"the vocabulary of {self.vocab_size} pieces has no {', '.join(absent)}; BERT needs all of "
                f"{', '.join(names.values())}: add them to vocab.txt, or name yours in tokenizer_config.json"
            )
        ids = {role: self.vocab[name] for role, name in names.items()}
        self.pad_id, self.unk_id, self.cls_id = ids["pad"], ids["unk"], ids["cls"]
        self.sep_id, self.mask_id = ids["sep"], ids["mask"]
        self.specials = {name: self.vocab[name] for name in names.values()}
        added = self._added()
        marked = self._listed | {token.content for token in added.values() if token.special}
        self.special = np.zeros(self.vocab_size, bool)
        self.special[[*self.specials.values(), *(self.vocab[name] for name in marked if name in self.vocab)]] = True
        self.user_special = self.special.copy()
        self.user_special[list(self.specials.values())] = False
        self.continuation = np.array([len(piece) > 2 and piece.startswith(CONTINUES) for piece in self.pieces])
        self.continuation[list(added)] = False

    def _all_pieces(self) -> dict[str, int]:
        return self._backend.get_vocab(with_added_tokens=True)

    def _added(self) -> dict[int, Any]:
        """The added tokens by id, BERT's own special ones among them."""
        return self._backend.get_added_tokens_decoder()

    def _add(self, tokens: list[Any]) -> None:
        self._backend.add_tokens(tokens)

    def add_special_tokens(self, tokens: Sequence[str]) -> int:
        """Makes each of `tokens` a special token: whole wherever it stands in a text, as it is written, and never masked.

        Returns how many are new; those get the next ids after `vocab_size`, and a model needs as many more rows. A piece that there
        is already keeps its id. `save` writes them as transformers does. TokenizerError for a token that is empty or has white
        space around it.
        """
        from tokenizers import AddedToken

        for token in tokens:
            if not isinstance(token, str) or not token or token != token.strip() or "\0" in token:
                raise TokenizerError(f"special token {token!r}: it must be text, without white space around it")
        before = len(self.vocab)
        self._add([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(tokens)])
        self._listed |= set(tokens)
        self._index()
        for name in ("sha256", "_backend_of_text"):
            self.__dict__.pop(name, None)
        self._record()
        return len(self.vocab) - before

    def _record(self) -> None:
        """The added tokens into `files`, in place of what these said of them."""
        extra = [piece for piece in self.pieces if piece in self._listed and piece not in self.named.values()]
        added = self._added()
        self.config = recorded(self.config, added, self.named, extra)
        files = {name: content for name, content in self.files.items() if name not in OLD_FILES}
        files["tokenizer_config.json"] = (json.dumps(self.config, indent=1, ensure_ascii=False) + "\n").encode()
        if "tokenizer.json" in files:
            state = json.loads(files["tokenizer.json"])
            state["added_tokens"] = [
                {"id": index, "content": token.content, **{name: getattr(token, name) for name in FLAGS}}
                for index, token in sorted(added.items())
            ]
            files["tokenizer.json"] = json.dumps(state, indent=1, ensure_ascii=False).encode()
        self.files = files

    def settings(self) -> dict[str, Any]:
        """What, besides the pieces, decides the ids of a text."""
        state = json.loads(self._backend.to_str())
        settings = {"normalizer": state["normalizer"]}
        longest = state["model"]["max_input_chars_per_word"]
        return settings if longest == LONGEST_WORD else settings | {"longest_word": longest}

    def _unusual_tokens(self) -> list[list[Any]]:
        """Added tokens, but for BERT's own five as they always are."""
        tokens = (
            (index, t.content, [getattr(t, name) for name in FLAGS]) for index, t in sorted(self._added().items())
        )
        usual = [name == "special" for name in FLAGS]
        return [[index, text, flags] for index, text, flags in tokens if text not in self.specials or flags != usual]

    @cached_property
    def sha256(self) -> str:
        """A hash of pieces and settings: equal for two folders that give the same ids, however their files are written."""
        meaning = {"language": self.language, "pieces": self.pieces, "specials": self.specials, **self.settings()}
        if unusual := self._unusual_tokens():
            meaning["added"] = unusual
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _backend_of_text(self) -> Any:
        """The same tokenizer, to which BERT's own special tokens are text."""
        from tokenizers import AddedToken

        state = json.loads(self._backend.to_str())
        backend = type(self._backend).from_str(json.dumps(state | {"added_tokens": []}))
        for _, token in sorted(self._added().items()):
            flags = {name: getattr(token, name) for name in FLAGS} | {"special": token.content in self.specials}
            backend.add_tokens([AddedToken(token.content, **flags)])
        backend.encode_special_tokens = True
        return backend

    def _of(self, specials: bool) -> Any:
        return self._backend if specials else self._backend_of_text

    def encode(self, text: str, *, specials: bool = False) -> Encoding:
        """Pieces of `text`, no [CLS] or [SEP] added; `specials` recognises BERT's own special tokens that are written in it."""
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


def bert_backend(vocab: dict[str, int], config: dict[str, Any], unknown: str = SPECIAL_ROLES["unk"]) -> Any:
    """The `tokenizers` object that transformers' BertTokenizer builds from vocabulary and settings, without added tokens."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    settings = {
        "do_lower_case": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "tokenize_chinese_chars": config.get("tokenize_chinese_chars", True),
    }
    for name, value in settings.items():
        if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
            raise TokenizerError(f"tokenizer_config.json: {name} is {value!r}; it must be true or false")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, **{theirs: settings[ours] for ours, theirs in NORMALIZER_SETTINGS.items()}
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUES)
    return backend


def _add_all(backend: Any, added: Added) -> None:
    """Adds tokens as transformers does, but for those of BERT's five that no file has: their absence is to be noticed."""
    usual = set(SPECIAL_ROLES)
    roles = {text_of(token) for name, token in added.named.items() if name.removesuffix("_token") in usual}
    stated = {token.content for token in added.stated.values()}
    tokens = added.in_order()
    backend.add_tokens(
        [
            t
            for t in tokens
            if t.content not in roles or t.content in stated or backend.token_to_id(t.content) is not None
        ]
    )


def _english(folder: Path, files: dict[str, bytes], parsed: dict[str, dict[str, Any]], class_name: str) -> Tokenizer:
    import tokenizers

    config = parsed.get("tokenizer_config.json", {})
    state, where = parsed.get("tokenizer.json"), str(folder / "tokenizer.json")
    if state is None or class_name in BERT_CLASSES:
        usual = {f"{role}_token": token for role, token in SPECIAL_ROLES.items()}
        added = gather(usual | config, parsed)
        unknown = text_of(added.named["unk_token"])
        vocab = (
            vocabulary(files["vocab.txt"], str(folder / "vocab.txt")) if state is None else pieces_of_json(state, where)
        )
        backend = bert_backend(vocab, config, unknown)
        if state is not None:
            tell_differences(where, state, backend, class_name)
            tell_other_pieces(folder, files, vocab)
    else:
        pieces_of_json(state, where)
        added = gather(config, parsed)
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}))
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(f"{where}: {error}") from None
        if backend.normalizer is None or backend.pre_tokenizer is None:
            raise TokenizerError(f"{where} has no normalizer or no pre_tokenizer; copy the tokenizer's files again")
        tell_other_pieces(folder, files, pieces_of_json(state, where))
    _add_all(backend, added)
    made = Tokenizer(files, config, backend, added)
    tell_collisions(folder, backend)
    tell_moved_ids(folder, added.stated, made.vocab)
    return made


def _class_of(parsed: dict[str, dict[str, Any]], model: dict[str, Any], files: Iterable[str], folder: Path) -> str:
    """The class that AutoTokenizer takes; Japanese also where the settings ask for MeCab and the class does not."""
    config = parsed.get("tokenizer_config.json", {})
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise TokenizerError(f"{folder / 'tokenizer_config.json'}: tokenizer_class is {name!r}; it must be a name")
    if name is None:
        known = model.get("model_type") in BERT_TYPES or "tokenizer.json" not in files
        name = "BertTokenizer" if known else "PreTrainedTokenizerFast"
        name = JAPANESE_CLASS if model.get("model_type") == "bert-japanese" else name
    if name != JAPANESE_CLASS and config.get("word_tokenizer_type") == "mecab":
        warnings.warn(
            f"{folder}: word_tokenizer_type is 'mecab', and the class that transformers would take, {name}, does not know it; read "
            f'as Japanese. Write "tokenizer_class": "{JAPANESE_CLASS}" into tokenizer_config.json for transformers to do the same',
            stacklevel=2,
        )
        return JAPANESE_CLASS
    return name.removesuffix("Fast") if name.removesuffix("Fast") in BERT_CLASSES else name


def tokenizer_from_files(
    files: dict[str, bytes], folder: Path = Path(), model: dict[str, Any] | None = None
) -> Tokenizer:
    """The tokenizer whose folder holds `files`; `folder` is for messages, `model` the config.json of a model beside them."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise missing_extra(error, "data", "reading text") from None
    try:
        return _tokenizer(files, folder, model or {})
    except TokenizerError as error:
        if str(folder) in str(error):
            raise
        raise TokenizerError(f"{folder}: {error}") from None


def _tokenizer(files: dict[str, bytes], folder: Path, model: dict[str, Any]) -> Tokenizer:
    parsed = parse_json(files, folder)
    class_name = _class_of(parsed, model, files, folder)
    config = parsed.setdefault("tokenizer_config.json", {})
    if (config.get("tokenizer_class") or "").removesuffix("Fast") != class_name.removesuffix("Fast"):
        # What only the model's config.json said is written down, because the tokenizer is saved without it.
        config["tokenizer_class"] = class_name
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        files = {**files, "tokenizer_config.json": text.encode()}
    if class_name == JAPANESE_CLASS:
        from bertfast.data.japanese import japanese_tokenizer

        return japanese_tokenizer(folder, files, parsed)
    return _english(folder, files, parsed, class_name)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads a tokenizer folder of transformers: tokenizer.json or vocab.txt, the settings and the added tokens beside them.

    Japanese where BertJapaneseTokenizer is named, with MeCab words. Raises TokenizerError for a folder without a
    vocabulary, without one of the five special tokens, or of a kind that is not BERT's. Warns where files disagree.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder; name one with vocab.txt or tokenizer.json in it")
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    if not files.keys() & set(VOCABULARY_FILES):
        raise TokenizerError(
            f"{folder} has neither vocab.txt nor tokenizer.json; `bertfast data vocab` makes such a folder"
        )
    try:
        model = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        model = None  # no model here, or one that whoever loads it will complain of
    return tokenizer_from_files(files, folder, model if isinstance(model, dict) else None)
