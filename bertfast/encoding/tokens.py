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
    """A tokenizer of transformers for single texts of at most `max_length` tokens; `lower_case` puts texts into small letters.

    Raises:
        ValueError: `lower_case` for a tokenizer in Python, or token types other than 0, which no model is given here.
    """

    def __init__(self, tokenizer: Any, max_length: int, lower_case: bool) -> None:
        self._tokenizer, self.max_length = tokenizer, max_length
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if lower_case:
            self._put_into_small_letters()
        if any(tokenizer("a").get("token_type_ids") or ()):
            raise ValueError("the tokenizer gives a single text token types other than 0, which no model is given here")
        if self._backend is not None:
            self._backend.no_padding()
            self._backend.enable_truncation(max_length, direction=tokenizer.truncation_side)

    def _put_into_small_letters(self) -> None:
        """As sentence-transformers does it: before the tokenizer's own normalisation, so that special tokens in a text stay."""
        if self._backend is None:
            raise ValueError(
                "do_lower_case is for tokenizers of the library tokenizers, and this one is in Python: leave it out, or set it in "
                "tokenizer_config.json"
            )
        from tokenizers.normalizers import Lowercase, Sequence

        normalizer = self._backend.normalizer
        own = list(normalizer) if isinstance(normalizer, Sequence) else [] if normalizer is None else [normalizer]  # type: ignore[call-overload]
        if not any(isinstance(each, Lowercase) for each in own):
            self._backend.normalizer = Sequence([Lowercase(), *own])

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_token_id or 0

    def __call__(self, texts: Sequence[str]) -> Tokenized:
        """The ids of each text with its special tokens, cut to `max_length`, in order; a text has at least one."""
        tokenized = Tokenized([], 0)
        for begin in range(0, len(texts), _TOGETHER):
            part = list(texts[begin : begin + _TOGETHER])
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

    def of_prompt(self, prompt: str) -> int:
        """How many tokens a prompt takes before a text: without the special one at its end, as sentence-transformers counts."""
        ids = self([prompt]).ids[0].tolist()
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)


def padded(ids: Sequence[Ids], pad_id: int) -> NDArray[np.int64]:
    """[B, S], each text's ids, of B texts, with `pad_id` behind them; S is the longest text's length."""
    filled = np.full((len(ids), max(len(each) for each in ids)), pad_id, np.int64)
    for row, each in zip(filled, ids, strict=True):
        row[: len(each)] = each
    return filled
