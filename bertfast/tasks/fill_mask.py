"""Masked words filled in: the likeliest pieces at every [MASK] of a text, in English or Japanese."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertfast import models
from bertfast.tasks import pretraining_head
from bertfast.tasks.features import Feature, assemble
from bertfast.tasks.inference import Arriving
from bertfast.tasks.lines import DataError, check_text
from bertfast.tasks.loader import make_batch

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

_HEAD = "cls.predictions."


@dataclass(frozen=True)
class Guess:
    """A piece for one mask, its probability there (the other masks unseen), and the text with it in place."""

    piece: str
    probability: float
    text: str


def load_masked_lm(folder: Path, device: str | torch.device = "auto") -> tuple[Any, "Tokenizer"]:
    """A model with a masked-LM head, and its tokenizer; arguments and errors are those of `pretraining_head.load`."""
    lacks = (
        f"masked-LM head ({_HEAD}*), so it cannot fill masks; name a BertForPreTraining or BertForMaskedLM, such as "
        "`bertfast pretrain` makes"
    )
    return pretraining_head.load(folder, device, models.BertForMaskedLM, _HEAD, lacks)


def fill_masks(model: Any, tokenizer: "Tokenizer", text: str, top: int = 5) -> list[list[Guess]]:
    """The `top` likeliest pieces of every mask in `text`, best first; special tokens are never guessed.

    It is computed where the model is, and what is shown comes from there in one copy.

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
    rows = _best(model, feature, np.asarray(places) + 1, tokenizer, top)  # [CLS] stands before the text
    return [
        [
            Guess(piece, share, _filled(text, encoding.offsets[place], piece))
            for piece, share in zip(tokenizer.tokens(ids), shares, strict=True)
        ]
        for place, (ids, shares) in zip(places, rows, strict=True)
    ]


@torch.no_grad()
def _best(
    model: Any, feature: Feature, rows: NDArray[np.int64], tokenizer: "Tokenizer", top: int
) -> list[tuple[list[int], list[float]]]:
    """Ids and probabilities of the `top` likeliest pieces at each of the `rows` [M] of a feature."""
    device = next(model.parameters()).device

    def send(values: Tensor) -> Tensor:
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

    inputs = make_batch([feature], "packed", tokenizer.pad_id).map(send).inputs()
    logits = model(**inputs).logits[send(torch.from_numpy(rows))].float()  # [M, V]
    finite = logits.isfinite().all(-1, keepdim=True)
    special = tokenizer.special[: logits.shape[1]]
    logits[:, : len(special)].masked_fill_(send(torch.from_numpy(special)), -torch.inf)
    shares, ids = logits.softmax(-1).topk(min(top, logits.shape[1] - int(special.sum())))
    # One table, which a GPU is waited for once. float32 holds ids up to 16,777,216; logits that are not finite are told by NaN.
    table = torch.cat((ids.float(), torch.where(finite, shares, torch.nan)), -1)
    ids_found, shares_found = np.split(Arriving(table).numbers(), 2, -1)
    return list(zip(ids_found.astype(np.int64).tolist(), shares_found.tolist(), strict=True))


def _filled(text: str, span: tuple[int, int], piece: str) -> str:
    """The text with a piece in place of the characters of a mask; one that continues a word joins what is before it."""
    before = text[: span[0]]
    if piece.startswith("##") and len(piece) > 2:
        before, piece = before.rstrip(), piece[2:]
    return before + piece + text[span[1] :]
