"""Texts to ids by a checkpoint's own tokenizer, and ids to padded rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
_TOGETHER = 1024  # texts that are tokenized at once: what the library makes of a token takes a hundred bytes


@dataclass
class Tokenized:
    """Ids of each text with its special tokens, [length] int32, and how many of the texts were cut to fit."""

    ids: list[Ids]
    truncated: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.fromiter((len(ids) for ids in self.ids), np.int64, len(self.ids))


class TextTokenizer:
    """A tokenizer of transformers for single texts of at most `max_length` tokens; `lower_case` puts texts into small letters."""

    def __init__(self, tokenizer: Any, max_length: int, lower_case: bool) -> None:
        self._tokenizer, self.max_length, self._lower_case = tokenizer, max_length, lower_case
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_padding()
            self._backend.enable_truncation(max_length)

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_token_id or 0

    def __call__(self, texts: Sequence[str]) -> Tokenized:
        tokenized = Tokenized([], 0)
        for begin in range(0, len(texts), _TOGETHER):
            part = list(texts[begin : begin + _TOGETHER])
            if self._lower_case:
                part = [text.lower() for text in part]
            self._slowly(part, tokenized) if self._backend is None else self._at_once(part, tokenized)
        return tokenized

    def _at_once(self, texts: list[str], tokenized: Tokenized) -> None:
        for encoding in self._backend.encode_batch_fast(texts):  # type: ignore[union-attr]
            ids = encoding.ids
            tokenized.truncated += len(ids) == self.max_length and bool(encoding.overflowing)
            tokenized.ids.append(self._some(ids))

    def _slowly(self, texts: list[str], tokenized: Tokenized) -> None:
        """A tokenizer in Python, as that of Japanese BERT is."""
        whole = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        cut = self._tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        for before, ids in zip(whole, cut, strict=True):
            tokenized.truncated += len(before) > len(ids)
            tokenized.ids.append(self._some(ids))

    def _some(self, ids: list[int]) -> Ids:
        """The ids; of a text that comes to none, where a tokenizer has no special tokens either, an unknown one."""
        unknown = self._tokenizer.unk_token_id
        return np.asarray(ids or [self.pad_id if unknown is None else unknown], np.int32)

    def special_at_the_end(self) -> int:
        """How many special tokens end a text."""
        ids = self([""]).ids[0].tolist()
        specials = set(self._tokenizer.all_special_ids)
        return 1 if len(ids) > 1 and ids[-1] in specials else 0


def padded(ids: Sequence[Ids], pad_id: int) -> NDArray[np.int64]:
    """[B, S], each text's ids, of B texts, with `pad_id` behind them; S is the longest text's length."""
    filled = np.full((len(ids), max(len(each) for each in ids)), pad_id, np.int64)
    for row, each in zip(filled, ids, strict=True):
        row[: len(each)] = each
    return filled
