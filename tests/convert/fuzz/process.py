"""Changes of the process: code and tables outside the modules. Each is a context manager."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bertfast.convert.families.record import Family


def _classes(family: Family) -> list[type[nn.Module]]:
    """The classes of a model whose code a user may replace: base model, its parts, heads and what holds them."""
    heads = [getattr(family.module, name) for name in family.head_names]
    masked = [kind for head in family.masked_heads.values() for kind in head.holders.values()]
    parts = [family.embeddings, family.encoder, family.layer, *family.holders.values()]
    return parts + ([] if family.pooler is None else [family.pooler]) + heads + masked


def _halved(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output * 0.5
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return (output[0] * 0.5, *output[1:])
    state = getattr(output, "last_hidden_state", None)
    if isinstance(state, Tensor):
        output.last_hidden_state = state * 0.5
    for name in ("logits", "prediction_logits"):
        if isinstance(getattr(output, name, None), Tensor):
            setattr(output, name, getattr(output, name) * 0.5)
    return output


@contextmanager
def class_forward(random: Random, family: Family) -> Iterator[None]:
    kind: Any = random.choice(_classes(family))
    before = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _halved(before(self, *args, **kwargs))

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = before


@contextmanager
def class_method(random: Random, family: Family) -> Iterator[None]:
    holder, _, name = family.chunk.rpartition(".")
    owner: Any = family.holders[holder] if holder else family.layer
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, lambda self, x: before(self, x) * 0.5)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def activation_forward(random: Random, family: Family) -> Iterator[None]:
    from transformers.activations import GELUActivation

    before = GELUActivation.forward
    GELUActivation.forward = lambda self, x: before(self, x) * 0.5
    try:
        yield
    finally:
        GELUActivation.forward = before


@contextmanager
def registered_attention(random: Random, family: Family) -> Iterator[None]:
    """Under a name that models use already."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return before(module, query * 0.5, key, value, mask, **kwargs)

    AttentionInterface.register("sdpa", attention)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", before)


@contextmanager
def eager_attention(random: Random, family: Family) -> Iterator[None]:
    module: Any = family.module
    before = getattr(module, "eager_attention_forward", None)
    if before is None:
        yield
        return

    def attention(owner: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        return before(owner, query * 0.5, *args, **kwargs)

    module.eager_attention_forward = attention
    try:
        yield
    finally:
        module.eager_attention_forward = before


@contextmanager
def mask_function(random: Random, family: Family) -> Iterator[None]:
    module: Any = family.module
    before = module.create_bidirectional_mask

    def masks(*args: Any, **kwargs: Any) -> Any:
        return before(*args, **{**kwargs, "attention_mask": None})

    module.create_bidirectional_mask = masks
    try:
        yield
    finally:
        module.create_bidirectional_mask = before


@contextmanager
def positions_function(random: Random, family: Family) -> Iterator[None]:
    """What counts positions over tokens: a function of the module, or a static method of the embeddings."""
    name = "create_position_ids_from_input_ids"
    owners: list[Any] = [owner for owner in (family.module, family.embeddings) if hasattr(owner, name)]
    before = [vars(owner)[name] for owner in owners]
    plain = [getattr(owner, name) for owner in owners]
    for owner, function in zip(owners, plain, strict=True):
        other = _one_on(function)
        setattr(owner, name, staticmethod(other) if isinstance(owner, type) else other)
    try:
        yield
    finally:
        for owner, function in zip(owners, before, strict=True):
            setattr(owner, name, function)


def _one_on(function: Any) -> Any:
    def positions(input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return function(input_ids, *args, **kwargs).clamp_min(3)

    return positions


@contextmanager
def global_hook(random: Random, family: Family) -> Iterator[None]:
    def halve(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 0.5 if isinstance(module, (nn.LayerNorm, nn.Embedding)) else None

    handle = nn.modules.module.register_module_forward_hook(halve)
    try:
        yield
    finally:
        handle.remove()
