"""Trains a WordPiece vocabulary with `tokenizers`, the same one each time.

Words are counted here, by the normaliser and word splitter that will read the text later (MeCab for Japanese). The trainer of
`tokenizers` numbers characters in the order of a hash table that differs from process to process, and breaks ties by those
numbers; so it is given every character, first in a word and continuing one, in an order of our own, and words with a character
outside the alphabet not at all: they will be [UNK] anyway.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.data.files import missing_extra, write_whole
from bertfast.data.japanese import WORD_KINDS, WORDS_SETTING
from bertfast.data.lines import BadLine, Item
from bertfast.data.remarks import count_kana, japanese_remark, looks_japanese
from bertfast.data.sentences import SPLITTERS, split_sentences
from bertfast.data.tokenizer import (
    CONTINUES,
    LONGEST_WORD,
    MODEL_INPUTS,
    SPECIAL_ROLES,
    VOCABULARY_FILES,
    Tokenizer,
    bert_backend,
    tokenizer_from_files,
)
from bertfast.data.workers import Workers

TASK_ITEMS = 64  # documents for a worker at a time
REPEATS = 10_000  # of a word in one text for the trainer
ALPHABETS = {"en": 1000, "ja": 6000}


class VocabularyError(ValueError):
    """A vocabulary that cannot be made as asked."""


@dataclass(frozen=True)
class VocabularyOptions:
    """What decides a vocabulary, besides the text.

    Attributes:
        size: pieces, the 5 special tokens and the alphabet included; fewer where the text has no more.
        language: "en" or "ja".
        lowercase: whether text is lower-cased, and for English loses its accents.
        min_frequency: how often a pair must occur to become a piece.
        limit_alphabet: characters kept, the most frequent ones; None: 1,000 for English, 6,000 for Japanese, but never more than
            a third of `size`, because a character may need two pieces.
        words: "morphemes" or "inflected", Japanese only; transformers knows the first alone.
        special_tokens: a user's own, within `size`; they are no words of the text.
    """

    size: int = 8000
    language: str = "en"
    lowercase: bool = True
    min_frequency: int = 2
    limit_alphabet: int | None = None
    words: str = "morphemes"
    special_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("language", tuple(SPLITTERS)), ("words", WORD_KINDS)):
            if (value := getattr(self, name)) not in known:
                raise VocabularyError(f"{name} is {value!r}; known are {', '.join(known)}")
        if self.words != "morphemes" and self.language != "ja":
            raise VocabularyError(f"words {self.words!r} is for Japanese; this language is {self.language!r}")
        for name in ("size", "min_frequency", "limit_alphabet"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise VocabularyError(f"{name} is {value}; it must be at least 1")

    @property
    def alphabet(self) -> int:
        return self.limit_alphabet or max(1, min(ALPHABETS[self.language], self.size // 3))


def tokenizer_files(pieces: Iterable[str], options: VocabularyOptions) -> dict[str, bytes]:
    """Files of a tokenizer with these pieces, as transformers' AutoTokenizer reads them."""
    config: dict[str, Any] = {f"{role}_token": name for role, name in SPECIAL_ROLES.items()}
    config |= {"do_lower_case": options.lowercase, "model_max_length": 512}
    pieces = list(pieces)
    files = {"vocab.txt": "".join(piece + "\n" for piece in pieces).encode()}
    if options.language == "ja":
        config |= {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
        config |= {"subword_tokenizer_type": "wordpiece", "mecab_kwargs": {"mecab_dic": "unidic_lite"}}
        config["model_input_names"] = MODEL_INPUTS  # without it transformers' class gives no segments
        if options.words != "morphemes":
            config[WORDS_SETTING] = options.words
    else:
        config |= {"tokenizer_class": "BertTokenizer", "strip_accents": None, "tokenize_chinese_chars": True}
        backend = bert_backend({piece: index for index, piece in enumerate(pieces)}, config)
        backend.add_special_tokens(list(SPECIAL_ROLES.values()))
        files["tokenizer.json"] = _with_template(backend).to_str(pretty=True).encode()
    files["tokenizer_config.json"] = (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode()
    return files


def _with_template(backend: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    start, end = SPECIAL_ROLES["cls"], SPECIAL_ROLES["sep"]
    backend.post_processor = TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in (start, end)],
    )
    return backend


def _with_specials(files: dict[str, bytes], folder: Path, options: VocabularyOptions) -> Tokenizer:
    tokenizer = tokenizer_from_files(files, folder)
    if options.special_tokens:
        tokenizer.add_special_tokens(options.special_tokens)
    return tokenizer


def count_words(tokenizer: Tokenizer, task: tuple[list[Item], bool]) -> Counter[str]:
    """What a worker process does with some documents: how often each word occurs."""
    items, split = task
    counts: Counter[str] = Counter()
    own = [tokenizer.pieces[index] for index in np.flatnonzero(tokenizer.user_special)]
    for item in items:
        if isinstance(item, BadLine):
            continue
        for line in item.lines:
            for token in own:
                line = line.replace(token, " ")
            for sentence in split_sentences(line, tokenizer.language) if split else [line]:
                counts.update(tokenizer.words(sentence))
    return counts


def _language_remark(counts: Counter[str]) -> str | None:
    """Where words that were counted as English are Japanese."""
    characters = sum(len(word) * count for word, count in counts.items())
    kana = sum(count_kana(word) * count for word, count in counts.items())
    return japanese_remark(kana, characters, "give --language ja") if looks_japanese(kana, characters) else None


def _tasks(source: Iterable[Item], split: bool, on_item: Callable[[Item], None]) -> Iterator[tuple[list[Item], bool]]:
    stream = iter(source)
    while items := list(islice(stream, TASK_ITEMS)):
        for item in items:
            on_item(item)
        yield items, split


def train_pieces(words: Counter[str], options: VocabularyOptions) -> list[str]:
    """Pieces in the order of their ids, the special tokens first.

    Raises:
        VocabularyError: without words, or where the alphabet alone needs more than `size` pieces.
    """
    try:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, pre_tokenizers, trainers
    except ImportError as error:
        raise missing_extra(error, "data", "training a vocabulary") from None
    if not words:
        raise VocabularyError("the text has no words; check the source and its format")
    words = Counter({word: count for word, count in words.items() if len(word) <= LONGEST_WORD})
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            characters[char] += count
    alphabet = set(sorted(characters, key=lambda char: (-characters[char], char))[: options.alphabet])
    kept = {word: count for word, count in words.items() if alphabet.issuperset(word)}
    # Every character may begin a word of another text; only those that were seen inside one continue a word.
    continuing = sorted({CONTINUES + char for word in kept for char in word[1:]})
    given = [*SPECIAL_ROLES.values(), *sorted(alphabet), *continuing]
    size = options.size - len(options.special_tokens)
    if len(given) > size:
        raise VocabularyError(
            f"size {options.size} is too small: special tokens and {len(alphabet)} characters need "
            f"{len(given) + len(options.special_tokens)} pieces; "
            f"choose a larger size, or a smaller limit_alphabet"
        )
    backend = Backend(models.WordPiece(unk_token=SPECIAL_ROLES["unk"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=options.min_frequency,
        special_tokens=given,
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    backend.train_from_iterator(_repeated(kept), trainer)
    vocab = backend.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def _repeated(words: dict[str, int]) -> Iterator[str]:
    """Texts with each word as often as it was counted: the trainer takes no counts."""
    for word in sorted(words):
        for done in range(0, words[word], REPEATS):
            yield " ".join([word] * min(REPEATS, words[word] - done))


def train_vocabulary(
    source: Iterable[Item],
    out: Path,
    options: VocabularyOptions,
    *,
    split: bool,
    workers: int = 1,
    on_item: Callable[[Item], None] = lambda item: None,
) -> Tokenizer:
    """Trains on the documents of `source`, writes the tokenizer's folder `out`, and returns the tokenizer.

    `split` says that lines are paragraphs. `on_item` sees each document and each bad line, which is left out.
    Raises VocabularyError as `train_pieces` does, and where `out` holds another tokenizer or something else.
    """
    if out.is_dir() and any(out.iterdir()) and not any((out / name).is_file() for name in VOCABULARY_FILES):
        raise VocabularyError(
            f"{out} is not empty and no tokenizer's folder; name a folder that is empty or not there yet"
        )
    blank = _with_specials(tokenizer_files(SPECIAL_ROLES.values(), options), out, options)
    counts: Counter[str] = Counter()
    bad: list[BadLine] = []

    def on_each(item: Item) -> None:
        if isinstance(item, BadLine) and not bad:
            bad.append(item)
        on_item(item)

    with Workers(workers, blank.files, blank) as pool:
        for part in pool.map(count_words, _tasks(source, split, on_each)):
            counts.update(part)
    if bad and not counts:
        raise VocabularyError(
            f"the text has no words: no line of it could be read, the first is {bad[0].where}: {bad[0].reason} ({bad[0].detail}); "
            "check the source and its format"
        )
    if options.language == "en" and (remark := _language_remark(counts)):
        warnings.warn(remark, stacklevel=2)
    made = _with_specials(tokenizer_files(train_pieces(counts, options), options), out, options)
    files = made.files
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if (out / name).exists() and (out / name).read_bytes() != content:
            raise VocabularyError(
                f"{out} holds another tokenizer ({name} differs); choose another folder, or remove that one"
            )
    for name, content in files.items():
        write_whole(out / name, content)
    return made
