"""A model on its way through a case, and how changes find their places in it. Every subject of a case gets the same numbers."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.convert.families.record import Family
from fuzz.family import base_of, encoder_of, family_of


@dataclass
class Subject:
    """A model on its way through a case.

    Attributes:
        options: those of `bertfast.optimize`, or None for a model that stays stock.
        events: what hooks and replaced functions saw, in order.
        fixed: whether hooks or closures hold on to this very model, which then cannot be copied.
    """

    model: nn.Module
    options: dict[str, Any] | None = None
    events: list[Any] = field(default_factory=list)
    fixed: bool = False

    @property
    def base(self) -> Any:
        return base_of(self.model)

    @property
    def family(self) -> Family:
        return family_of(self.model)

    @property
    def encoder(self) -> Any:
        return encoder_of(self.model)


def checkpoint_layers(model: Any, reentrant: bool) -> None:
    """Gradient checkpointing of each layer, by the method that this transformers does not warn of."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


class NotApplicable(Exception):
    """This model has nothing that the change could be done to."""


def layer_of(subject: Subject, random: Random) -> Any:
    layers = subject.encoder.layer
    if not len(layers):
        raise NotApplicable
    return layers[random.randrange(len(layers))]


def linear_of(subject: Subject, random: Random) -> tuple[nn.Module, str, Any]:
    """A Linear inside a layer: its parent, its name there, itself."""
    layer = layer_of(subject, random)
    parent, _, name = random.choice(subject.family.places.names.linears).rpartition(".")
    try:
        module = layer.get_submodule(parent)
        linear = getattr(module, name)
    except AttributeError as error:  # something else was put there before
        raise NotApplicable from error
    if not isinstance(linear, nn.Linear):
        raise NotApplicable
    return module, name, linear


def norm_of(subject: Subject, random: Random) -> tuple[nn.Module, str, Any]:
    """A LayerNorm of the base model: its parent, its name there, itself."""
    norms = [
        (parent, name, child)
        for parent in subject.base.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.LayerNorm)
    ]
    if not norms:
        raise NotApplicable
    return norms[random.randrange(len(norms))]


def holder_of(subject: Subject, random: Random, place: str) -> tuple[Any, str]:
    """What stands around a dotted place of a layer, and the name of the place in it."""
    parent, _, name = place.rpartition(".")
    try:
        return layer_of(subject, random).get_submodule(parent), name
    except AttributeError as error:
        raise NotApplicable from error


def normal_like(random: Random, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def nearby(random: Random, parameter: Tensor) -> Tensor:
    """Other values, of about the same size."""
    return parameter.detach() * 0.5 + normal_like(random, parameter) * parameter.detach().float().std(
        unbiased=False
    ).to(parameter.dtype)


def attention_of(subject: Subject, random: Random) -> Any:
    family = subject.family
    try:
        attention = layer_of(subject, random).get_submodule(family.attention)
    except AttributeError as error:
        raise NotApplicable from error
    if not isinstance(attention, family.holders[family.attention]):
        raise NotApplicable
    return attention
