"""The modules of one layer by what they do, the same for `bertfast.nn.BertLayer` and for every family of transformers.

No other file knows where they stand, but a family's record, which has `Places` of its own where its names are not BERT's. They are
read through `_modules`: nn.Module's own lookup is ten times slower, and a call on 16 tokens takes a few milliseconds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

PARAMETERS = 16  # of a layer: weight and bias of eight modules, as `LayerParts.parameters` orders them


def _parameters(modules: Iterable[Any]) -> list[Tensor | None]:
    return [tensor for module in modules for tensor in (module.weight, module.bias)]


class AttentionParts(NamedTuple):
    """The first half of a layer: norm(x + hidden_dropout(dense(attention(query, key, value))))."""

    query: Any
    key: Any
    value: Any
    dense: Any
    norm: Any
    dropout: Any
    hidden_dropout: Any

    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of query, key, value, the output product and the norm in turn; None for a bias that is not there."""
        return _parameters(self[:5])


class MlpParts(NamedTuple):
    """The second half: norm(x + dropout(down(gelu(up(x)))))."""

    up: Any
    down: Any
    norm: Any
    dropout: Any

    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of both products and the norm in turn; None for a bias that is not there."""
        return _parameters(self[:3])


class LayerParts(NamedTuple):
    """Both halves of one layer."""

    attention: AttentionParts
    mlp: MlpParts

    @property
    def with_parameters(self) -> tuple[Any, ...]:
        """Eight modules, in the order of csrc/cpu/encoder.h."""
        return *self.attention[:5], *self.mlp[:3]

    @property
    def linears(self) -> tuple[Any, ...]:
        """The six products, in the order in which they run."""
        return *self.attention[:4], *self.mlp[:2]

    @property
    def norms(self) -> tuple[Any, Any]:
        return self.attention.norm, self.mlp.norm

    @property
    def dropouts(self) -> tuple[Any, Any, Any]:
        """Of the probabilities, behind the attention, and behind the feed-forward half."""
        return self.attention.dropout, self.attention.hidden_dropout, self.mlp.dropout

    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of each of the eight in turn; None for a bias that a Linear does not have."""
        return [p for part in self.with_parameters for p in (part._parameters["weight"], part._parameters["bias"])]


@dataclass(frozen=True)
class Places:
    """Where the modules of a layer stand below it: dotted names, None for a dropout that a family does not have."""

    attention: AttentionParts
    mlp: MlpParts

    @property
    def names(self) -> LayerParts:
        return LayerParts(self.attention, self.mlp)

    @cached_property
    def _paths(self) -> tuple[tuple[str, ...] | None, ...]:
        return tuple(None if name is None else tuple(name.split(".")) for name in (*self.attention, *self.mlp))

    def parts(self, layer: nn.Module) -> LayerParts:
        """Whatever stands in these places; KeyError where there is nothing."""
        modules: list[Any] = []
        for path in self._paths:
            module: Any = NO_DROPOUT
            if path is not None:
                module = layer
                for name in path:
                    module = module._modules[name]
            modules.append(module)
        return LayerParts(AttentionParts(*modules[:7]), MlpParts(*modules[7:]))


NO_DROPOUT = nn.Dropout(0.0)  # stands where a family has none

BERT = Places(
    AttentionParts(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "attention.self.dropout",
        "attention.output.dropout",
    ),
    MlpParts("intermediate.dense", "output.dense", "output.LayerNorm", "output.dropout"),
)


class Kind(NamedTuple):
    """What a layer computes besides its parameters: heads, the scale of the scores, and GELU's form ("none" or "tanh")."""

    heads: int
    scale: float
    approximate: str


def attention_parts(attention: Any) -> AttentionParts:
    """The parts below the `attention` of a layer with BERT's names, whatever stands in their places; KeyError for nothing."""
    projections, output = attention._modules["self"]._modules, attention._modules["output"]._modules
    return AttentionParts(
        projections["query"],
        projections["key"],
        projections["value"],
        output["dense"],
        output["LayerNorm"],
        projections["dropout"],
        output["dropout"],
    )


def mlp_parts(layer: nn.Module) -> MlpParts:
    """The parts of the feed-forward half of a layer with BERT's names; KeyError where there is nothing."""
    intermediate: Any = layer._modules["intermediate"]
    output: Any = layer._modules["output"]
    output = output._modules
    return MlpParts(intermediate._modules["dense"], output["dense"], output["LayerNorm"], output["dropout"])


def parts_of(layer: nn.Module) -> LayerParts:
    """All parts of a layer, whatever stands in their places; KeyError where there is nothing. A class whose names are not BERT's
    says where its parts stand by the attribute `places`, and by `unwrapped` what is only a wrapper that adds nothing."""
    kind = type(layer)
    places: Places = getattr(kind, "places", BERT)
    unwrapped: Callable[[LayerParts], LayerParts] | None = getattr(kind, "unwrapped", None)
    parts = places.parts(layer)
    return parts if unwrapped is None else unwrapped(parts)


def widths(layers: Sequence[LayerParts]) -> tuple[int, int]:
    """Columns of hidden states, and inside the feed-forward halves, of layers that are alike."""
    up = layers[0].mlp.up.weight
    return up.shape[1], up.shape[0]


def below(layer: nn.Module, name: str, absent: nn.Module) -> Any:
    """The module at a dotted `name` below a layer, itself where that is empty; `absent` where there is none."""
    module: Any = layer
    for part in name.split(".") if name else ():
        module = module._modules.get(part)
        if module is None:
            return absent
    return module
