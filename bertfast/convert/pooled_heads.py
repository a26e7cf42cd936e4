"""Heads that read nothing but the pooler's output: of the last layer they need the first token of each sequence alone.

Its other tokens are still keys and values, but their output, four fifths of the layer's work, is read by nobody. As in
`layers`, a swapped head is the stock head with another forward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.bert import modeling_bert as hf

from bertfast.convert import checks, handover, installed
from bertfast.convert.counts import count
from bertfast.convert.model import FastBertModel

FIRST_ALONE = "asked for the first tokens of the last layer alone"


def only_reader(bert: Any) -> bool:
    """Whether nobody but the pooler and the head above gets to see BertModel's last hidden state."""
    seen: tuple[tuple[nn.Module | None, type], ...] = ((bert, FastBertModel), (bert.pooler, hf.BertPooler))
    return all(m is None or (type(m) is kind and checks.hook_reason(m, "it") is None) for m, kind in seen) and (
        checks.hook_reason(bert.encoder, "it") is None
    )


def _forward(stock: type[nn.Module]) -> Callable[..., Any]:
    """The forward of `stock`, with the encoder told what will be read."""

    @installed.signed_as(stock.forward)  # Trainer goes by the names of its arguments
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return stock.forward(self, *args, **kwargs)
        if self.bert.pooler is None or not only_reader(self.bert):
            count(self, "all tokens: somebody else may read the last hidden state")
            return stock.forward(self, *args, **kwargs)
        count(self, FIRST_ALONE)
        with handover.offered(handover.Handover(self.bert, handover.FIRST)):
            return stock.forward(self, *args, **kwargs)

    return forward


class FastBertForSequenceClassification(hf.BertForSequenceClassification):
    forward = _forward(hf.BertForSequenceClassification)


class FastBertForNextSentencePrediction(hf.BertForNextSentencePrediction):
    forward = _forward(hf.BertForNextSentencePrediction)


class FastBertForMultipleChoice(hf.BertForMultipleChoice):
    forward = _forward(hf.BertForMultipleChoice)


POOLED: dict[type[nn.Module], type[nn.Module]] = {
    hf.BertForSequenceClassification: FastBertForSequenceClassification,
    hf.BertForNextSentencePrediction: FastBertForNextSentencePrediction,
    hf.BertForMultipleChoice: FastBertForMultipleChoice,
}
for _stock, _fast in POOLED.items():
    _fast.__name__ = _stock.__name__  # what save_pretrained and Trainer look up; pickle goes by __qualname__
