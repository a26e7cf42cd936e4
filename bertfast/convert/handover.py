"""What a head and the stack below it tell each other during one call. The base model's forward, which is stock code, lies between
them and hands on neither, so it goes by a context variable: threads do not see each other's. It names the modules that it is
meant for; another model that runs during the call, in a hook or in somebody's own embeddings, does not see it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass
class Handover:
    """
    Attributes:
        encoder, embeddings: of the base model that the head calls, which alone are meant.
        read: the positions of the last hidden state that the head and the pooler read: [B, S] bool, or FIRST for each
            sequence's first alone; None where somebody else may look at the others too.
        decoder_weight: [V, E], that of a head that has one. Where it is the embeddings' word table, they put into `tied`
            what `ops.tied_embedding_sum_norm` made of it.
    """

    encoder: nn.Module
    embeddings: nn.Module
    read: Tensor | Literal["first"] | None
    decoder_weight: Tensor | None = None
    tied: Tensor | None = None


FIRST: Literal["first"] = "first"
_current: ContextVar[Handover | None] = ContextVar("bertfast_handover", default=None)


def current(module: nn.Module) -> Handover | None:
    """What the head above wants of `module`, its base model's encoder or embeddings, in this call; None where no head asked, and in
    a compiled graph, which cannot read a context variable and whose heads never ask."""
    if torch.compiler.is_compiling():
        return None
    offer = _current.get()
    if offer is None:
        return None
    return offer if module is offer.encoder or module is offer.embeddings else None


@contextmanager
def offered(handover: Handover) -> Iterator[Handover]:
    """A context in which `current` gives `handover` to the modules that it names, in this thread and task alone."""
    token = _current.set(handover)
    try:
        yield handover
    finally:
        _current.reset(token)
