"""Masked words filled in: the likeliest pieces at every [MASK] of a text, in English or Japanese."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertfast import models
from bertfast.models.loading import weight_shapes
from bertfast.tasks.features import assemble
from bertfast.tasks.lines import DataError, check_text
from bertfast.tasks.loader import make_batch
from bertfast.tasks.problem import matching_tokenizer

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

_HEAD = "cls.predictions."


@dataclass(frozen=True)
class Guess:
    """A piece for one mask, its probability there (the other masks unseen), and the text with it in place."""

    piece: str
    probability: float
    text: str


def load_masked_lm(folder: Path) -> tuple[Any, "Tokenizer"]:
    """A model with a masked-LM head, and its tokenizer.

    Raises:
        DataError: the folder's weights have no such head (it would be filled with random numbers).
        FileNotFoundError, ValueError: as `from_pretrained` and `matching_tokenizer`.
    """
    config = models.BertConfig.from_pretrained(folder)
    if not any(name.startswith(_HEAD) for name in weight_shapes(folder)):
        names = config.extra.get("architectures") or ["a model"]
        raise DataError(
            f"{folder}: {names[0]} has no masked-LM head ({_HEAD}*), so it cannot fill masks; name a BertForPreTraining or "
            "BertForMaskedLM, such as `bertfast pretrain` makes"
        )
    tokenizer = matching_tokenizer(folder, config.vocab_size)
    return models.BertForMaskedLM.from_pretrained(folder), tokenizer


def fill_masks(model: Any, tokenizer: "Tokenizer", text: str, top: int = 5) -> list[list[Guess]]:
    """The `top` likeliest pieces of every mask in `text`, best first; special tokens are never guessed.

    Raises:
        DataError: the text has no mask, no text, bytes that are no UTF-8, or more pieces than the model has positions.
    """
    check_text("TEXT", text)
    mask = tokenizer.tokens([tokenizer.mask_id])[0]
    encoding = tokenizer.encode(text, specials=True)
    feature = assemble(tokenizer, encoding.ids)
    places = [i for i, piece in enumerate(encoding.ids) if piece == tokenizer.mask_id]
    if not places:
        raise DataError(f"the text has no {mask}: write {mask} where a word is to be filled in")
    if len(feature) > model.config.max_position_embeddings:
        raise DataError(
            f"the text has {len(feature)} pieces with [CLS] and [SEP], the model {model.config.max_position_embeddings} "
            "positions; shorten the text"
        )
    batch = make_batch([feature], "packed", tokenizer.pad_id)
    with torch.no_grad():
        logits = model(**batch.inputs()).logits[torch.tensor(places) + 1].float()
    if not logits.isfinite().all():
        raise DataError(
            "the model's output is not finite (NaN or infinite): its weights are broken, take an earlier checkpoint"
        )
    special = torch.from_numpy(tokenizer.special)[: logits.shape[1]]
    logits[:, : len(special)].masked_fill_(special, -torch.inf)
    best = logits.softmax(-1).topk(min(top, logits.shape[1] - int(special.sum())))
    return [
        [
            Guess(piece, share, _filled(text, encoding.offsets[place], piece))
            for piece, share in zip(tokenizer.tokens(ids), shares, strict=True)
        ]
        for place, ids, shares in zip(places, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _filled(text: str, span: tuple[int, int], piece: str) -> str:
    """The text with a piece in place of the characters of a mask; one that continues a word joins what is before it."""
    before = text[: span[0]]
    if piece.startswith("##") and len(piece) > 2:
        before, piece = before.rstrip(), piece[2:]
    return before + piece + text[span[1] :]
