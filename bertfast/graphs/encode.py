"""A model's inference on a GPU from ids to the rows that are read: embeddings and all layers as one captured call.

This is what the drop-in and `bertfast.models` share. Where nothing can be captured, the same functions run eagerly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bertfast.graphs.cache import Limits
from bertfast.graphs.inference import Outcome, Read, run
from bertfast.nn import device
from bertfast.nn.through import Layers, through
from bertfast.nn.tokens import Tokens


@dataclass(frozen=True)
class Encoder:
    """
    Attributes:
        embeddings: a module with BERT's names inside, plain and without dropout.
        layers: of the model, with a `device.Launched` as what runs them at once.
        limits: of the captured calls, which belong to the layers' owner.
        weights: every tensor that a call reads by address.
        eps: of all norms, numbers that a graph holds as they were. Who keeps an encoder makes another where one changes.
        projection: from the width of the embeddings to that of the layers, where they differ (ELECTRA).
    """

    embeddings: nn.Module
    layers: Layers
    limits: Limits
    weights: Sequence[Tensor | None]
    eps: tuple[float, ...]
    projection: nn.Linear | None = None

    @classmethod
    def of(
        cls, embeddings: nn.Module, layers: Layers, limits: Limits, projection: nn.Linear | None = None
    ) -> "Encoder | None":
        """None where the layers do not run at once on a GPU."""
        if not isinstance(layers.at_once, device.Launched):
            return None
        norms: list[Any] = [embeddings.get_submodule("LayerNorm")]
        norms += [norm for part in layers.at_once.parts for norm in part.norms]
        weights = [*embeddings.parameters(), *layers.at_once.joined.tensors]
        weights += [] if projection is None else [*projection.parameters()]
        return cls(embeddings, layers, limits, weights, tuple(float(norm.eps) for norm in norms), projection)

    def is_ready(self) -> bool:
        """Whether a call without gradients may go this way still; asked once a call."""
        return isinstance(self.layers.at_once, device.Launched) and self.layers.at_once.is_ready()

    def _running(self) -> tuple[Any, ...]:
        return self.layers.at_once.running() if isinstance(self.layers.at_once, device.Launched) else ()

    def rows(self, tokens: Tokens, read: Tensor | None) -> Tensor:
        """The last layer's output [N, E], or [R, E] of the rows that are read, [R] int64."""
        x = device.embed(self.embeddings, tokens.input_ids, tokens.token_type_ids, tokens.position_ids)
        if self.projection is not None:
            x = F.linear(x, self.projection.weight, self.projection.bias)
        return through(self.layers, x, tokens.layout(read))

    def encode(self, tokens: Tokens, read: Read, finish: Callable[[Tensor], Any]) -> Outcome:
        """finish(rows) of a call's tokens, from a captured graph where there is one.

        Args:
            tokens: on the weights' device.
            read: rows of the last layer that are made: [R] int64; "first" for the first of each sequence; None for all.
            finish: takes the rows and returns what lies elsewhere: in a graph the next call writes over them.
        """
        if not device.runs_kernels():
            rows = self.rows(tokens, tokens.first if isinstance(read, str) else read)
            return Outcome(finish(rows), "eager: torch's own functions run for some ops")
        return run(
            self.layers.owner,
            self.rows,
            tokens,
            read,
            weights=lambda: self.weights,
            key=(self.layers.kind, self.eps, type(self.layers.at_once), self._running()),
            finish=finish,
            limits=self.limits,
            positions=self.embeddings.get_submodule("position_embeddings").num_embeddings,  # type: ignore[arg-type]
        )
