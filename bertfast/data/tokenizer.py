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

CONTINUES = "##"
SPECIAL_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")  # a folder with one of them is a tokenizer's
OLD_FILES = (
    "special_tokens_map.json",
    "added_tokens.json",
)  # not read where tokenizer_config.json has added_tokens_decoder
FILES = (*VOCABULARY_FILES, "tokenizer_config.json", *OLD_FILES)
MOST_IDS = 1 << 24  # a vocabulary is a list with a place for each id
LONGEST_WORD = 100  # characters; WordPiece makes a longer one [UNK]
# The settings of BertTokenizer that change ids, and BertNormalizer's own names for them.
NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


# Classes of transformers that build their tokenizer anew from pieces and settings, whatever else tokenizer.json says.
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
                f"the vocabulary has {'an id ' + str(highest) if self.vocab else 'no pieces'}; mend its files"
            )
        self.pieces = [""] * (highest + 1)
        for piece, index in self.vocab.items():
            if self.pieces[index]:
                raise TokenizerError(
                    f"{self.pieces[index]!r} and {piece!r} have the same id {index}; mend the ids in the tokenizer's files"
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


def vocabulary(content: bytes, name: str = "vocab.txt") -> dict[str, int]:
    """Pieces of a vocab.txt, one a line, to the number of their line."""
    try:
        pieces = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is not UTF-8 ({error}); copy the tokenizer's files again") from None
    if pieces[-1] == "":
        pieces.pop()
    ids = {piece.rstrip("\r"): index for index, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        twice = next(piece.rstrip("\r") for index, piece in enumerate(pieces) if ids[piece.rstrip("\r")] != index)
        warnings.warn(
            f"{name}: {len(pieces) - len(ids)} lines repeat an earlier piece, such as {twice!r}; the last one's id counts, as it "
            "does in transformers",
            stacklevel=2,
        )
    return ids


def _parsed(files: dict[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files among `files`. TokenizerError for one that is none, or no object."""
    parsed: dict[str, dict[str, Any]] = {}
    for name in (name for name in files if name.endswith(".json")):
        try:
            value = json.loads(files[name])
        except (ValueError, RecursionError) as error:
            raise TokenizerError(
                f"{folder / name} is not JSON ({error or 'nested too deeply'}); copy the tokenizer's files again"
            ) from None
        if not isinstance(value, dict):
            raise TokenizerError(
                f"{folder / name} holds {type(value).__name__} where an object is due; copy the tokenizer's files again"
            )
        parsed[name] = value
    return parsed


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


def _pieces_of_json(state: dict[str, Any], where: str) -> dict[str, int]:
    model = state.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{where} has no object 'model'; copy the tokenizer's files again")
    if (kind := model.get("type", "WordPiece")) != "WordPiece":
        raise TokenizerError(f"{where} holds a {kind} model; BERT's pieces are WordPiece")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise TokenizerError(f"{where} has no vocabulary of pieces and ids; copy the tokenizer's files again")
    if (highest := max(vocab.values(), default=0)) >= MOST_IDS:
        raise TokenizerError(f"{where}: the vocabulary has an id {highest}; mend its ids")
    return vocab


def _tell_differences(where: str, state: dict[str, Any], backend: Any, class_name: str) -> None:
    """A warning where tokenizer.json says something that its folder's class in transformers does not heed."""
    used = json.loads(backend.to_str())
    written = {"normalizer": state.get("normalizer"), "pre_tokenizer": state.get("pre_tokenizer")}
    model = {name: value for name, value in state["model"].items() if name in used["model"] and name != "vocab"}
    pairs = [(name, value, used[name]) for name, value in written.items()]
    pairs += [(name, value, used["model"][name]) for name, value in model.items()]
    if differing := [
        f"{name} {_short(value)} (used: {_short(other)})" for name, value, other in pairs if value != other
    ]:
        warnings.warn(
            f"{where} and tokenizer_config.json disagree on {'; '.join(differing)}: with {class_name}, transformers and bertfast "
            "take tokenizer_config.json, and its usual settings where it names none. Write the intended settings there",
            stacklevel=2,
        )


def _tell_other_pieces(folder: Path, files: dict[str, bytes], vocab: dict[str, int]) -> None:
    """A warning where vocab.txt was changed, or damaged, and tokenizer.json was not."""
    try:
        other = vocabulary(files["vocab.txt"], str(folder / "vocab.txt")) if "vocab.txt" in files else vocab
        difference = sorted(other.items() ^ vocab.items(), key=lambda pair: pair[1])
        what = f"they differ, first in id {difference[0][1]}" if difference else ""
    except TokenizerError as error:
        what = str(error)
    if what:
        warnings.warn(
            f"{folder}: vocab.txt is not used beside tokenizer.json, as it is not in transformers, and its pieces are not the same "
            f"({what}): take tokenizer.json out if vocab.txt is right",
            stacklevel=2,
        )


def _tell_collisions(folder: Path, backend: Any) -> None:
    """A warning where added tokens are one once normalised: which of them `tokenizers` finds changes from process to process."""
    seen: dict[str, str] = {}
    for _, token in sorted(backend.get_added_tokens_decoder().items()):
        if token.normalized:
            other = seen.setdefault(backend.normalizer.normalize_str(token.content), token.content)
            if other != token.content:
                warnings.warn(
                    f"{folder}: the added tokens {other!r} and {token.content!r} are the same once normalised, and which of them a "
                    'text gets is chance: give one of them "normalized": false, or take it out',
                    stacklevel=2,
                )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else text[:157] + "..."


def _english(folder: Path, files: dict[str, bytes], parsed: dict[str, dict[str, Any]], class_name: str) -> Tokenizer:
    import tokenizers

    config = parsed.get("tokenizer_config.json", {})
    state, where = parsed.get("tokenizer.json"), str(folder / "tokenizer.json")
    if state is None or class_name in BERT_CLASSES:
        usual = {f"{role}_token": token for role, token in SPECIAL_ROLES.items()}
        added = gather(usual | config, parsed)
        unknown = text_of(added.named["unk_token"])
        vocab = (
            vocabulary(files["vocab.txt"], str(folder / "vocab.txt"))
            if state is None
            else _pieces_of_json(state, where)
        )
        backend = bert_backend(vocab, config, unknown)
        if state is not None:
            _tell_differences(where, state, backend, class_name)
            _tell_other_pieces(folder, files, vocab)
    else:
        _pieces_of_json(state, where)
        added = gather(config, parsed)
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}))
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(f"{where}: {error}") from None
        if backend.normalizer is None or backend.pre_tokenizer is None:
            raise TokenizerError(f"{where} has no normalizer or no pre_tokenizer; copy the tokenizer's files again")
        _tell_other_pieces(folder, files, _pieces_of_json(state, where))
    _add_all(backend, added)
    made = Tokenizer(files, config, backend, added)
    _tell_collisions(folder, backend)
    if moved := [f"{t.content!r} {index} (used: {made.vocab[t.content]})" for index, t in added.stated.items()
                 if made.vocab.get(t.content, index) != index]:  # fmt: skip
        warnings.warn(
            f"{folder}: the files give other ids than transformers to {', '.join(moved[:5])}: it numbers added tokens from the end "
            "of the vocabulary on, and so does bertfast. A model that was trained with the ids of the files is misread",
            stacklevel=2,
        )
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
    parsed = _parsed(files, folder)
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
