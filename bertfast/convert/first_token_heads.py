"""Heads that read nothing but the first token of each sequence, by the pooler or themselves: of the last layer they need no other.

Its other tokens are still keys and values, but their output, four fifths of the layer's work, is read by nobody.
"""

from typing import Any

import torch
from torch import nn

from bertfast.convert import checks, handover
from bertfast.convert.accumulation import averaged
from bertfast.convert.counts import count
from bertfast.convert.swapped import Swapped

FIRST_ALONE = "asked for the first tokens of the last layer alone"


def only_reader(base: Any, family: Any) -> bool:
    """Whether nobody but the pooler and the head above gets to see the base model's last hidden state."""
    pooler = getattr(base, "pooler", None)
    seen: tuple[tuple[nn.Module | None, type], ...] = (
        (base, family.fast[family.model]),
        (pooler, family.pooler or nn.Module),
    )
    return all(m is None or (type(m) is kind and checks.hook_reason(m, "it") is None) for m, kind in seen) and (
        checks.hook_reason(family.encoder_of(base), "it") is None
    )


class FastFirstTokenHead(Swapped):
    """A head whose forward is stock's, the encoder being told what will be read."""

    @averaged
    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.stock.forward(self, *args, **kwargs)
        family, base = self.family, self.base_model
        pooled = self.stock in family.pooled_heads
        if (pooled and getattr(base, "pooler", None) is None) or not only_reader(base, family):
            count(self, "all tokens: somebody else may read the last hidden state")
            return self.stock.forward(self, *args, **kwargs)
        count(self, FIRST_ALONE)
        with handover.offered(handover.Handover(family.encoder_of(base), base.embeddings, handover.FIRST)):
            return self.stock.forward(self, *args, **kwargs)
