"""Texts to batches of equal lengths: tokenized many at a time without padding, sorted by their tokens, as many in a batch as keep
the threads busy.

sentence-transformers sorts by characters and pads 32 texts at a time: a fifth to a half of what it then computes is padding,
each batch is tokenized on its own, and short texts make batches too small for many threads.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer

from bertfast.data.packing import of_like_length

TEXTS_AT_ONCE = 8192  # tokenized together: memory for their ids, in Python's lists at first
TOKENS_PER_THREAD = 1024  # of a batch: fewer keep a core less busy, more leave its second-level cache
_INPUTS = {"input_ids", "token_type_ids", "attention_mask"}
_TEXT_OPTIONS = {"max_length", "truncation", "add_special_tokens"}
_ARGUMENTS = {"task", "processing_kwargs"}  # of `encode`, besides those of the library's own loop
_LIBRARY = "sentence_transformers."


class Batch(NamedTuple):
    """
    Attributes:
        rows: [B] int64, places of the texts among the inputs.
        features: what the library's own `preprocess` returns: ids and mask [B, S] int64, and what it says of the texts.
    """

    rows: torch.Tensor
    features: dict[str, Any]


class Unpadded(NamedTuple):
    """Texts as ids without padding.

    Attributes:
        rows: [N] int64, places of the texts among the inputs.
        lengths: [N] int64, tokens of each.
        columns: the tokens of all texts, one after the other, by name: ids, and token types where the tokenizer gives them.
        rest: what else `preprocess` said.
    """

    rows: NDArray[np.int64]
    lengths: NDArray[np.int64]
    columns: dict[str, NDArray[np.int64]]
    rest: dict[str, Any]


def is_text(sample: Any) -> bool:
    """Whether an input is a text or a pair of texts."""
    if isinstance(sample, str):
        return True
    return type(sample) in (list, tuple) and len(sample) == 2 and all(isinstance(part, str) for part in sample)


def model_reason(model: Any) -> str | None:
    """Why a SentenceTransformer or CrossEncoder keeps the library's own batches, whatever the call."""
    first = model[0]
    if type(first) is not Transformer or "preprocess" in first.__dict__:
        return f"its first module is {type(first).__name__}, or has a preprocess of its own"
    if first.backend != "torch" or first.can_flatten_inputs or first.query_expansion is not None:
        return "its first module flattens or expands its inputs, or is not of torch"
    if set(first.modality_config) != {"text"}:
        return "it takes more than texts"
    for module in model:
        if not type(module).__module__.startswith(_LIBRARY):
            return f"{type(module).__name__} is not a module of sentence-transformers, and may look at whole batches"
    tokenizer = first.tokenizer
    if tokenizer is not first.processor or not set(tokenizer.model_input_names) <= _INPUTS:
        return "its processor is no tokenizer, or makes other inputs than ids, token types and a mask"
    if tokenizer.padding_side != "right" or tokenizer.pad_token_id is None:
        return "its tokenizer does not pad on the right"
    return None


def call_reason(model: Any, inputs: list[Any], arguments: dict[str, Any]) -> str | None:
    """Why this call keeps the library's own batches; arguments: those that the library's loop does not name."""
    unknown = [name for name, value in arguments.items() if name not in _ARGUMENTS and value is not None]
    if unknown:
        return f"{unknown[0]} was given"
    for given in (model[0].processing_kwargs, arguments.get("processing_kwargs") or {}):
        options = {name for name, value in given.items() if value}
        if options - {"text"} or set(given.get("text") or {}) - _TEXT_OPTIONS:
            return "processing_kwargs ask for more than a length"
    if not inputs:
        return "there are no inputs"
    return None if all(map(is_text, inputs)) else "some input is neither a text nor a pair of texts"


def batches(model: Any, inputs: list[Any], batch_size: int, arguments: dict[str, Any]) -> Iterator[Batch]:
    """All inputs, longest first; arguments: what the library's loop gives to `preprocess`.

    A batch holds no more tokens, padding included, than the library's own of the longest `batch_size` texts, so that it takes no
    more memory.
    """
    characters = [len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in inputs]
    order = np.argsort(-np.array(characters), kind="stable")
    tokens = TOKENS_PER_THREAD * torch.get_num_threads()
    longest = 0
    for begin in range(0, len(order), TEXTS_AT_ONCE):
        texts = tokenized(model[0], inputs, order[begin : begin + TEXTS_AT_ONCE], arguments)
        longest = max(longest, int(texts.lengths.max()))
        yield from _cut(texts, min(tokens, batch_size * longest), model[0].tokenizer)


def tokenized(first: Any, inputs: list[Any], rows: NDArray[np.int64], arguments: dict[str, Any]) -> Unpadded:
    """The inputs of these rows by the library's own `preprocess`, which is asked not to pad."""
    given = arguments.get("processing_kwargs") or {}
    text = {**(given.get("text") or {}), "padding": False, "return_attention_mask": False}
    options = {**arguments, "processing_kwargs": {"text": text, "common": {"return_tensors": None}}}
    encoded = dict(first.preprocess([inputs[row] for row in rows], **options))
    lists = {name: encoded.pop(name) for name in ("input_ids", "token_type_ids") if name in encoded}
    lengths = np.fromiter(map(len, lists["input_ids"]), np.int64, len(rows))
    total = int(lengths.sum())
    columns = {name: np.fromiter(chain.from_iterable(values), np.int64, total) for name, values in lists.items()}
    return Unpadded(rows, lengths, columns, encoded)


def _cut(texts: Unpadded, tokens: int, tokenizer: Any) -> Iterator[Batch]:
    """Batches of at most so many tokens, or of one text, longest first."""
    begins = np.cumsum(texts.lengths) - texts.lengths
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    for rows in of_like_length(texts.lengths, tokens):
        # A text of no tokens is all padding, as in the library's batches.
        length = max(1, int(texts.lengths[rows[0]]))
        real = np.arange(length) < texts.lengths[rows, None]
        source = (begins[rows, None] + np.arange(length))[real]
        features: dict[str, Any] = {"attention_mask": torch.from_numpy(real.astype(np.int64))}
        for name, values in texts.columns.items():
            padded = np.full(real.shape, padding[name], np.int64)
            padded[real] = values[source]
            features[name] = torch.from_numpy(padded)
        yield Batch(torch.from_numpy(texts.rows[rows]), {**features, **texts.rest})
