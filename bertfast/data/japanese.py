"""Japanese word pieces: NFKC, MeCab words (fugashi with unidic-lite), WordPiece in each word.

Ids are those of transformers' BertJapaneseTokenizer, and every piece knows the characters of the original text it came from, which
that one does not tell. NFKC changes lengths (a square kilo sign becomes two kana, half-width ka with its voicing mark one), so
offsets go through a map from normalised characters to original ones.

Words are MeCab's morphemes, or with "inflected" a verb's or adjective's form is one word with its te and its auxiliaries.
"""

import importlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bertfast.data.files import missing_extra, write_whole
from bertfast.data.tokenizer import (
    CONTINUES,
    MODEL_INPUTS,
    SPECIAL_ROLES,
    Encoding,
    Tokenizer,
    TokenizerError,
    vocabulary,
)

WORD_KINDS = ("morphemes", "inflected")
WORDS_SETTING = "bertfast_words"  # in tokenizer_config.json; transformers carries it along unread
CACHED_WORDS = 1 << 17  # distinct words whose pieces are kept: 40 MB at most
MECAB_CHARACTERS = 1 << 16  # of a text at a time
BLANK = re.compile(r"[ \t\r\n\v\f\0]*")
TASK_TEXTS = 256  # texts in one message to a worker process
INFLECTS = ("動詞", "形容詞", "助動詞")  # verb, adjective, auxiliary: です after a noun starts a word that た may join
CONJUNCTIVE = ("助詞", "接続助詞")

Span = tuple[int, int]


def mecab_tagger(dictionary: str | None = "unidic_lite", option: str | None = None) -> Any:
    """fugashi's tagger with the options that transformers' MecabTokenizer gives it."""
    try:
        import fugashi

        if dictionary is None:
            return fugashi.GenericTagger(option or "")
        if dictionary not in ("unidic_lite", "unidic", "ipadic"):
            raise TokenizerError(f"mecab_dic is {dictionary!r}; known are unidic_lite, unidic and ipadic")
        folder = importlib.import_module(dictionary).DICDIR
    except ImportError as error:
        raise missing_extra(error, "ja", "Japanese text") from None
    return fugashi.GenericTagger(f'-d "{folder}" -r "{folder}/mecabrc" {option or ""}')


def word_spans(tagger: Any, text: str, kind: str = "morphemes") -> list[Span]:
    """Where each word of `text` (already normalised) starts and ends; white space belongs to none.

    MeCab stops at NUL, and at 65,536 bytes of white space: the rest is given to it again, so that no text is lost. A long text is
    given to it in parts, because its lattice takes hundreds of bytes a character; a part's last word goes to the next one.
    """
    spans: list[Span] = []
    kinds: list[tuple[str, str]] = []
    position, length = 0, len(text)
    while position < length:
        part = text[position : position + MECAB_CHARACTERS] if length > MECAB_CHARACTERS or position else text
        nodes = list(tagger(part))
        if position + len(part) < length and len(nodes) > 1:
            nodes.pop()
        for node in nodes:
            start = text.index(node.surface, position)
            position = start + len(node.surface)
            spans.append((start, position))
            if kind == "inflected":
                pos, detail = node.feature_raw.split(",", 2)[:2]
                kinds.append((pos, detail))
        skipped = BLANK.match(text, position).end()  # type: ignore[union-attr]
        if not nodes and skipped == position:
            break
        position = skipped
    return spans if kind == "morphemes" else _join(text, spans, kinds)


def _join(text: str, spans: list[Span], kinds: list[tuple[str, str]]) -> list[Span]:
    """Spans in which a form that inflects has taken in the auxiliaries and the te that touch its end."""
    joined: list[Span] = []
    before = ""
    for (start, end), kind in zip(spans, kinds, strict=True):
        continues = kind[0] == "助動詞" or (kind == CONJUNCTIVE and text[start:end] in ("て", "で"))
        if continues and before in INFLECTS and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
        before = kind[0]
    return joined


@lru_cache(maxsize=1 << 16)
def _stands_alone(char: str) -> bool:
    """Whether NFKC can never move or join `char` with what stands before it, as far as its own combining class tells."""
    return unicodedata.combining(unicodedata.normalize("NFKD", char)[0]) == 0


def normalise(text: str) -> tuple[str, list[int], list[int]]:
    """NFKC of `text`, and for each of its characters where the original characters it came from start and end."""
    nfkc = unicodedata.normalize
    whole = nfkc("NFKC", text)
    if whole == text:
        return text, list(range(len(text))), list(range(1, len(text) + 1))
    groups: list[tuple[int, int, str]] = []
    for index, char in enumerate(text):
        normal = char if char.isascii() else nfkc("NFKC", char)
        if groups and not char.isascii():
            start, _, so_far = groups[-1]
            # Hangul jamo and some Indic vowels join what is before them although their combining class is 0.
            joined = nfkc("NFKC", text[start : index + 1])
            if not _stands_alone(char) or joined != so_far + normal:
                groups[-1] = (start, index + 1, joined)
                continue
        groups.append((index, index + 1, normal))
    starts: list[int] = []
    ends: list[int] = []
    for start, end, normal in groups:
        if normal == text[start:end]:
            starts += range(start, end)
            ends += range(start + 1, end + 1)
        else:
            starts += [start] * len(normal)
            ends += [end] * len(normal)
    if len(starts) != len(whole):  # never seen: ids stay right and every piece then spans the whole text
        return whole, [0] * len(whole), [len(text)] * len(whole)
    return whole, starts, ends


class JapaneseTokenizer(Tokenizer):
    """MeCab words, then WordPiece. `kind` is "morphemes" (what transformers does) or "inflected"."""

    language = "ja"
    is_japanese = True

    def __init__(self, files: dict[str, bytes], config: dict[str, Any], backend: Any) -> None:
        super().__init__(files, config, backend)
        mecab = dict(config.get("mecab_kwargs") or {})
        self.kind: str = config.get(WORDS_SETTING, "morphemes")
        if self.kind not in WORD_KINDS:
            raise TokenizerError(
                f"{WORDS_SETTING} is {self.kind!r} in tokenizer_config.json; known are {', '.join(WORD_KINDS)}"
            )
        self._dictionary, self._option = mecab.get("mecab_dic", "unidic_lite"), mecab.get("mecab_option")
        self._normalise = mecab.get("normalize_text", True)
        self._lower = bool(config.get("do_lower_case", False))
        self._tagger = mecab_tagger(self._dictionary, self._option)
        self._cache: dict[str, tuple[list[int], list[Span]]] = {}
        names = sorted((name for name in self.specials), key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def save(self, folder: str | Path) -> None:
        """As `Tokenizer.save`; transformers' BertJapaneseTokenizer gives segments only where its files ask for them."""
        super().save(folder)
        if "model_input_names" not in self.config:
            config = {**self.config, "model_input_names": MODEL_INPUTS}
            text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
            write_whole(Path(folder) / "tokenizer_config.json", text.encode())

    def settings(self) -> dict[str, Any]:
        return {
            "words": self.kind,
            "mecab": [self._dictionary, self._option],
            "nfkc": self._normalise,
            "lowercase": self._lower,
        }

    def _pieces_of(self, word: str) -> tuple[list[int], list[Span]]:
        """Ids of a word's pieces and their characters in it."""
        if (known := self._cache.get(word)) is not None:
            return known
        lowered = word.lower() if self._lower and word not in self.specials else word
        ids: list[int] = []
        spans: list[Span] = []
        end = 0
        for part in lowered.split():
            start = lowered.index(part, end)
            end = start + len(part)
            at = start
            for token in self._backend.model.tokenize(part):
                size = end - at if token.id == self.unk_id else len(token.value) - len(CONTINUES) * (at > start)
                ids.append(token.id)
                spans.append((at, at + size))
                at += size
        if len(lowered) != len(word):  # a capital whose small letter is two characters
            owner = [index for index, char in enumerate(word) for _ in char.lower()]
            spans = [(owner[start], owner[stop - 1] + 1) for start, stop in spans]
        if len(self._cache) >= CACHED_WORDS:
            self._cache.clear()
        self._cache[word] = ids, spans
        return ids, spans

    def encode(self, text: str, *, specials: bool = False) -> Encoding:
        encoding = Encoding()
        shift = 0
        for part in self._special_pattern.split(text) if specials else [text]:
            if specials and part in self.specials:
                self._append(encoding, [self.specials[part]], [(shift, shift + len(part))])
            else:
                self._encode_into(encoding, part, shift)
            shift += len(part)
        return encoding

    def _encode_into(self, encoding: Encoding, text: str, shift: int) -> None:
        normal, starts, ends = normalise(text) if self._normalise else (text, range(len(text)), range(1, len(text) + 1))
        for start, end in word_spans(self._tagger, normal, self.kind):
            ids, spans = self._pieces_of(normal[start:end])
            self._append(encoding, ids, [(starts[start + a] + shift, ends[start + b - 1] + shift) for a, b in spans])

    @staticmethod
    def _append(encoding: Encoding, ids: list[int], offsets: list[Span]) -> None:
        word = encoding.words[-1] + 1 if encoding.words else 0
        encoding.ids += ids
        encoding.offsets += offsets
        encoding.words += [word] * len(ids)

    def encode_batch(self, texts: Sequence[str], *, specials: bool = False, workers: int = 1) -> list[Encoding]:
        if workers <= 1 or len(texts) <= TASK_TEXTS:
            return [self.encode(text, specials=specials) for text in texts]
        from bertfast.data.workers import Workers

        with Workers(workers, self.files) as pool:
            tasks = ([*texts[at : at + TASK_TEXTS]] for at in range(0, len(texts), TASK_TEXTS))
            return [
                encoding for batch in pool.map(encode_texts, ((task, specials) for task in tasks)) for encoding in batch
            ]

    def encode_words(self, words: Sequence[str]) -> Encoding:
        encoding = Encoding()
        for index, word in enumerate(words):
            own = self.encode(word)
            encoding.ids += own.ids
            encoding.offsets += own.offsets
            encoding.words += [index] * len(own.ids)
        return encoding

    def ids_batch(self, texts: Sequence[str]) -> list[list[int]]:
        pieces: Callable[[str], tuple[list[int], list[Span]]] = self._pieces_of
        return [[index for word in self._raw_words(text) for index in pieces(word)[0]] for text in texts]

    def _raw_words(self, text: str) -> list[str]:
        normal = unicodedata.normalize("NFKC", text) if self._normalise else text
        return [normal[start:end] for start, end in word_spans(self._tagger, normal, self.kind)]

    def words(self, text: str) -> list[str]:
        words = self._raw_words(text)
        return [word.lower() for word in words] if self._lower else words


def encode_texts(tokenizer: Tokenizer, task: tuple[list[str], bool]) -> list[Encoding]:
    """What a worker process does with one message of `encode_batch`."""
    return tokenizer.encode_batch(task[0], specials=task[1])


def japanese_backend(vocab: dict[str, int], config: dict[str, Any]) -> Any:
    """WordPiece in words that are given apart."""
    import tokenizers
    from tokenizers import models

    unknown = config.get("unk_token") or SPECIAL_ROLES["unk"]
    unknown = unknown["content"] if isinstance(unknown, dict) else unknown
    return tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown))


def japanese_tokenizer(folder: Path, files: dict[str, bytes], config: dict[str, Any]) -> JapaneseTokenizer:
    """The tokenizer of a folder of BertJapaneseTokenizer. TokenizerError where its words or pieces are of another kind."""
    wanted = {"word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece"}
    usual = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
    for key, value in wanted.items():
        if (given := config.get(key, usual[key])) != value:
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: {key} is {given!r}; Japanese is read with {key} {value!r}"
            )
    if "vocab.txt" not in files:
        raise TokenizerError(f"{folder} has no vocab.txt, which holds the pieces of a Japanese tokenizer")
    vocab = vocabulary(files["vocab.txt"], str(folder / "vocab.txt"))
    return JapaneseTokenizer(files, config, japanese_backend(vocab, config))
