"""Whether one text follows another, by the next-sentence head of pre-training (Devlin et al., 2018, 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bertfast import models
from bertfast.tasks import pretraining_head
from bertfast.tasks.inference import sequence_logits
from bertfast.tasks.lines import DataError
from bertfast.tasks.pair import PairExample, pair_features
from bertfast.tasks.task import tell
from bertfast.tasks.unread import empty_texts_note, unknown_note

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

_HEAD = "cls.seq_relationship."
_FOLLOWS = 0  # the head's output for B that follows A; 1 is for another text


@dataclass(frozen=True)
class Judgement:
    """Whether B follows A, and the probability that it does."""

    probability: float

    @property
    def follows(self) -> bool:
        return self.probability >= 0.5

    @property
    def answer(self) -> str:
        return "yes" if self.follows else "no"


def load_next_sentence(folder: Path, device: str | torch.device = "auto") -> tuple[Any, "Tokenizer"]:
    """A model with a next-sentence head, and its tokenizer; arguments and errors are those of `pretraining_head.load`."""
    lacks = (
        f"next-sentence head ({_HEAD}*), so it cannot say what follows; name a BertForPreTraining or "
        "BertForNextSentencePrediction, such as `bertfast pretrain` makes (not with --no-nsp)"
    )
    return pretraining_head.load(folder, device, models.BertForNextSentencePrediction, _HEAD, lacks)


def judge(model: Any, tokenizer: "Tokenizer", pairs: Sequence[PairExample]) -> list[Judgement]:
    """Of each pair whether its second text follows its first. What is longer than the model's positions is cut, which is said.

    Raises:
        DataError: a pair has no second text, or the model gives numbers that are not finite.
    """
    if alone := next((pair.where for pair in pairs if pair.second is None), None):
        raise DataError(f"{alone}: there is no second text; give two")
    positions = model.config.max_position_embeddings
    made = pair_features(pairs, tokenizer, positions)
    cut = f"{made.cut} of {len(pairs)} pairs were cut to the model's {positions} positions" if made.cut else ""
    tell(cut, unknown_note(made.features, tokenizer), empty_texts_note(made.features, [pair.where for pair in pairs]))
    logits = sequence_logits(model, made.features, tokenizer.pad_id).astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return [Judgement(float(share)) for share in powers[:, _FOLLOWS] / powers.sum(-1)]
