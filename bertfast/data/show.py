"""A batch as a person reads it: for every sequence its tokens with position, id, segment, word and what is to be predicted.

Without a corpus there is the worked example 私は学生です / 東京に住んでいます, whose vocabulary is made in memory from its words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bertfast.data.batches import IGNORED, Batch, Sample, collate, pair_input
from bertfast.data.corpus import Corpus, corpus_tokenizer
from bertfast.data.loader import PretrainLoader
from bertfast.data.masking import Masker, MaskOptions, Vocabulary, mask_tokens
from bertfast.data.pairs import PairOptions
from bertfast.data.plan import PretrainDataOptions
from bertfast.data.remarks import pairs_remark
from bertfast.data.tokenizer import SPECIAL_ROLES, Tokenizer, tokenizer_from_files
from bertfast.data.vocab import VocabularyOptions, tokenizer_files

EXAMPLE = ("私は学生です", "東京に住んでいます")
NO_WORD = -1


@dataclass(frozen=True)
class Token:
    """One column of the picture. `word` counts words in the sequence, -1 at special tokens; `target` is what is to be predicted."""

    position: int
    piece: str
    id: int
    segment: int
    word: int
    target: str | None


@dataclass(frozen=True)
class Shown:
    """One sequence of a batch; `first` and `end` are its entries of cu_seqlens; `next_sentence` 0 IsNext, 1 NotNext, else None."""

    tokens: list[Token]
    first: int
    end: int
    next_sentence: int | None


def example_tokenizer(texts: Sequence[str] = EXAMPLE) -> Tokenizer:
    """A Japanese tokenizer in memory whose pieces are the words of `texts`, a verb with its te and auxiliaries one word."""
    options = VocabularyOptions(language="ja", lowercase=False, words="inflected")
    blank = tokenizer_from_files(tokenizer_files(SPECIAL_ROLES.values(), options))
    marks = re.compile("|".join(map(re.escape, SPECIAL_ROLES.values())))
    words = dict.fromkeys(word for text in texts for part in marks.split(text) for word in blank.words(part))
    return tokenizer_from_files(tokenizer_files([*SPECIAL_ROLES.values(), *words], options))


def text_batch(tokenizer: Tokenizer, texts: Sequence[str], *, masked: bool = False, seed: int = 0) -> Batch:
    """A packed batch of texts, two a sequence: `[CLS] A [SEP] B [SEP]`; the last of an odd number is alone.

    Special tokens that are written in a text, such as [MASK], are taken as such. With `masked`, 15 % of the tokens are to be
    predicted, as in pre-training.
    """
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), specials=True)]
    samples = []
    for at in range(0, len(ids), 2):
        second = ids[at + 1] if at + 1 < len(ids) else []
        samples.append(Sample(*pair_input(ids[at], second, tokenizer.cls_id, tokenizer.sep_id)))
    batch = collate(samples)
    if masked:
        masker = Masker(Vocabulary.of(tokenizer), MaskOptions(), batch.max_seqlen)
        names = np.stack([np.arange(len(samples)), np.zeros(len(samples), int)], axis=1)
        assert batch.cu_seqlens is not None
        labels, _ = mask_tokens(batch.input_ids.numpy(), batch.cu_seqlens.numpy(), names, masker, seed, 0)
        batch.labels["labels"] = batch.input_ids.new_tensor(labels)
    return batch


def corpus_batch(
    folder: Path, *, sample: int = 0, tokens: int = 512, length: int = 128, seed: int = 0
) -> tuple[Batch, Tokenizer]:
    """Batch number `sample` of a corpus as pre-training would read it, of about `tokens` tokens, and the corpus' tokenizer.

    CorpusError where the folder is no corpus, ValueError for sizes that do not fit.
    """
    corpus = Corpus.open(folder)
    tokenizer = corpus_tokenizer(corpus)
    options = PretrainDataOptions(seed=seed, token_budget=tokens, pairs=PairOptions(max_seq_length=length))
    batches = iter(PretrainLoader(corpus, tokenizer, options))
    for _ in range(sample):
        next(batches)
    return next(batches), tokenizer


def corpus_remarks(folder: Path, length: int = 128, seed: int = 0) -> list[str]:
    """What should be known of a corpus before it is trained on: from its build, and of the pairs that would be drawn."""
    corpus = Corpus.open(folder)
    pairs = pairs_remark(corpus, PairOptions(max_seq_length=length), seed)
    return [*corpus.manifest.get("remarks", ()), *([pairs] if pairs else [])]


def sequences(batch: Batch, tokenizer: Tokenizer, *, masked: bool = True) -> list[Shown]:
    """The sequences of a packed batch; without `masked`, what was masked is put back and nothing is to be predicted."""
    assert batch.cu_seqlens is not None
    bounds: list[int] = batch.cu_seqlens.tolist()
    ids, segments, positions = batch.input_ids.tolist(), batch.token_type_ids.tolist(), batch.position_ids.tolist()
    labels = batch.labels["labels"].tolist() if "labels" in batch.labels else [IGNORED] * len(ids)
    follows = batch.labels["next_sentence_label"].tolist() if "next_sentence_label" in batch.labels else []
    marks = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id}
    shown = []
    for number, (first, end) in enumerate(pairwise(bounds)):
        if first == end:
            continue
        tokens: list[Token] = []
        word = NO_WORD
        for at in range(first, end):
            true = labels[at] if labels[at] != IGNORED else ids[at]
            # Which pieces make a word is a matter of the text, not of what masking put in its place.
            special = true in marks
            word += not special and not tokenizer.continuation[true]
            index = ids[at] if masked else true
            target = tokenizer.pieces[true] if masked and labels[at] != IGNORED else None
            own = NO_WORD if special else word
            tokens.append(Token(positions[at], tokenizer.pieces[index], index, segments[at], own, target))
        label = follows[number] if number < len(follows) else NO_WORD
        shown.append(Shown(tokens, first, end, label if label in (0, 1) else None))
    return shown
