"""The modules of one BERT layer by what they do, the same for `bertfast.nn.BertLayer` and for transformers' BertLayer.

This is the only place that knows where they stand. They are read through `_modules`: nn.Module's own lookup is ten times slower,
and a call on 16 tokens takes a few milliseconds.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

# Where each of LayerParts stands below a layer, in the order of its fields.
PATHS = (
    ("attention", "self", "query"),
    ("attention", "self", "key"),
    ("attention", "self", "value"),
    ("attention", "output", "dense"),
    ("attention", "output", "LayerNorm"),
    ("intermediate", "dense"),
    ("output", "dense"),
    ("output", "LayerNorm"),
    ("attention", "self", "dropout"),
    ("attention", "output", "dropout"),
    ("output", "dropout"),
)
WITH_PARAMETERS = 8


class LayerParts(NamedTuple):
    """The modules of one layer. `projected` is the attention's output projection; the first eight hold parameters.

    The order of those eight is that of csrc/cpu/encoder.h.
    """

    query: Any
    key: Any
    value: Any
    projected: Any
    attention_norm: Any
    up: Any
    down: Any
    norm: Any
    attention_dropout: Any
    projected_dropout: Any
    dropout: Any

    @property
    def linears(self) -> tuple[Any, ...]:
        """The six products, in the order in which they run."""
        return self.query, self.key, self.value, self.projected, self.up, self.down

    @property
    def dropouts(self) -> tuple[Any, ...]:
        return self.attention_dropout, self.projected_dropout, self.dropout

    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of each of the eight in turn, 16 in all; None for a bias that a Linear does not have."""
        return [p for part in self[:WITH_PARAMETERS] for p in (part._parameters["weight"], part._parameters["bias"])]


class Kind(NamedTuple):
    """What a layer computes besides its parameters: heads, the scale of the scores, and GELU's form ("none" or "tanh")."""

    heads: int
    scale: float
    approximate: str


def parts_of(layer: nn.Module) -> LayerParts:
    """The modules of a layer, whatever stands in their places.

    Raises:
        KeyError: where one of them, or what holds it, has no such child.
    """
    children = layer._modules
    attention: Any = children["attention"]
    projections, projected = attention._modules["self"]._modules, attention._modules["output"]._modules
    intermediate: Any = children["intermediate"]
    output: Any = children["output"]
    return LayerParts(
        projections["query"],
        projections["key"],
        projections["value"],
        projected["dense"],
        projected["LayerNorm"],
        intermediate._modules["dense"],
        output._modules["dense"],
        output._modules["LayerNorm"],
        projections["dropout"],
        projected["dropout"],
        output._modules["dropout"],
    )
