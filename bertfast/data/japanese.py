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
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from bertfast._extras import install
from bertfast.data.added_tokens import Added, TokenizerError, gather, text_of
from bertfast.data.files import missing_extra, write_whole
from bertfast.data.tokenizer import CONTINUES, MODEL_INPUTS, SPECIAL_ROLES, Encoding, Tokenizer, vocabulary

WORD_KINDS = ("morphemes", "inflected")
WORDS_SETTING = "bertfast_words"  # in tokenizer_config.json; transformers carries it along unread
CACHED_WORDS = 1 << 17  # distinct words whose pieces are kept: 40 MB at most
MECAB_CHARACTERS = 1 << 16  # of a text at a time
BLANK = re.compile(r"[ \t\r\n\v\f\0]*")
TASK_TEXTS = 256  # texts in one message to a worker process
INFLECTS = ("動詞", "形容詞", "助動詞")  # verb, adjective, auxiliary: です after a noun starts a word that た may join
CONJUNCTIVE = ("助詞", "接続助詞")

JSON_KINDS = {dict: "an object", list: "a list", bool: "true or false"}

Span = tuple[int, int]


# What brings each dictionary.
DICTIONARIES = {
    "unidic_lite": install("ja"),
    "unidic": "pip install unidic, then python -m unidic download",
    "ipadic": "pip install ipadic",
}


def mecab_tagger(dictionary: str | None = "unidic_lite", option: str | None = None) -> Any:
    """fugashi's tagger with the options that transformers' MecabTokenizer gives it."""
    try:
        import fugashi
    except ImportError as error:
        raise missing_extra(error, "ja", "Japanese text") from None
    if dictionary is None:
        options = option or ""
    else:
        if dictionary not in DICTIONARIES:
            raise TokenizerError(f"mecab_dic is {dictionary!r}; known are {', '.join(DICTIONARIES)}")
        try:
            folder = importlib.import_module(dictionary).DICDIR
        except ImportError:
            raise ImportError(
                f"Japanese text needs MeCab's dictionary {dictionary}, which is not installed: {DICTIONARIES[dictionary]}"
            ) from None
        options = f'-d "{folder}" -r "{folder}/mecabrc" {option or ""}'
    try:
        return fugashi.GenericTagger(options)
    except RuntimeError as error:
        what = (
            f"the dictionary {dictionary} ({DICTIONARIES[dictionary]})"
            if dictionary
            else "mecab_option in tokenizer_config.json"
        )
        raise TokenizerError(
            f"MeCab cannot begin with the options {options!r} ({' '.join(str(error).split())[:200]}); check {what}"
        ) from None


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
    """MeCab words, then WordPiece or characters. `kind` is "morphemes" (what transformers does) or "inflected"."""

    language = "ja"
    is_japanese = True

    def __init__(self, files: dict[str, bytes], config: dict[str, Any], backend: Any, added: Added) -> None:
        mecab = dict(config.get("mecab_kwargs") or {})
        self.kind: str = config.get(WORDS_SETTING, "morphemes")
        if self.kind not in WORD_KINDS:
            raise TokenizerError(
                f"{WORDS_SETTING} is {self.kind!r} in tokenizer_config.json; known are {', '.join(WORD_KINDS)}"
            )
        self._dictionary, self._option = mecab.get("mecab_dic", "unidic_lite"), mecab.get("mecab_option")
        self._normalise = mecab.get("normalize_text", True)
        self._lower = bool(config.get("do_lower_case", False))
        self._subwords: str = config.get("subword_tokenizer_type", "wordpiece")
        self._never_split = frozenset(config.get("never_split") or ())
        self._tagger = mecab_tagger(self._dictionary, self._option)
        self._tokens = _numbered(backend.get_vocab(), added)
        self._cache: dict[str, tuple[list[int], list[Span]]] = {}
        super().__init__(files, config, backend, added)

    def _index(self) -> None:
        super()._index()
        self._cache.clear()
        self._as_is = self._never_split | self._listed
        added = {token.content: token for token in self._tokens.values()}
        self._splits = {True: _Split(added), False: _Split({t: a for t, a in added.items() if t not in self.specials})}

    def _all_pieces(self) -> dict[str, int]:
        return self._backend.get_vocab() | {token.content: index for index, token in self._tokens.items()}

    def _added(self) -> dict[int, Any]:
        return dict(self._tokens)

    def _add(self, tokens: list[Any]) -> None:
        for token in tokens:
            self._tokens[self.vocab.setdefault(token.content, max(self.vocab.values()) + 1)] = token

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
            **({} if self._subwords == "wordpiece" else {"subwords": self._subwords}),
        }

    def _pieces_of(self, word: str) -> tuple[list[int], list[Span]]:
        """Ids of a word's pieces and their characters in it."""
        if (known := self._cache.get(word)) is not None:
            return known
        lowered = word.lower() if self._lower and word not in self._as_is else word
        cut = self._characters if self._subwords == "character" else self._word_pieces
        ids, spans = cut(lowered)
        if len(lowered) != len(word):  # a capital whose small letter is two characters
            owner = [index for index, char in enumerate(word) for _ in char.lower()]
            spans = [(owner[start], owner[stop - 1] + 1) for start, stop in spans]
        if len(self._cache) >= CACHED_WORDS:
            self._cache.clear()
        self._cache[word] = ids, spans
        return ids, spans

    def _characters(self, word: str) -> tuple[list[int], list[Span]]:
        """A piece for each character of the word in NFKC, which transformers' class applies here whatever it does before."""
        normal, starts, ends = normalise(word)
        known = self._backend.token_to_id
        ids = [self.unk_id if (index := known(char)) is None else index for char in normal]
        return ids, list(zip(starts, ends, strict=True))

    def _word_pieces(self, lowered: str) -> tuple[list[int], list[Span]]:
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
        return ids, spans

    def encode(self, text: str, *, specials: bool = False) -> Encoding:
        encoding = Encoding()
        for places, part, is_token in self._splits[specials](text):
            if is_token:
                self._append(encoding, [self.vocab[part]], [(places[0], places[-1] + 1)])
            else:
                self._encode_into(encoding, part, places)
        return encoding

    def _encode_into(self, encoding: Encoding, text: str, places: Sequence[int]) -> None:
        """Appends the pieces of a part of the text, whose characters stand at `places` of the whole."""
        normal, starts, ends = normalise(text) if self._normalise else (text, range(len(text)), range(1, len(text) + 1))
        for start, end in word_spans(self._tagger, normal, self.kind):
            ids, spans = self._pieces_of(normal[start:end])
            offsets = [(places[starts[start + a]], places[ends[start + b - 1] - 1] + 1) for a, b in spans]
            self._append(encoding, ids, offsets)

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
        return [self._ids(text) for text in texts]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for _, part, is_token in self._splits[False](text):
            if is_token:
                ids.append(self.vocab[part])
            else:
                for word in self._raw_words(part):
                    ids += self._pieces_of(word)[0]
        return ids

    def _raw_words(self, text: str) -> list[str]:
        normal = unicodedata.normalize("NFKC", text) if self._normalise else text
        return [normal[start:end] for start, end in word_spans(self._tagger, normal, self.kind)]

    def words(self, text: str) -> list[str]:
        words = self._raw_words(text)
        return [word.lower() for word in words] if self._lower else words


def encode_texts(tokenizer: Tokenizer, task: tuple[list[str], bool]) -> list[Encoding]:
    """What a worker process does with one message of `encode_batch`."""
    return tokenizer.encode_batch(task[0], specials=task[1])


class _Split:
    """Parts a text at added tokens as transformers' Python tokenizers do: (characters, text, whether that is a token) of each part.

    The characters are places in the whole text: a range, but where a single_word token that strips space joins what it touches.
    """

    def __init__(self, tokens: dict[str, Any]) -> None:
        self._tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None

    def __call__(self, text: str) -> list[tuple[Sequence[int], str, bool]]:
        spans = [] if self._pattern is None else [match.span() for match in self._pattern.finditer(text)]
        if not spans:
            return [(range(len(text)), text, False)]
        bounds = sorted({0, len(text), *(place for span in spans for place in span)})
        parts: list[Sequence[int]] = [range(start, end) for start, end in pairwise(bounds)]
        for index in range(len(parts)):
            self._heed_flags(text, parts, index)
        words = [_read(text, part) for part in parts]
        return [(part, word, word in self._tokens) for part, word in zip(parts, words, strict=True) if word]

    def _heed_flags(self, text: str, parts: list[Sequence[int]], index: int) -> None:
        """lstrip and rstrip take white space from the text beside; single_word gives the token to the text that it touches."""
        token = self._tokens.get(_read(text, parts[index]))
        if token is None:
            return
        left = _read(text, parts[index - 1]) if index else ""
        right = _read(text, parts[index + 1]) if index + 1 < len(parts) else ""
        if token.rstrip and right:
            parts[index + 1] = parts[index + 1][len(right) - len(right.lstrip()) :]
        if token.lstrip and left:
            parts[index - 1] = parts[index - 1][: len(left.rstrip())]
        if token.single_word and left and left[-1] != " ":
            parts[index - 1], parts[index] = [*parts[index - 1], *parts[index]], ()
        elif token.single_word and right and right[0] != " ":
            parts[index + 1], parts[index] = [*parts[index], *parts[index + 1]], ()


def _read(text: str, places: Sequence[int]) -> str:
    return text[places.start : places.stop] if isinstance(places, range) else "".join(text[place] for place in places)


def _numbered(vocab: dict[str, int], added: Added) -> dict[int, Any]:
    """The added tokens by id as transformers' Python tokenizers number them: as stated, the others at the vocabulary's end."""
    from tokenizers import AddedToken

    tokens = dict(added.stated)
    contents = {token.content for token in tokens.values()}
    known = {**vocab, **{token.content: index for index, token in tokens.items()}}
    roles = {f"{role}_token" for role in SPECIAL_ROLES}
    ordered = [(name, added.named[name]) for name in sorted(added.named, key=list(added.named).index)]
    for name, token in [*ordered, *(("", token) for token in added.extra)]:
        content = text_of(token)
        if content in contents or (name in roles and content not in known):
            continue  # a role that no file has is refused with all that is known of it
        contents.add(content)
        index = known.setdefault(content, len(known))
        tokens[index] = AddedToken(content, special=True) if isinstance(token, str) else token
    return tokens


def japanese_backend(vocab: dict[str, int], unknown: str) -> Any:
    """WordPiece in words that are given apart."""
    import tokenizers
    from tokenizers import models

    return tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown))


def japanese_tokenizer(folder: Path, files: dict[str, bytes], parsed: dict[str, dict[str, Any]]) -> JapaneseTokenizer:
    """The tokenizer of a folder of BertJapaneseTokenizer. TokenizerError where its words or pieces are of another kind."""
    config, where = parsed["tokenizer_config.json"], folder / "tokenizer_config.json"
    known = {"word_tokenizer_type": ("mecab",), "subword_tokenizer_type": ("wordpiece", "character")}
    usual = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
    for key, values in known.items():
        if (value := config.get(key, usual[key])) not in values:
            raise TokenizerError(
                f"{where}: {key} is {value!r}; Japanese is read with {key} {' or '.join(map(repr, values))}"
            )
    for key in ("do_word_tokenize", "do_subword_tokenize"):
        if config.get(key, True) is not True:
            raise TokenizerError(f"{where}: {key} is {config[key]!r}; Japanese is read with both words and pieces")
    for key, kind in (("mecab_kwargs", dict), ("never_split", list), ("do_lower_case", bool)):
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise TokenizerError(f"{where}: {key} is {config[key]!r} where {JSON_KINDS[kind]} is due")
    if "vocab.txt" not in files:
        raise TokenizerError(f"{folder} has no vocab.txt, which holds the pieces of a Japanese tokenizer")
    vocab = vocabulary(files["vocab.txt"], str(folder / "vocab.txt"))
    added = gather({f"{role}_token": token for role, token in SPECIAL_ROLES.items()} | config, parsed)
    return JapaneseTokenizer(files, config, japanese_backend(vocab, text_of(added.named["unk_token"])), added)
