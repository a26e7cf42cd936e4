"""Changes of parts: modules put in the place of stock's."""

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertfast.convert.families import FAMILIES
from fuzz.subject import NotApplicable, Subject, holder_of, layer_of, linear_of, norm_of


class Doubled(nn.Linear):
    """A user's Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def _halved(stock: Any) -> Any:
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = stock.forward(self, hidden_states, *args, **kwargs)
        return output * 0.5 if isinstance(output, Tensor) else (output[0] * 0.5, *output[1:])

    return forward


def _user_layer(stock: type) -> type:
    """A user's subclass of a layer, an attribute of this module, where pickle looks for it."""
    name = f"User{stock.__name__}"
    made = type(name, (stock,), {"forward": _halved(stock), "__module__": __name__})
    globals()[name] = made
    return made


USER_LAYERS = {family.name: _user_layer(family.layer) for family in FAMILIES.values()}


class Rms(nn.Module):
    """A norm of another kind in LayerNorm's place."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class Through(nn.Module):
    """A user's module around a stock one, with none of its attributes."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def reordered_layers(subject: Subject, random: Random) -> None:
    layers = subject.encoder.layer
    subject.encoder.layer = nn.ModuleList(reversed(list(layers)))


def dropped_layer(subject: Subject, random: Random) -> None:
    layers = subject.encoder.layer
    if not len(layers):
        raise NotApplicable
    del layers[random.randrange(len(layers))]


def repeated_layer(subject: Subject, random: Random) -> None:
    subject.encoder.layer.append(layer_of(subject, random))


def user_linear(subject: Subject, random: Random) -> None:
    linear_of(subject, random)[2].__class__ = Doubled


def user_layer(subject: Subject, random: Random) -> None:
    layers = subject.encoder.layer
    if not len(layers):
        raise NotApplicable
    place = random.randrange(len(layers))
    layer: Any = USER_LAYERS[subject.family.name](subject.base.config)
    layer.load_state_dict(layers[place].state_dict(), strict=False)
    like = next(layers[place].parameters())
    layers[place] = layer.to(like.dtype).train(layers[place].training)


def no_bias(subject: Subject, random: Random) -> None:
    chosen = linear_of(subject, random)[2] if random.random() < 0.6 else norm_of(subject, random)[2]
    if nn.utils.parametrize.is_parametrized(chosen):
        raise NotApplicable
    chosen.bias = None


def other_norm(subject: Subject, random: Random) -> None:
    parent, name, norm = norm_of(subject, random)
    if norm.weight is None:
        raise NotApplicable
    setattr(parent, name, Rms(norm))


def other_activation(subject: Subject, random: Random) -> None:
    holder, name = holder_of(subject, random, subject.family.activation)
    if not hasattr(holder, name):
        raise NotApplicable
    setattr(holder, name, random.choice((nn.SiLU(), nn.GELU("tanh"), nn.GELU(), torch.tanh)))


def wrapped_part(subject: Subject, random: Random) -> None:
    layer = layer_of(subject, random)
    name = random.choice(list(subject.family.holders))
    try:
        layer.set_submodule(name, Through(layer.get_submodule(name)))
    except AttributeError as error:
        raise NotApplicable from error


def wrapped_layer(subject: Subject, random: Random) -> None:
    layers = subject.encoder.layer
    if not len(layers):
        raise NotApplicable
    place = random.randrange(len(layers))
    layers[place] = Through(layers[place])


def no_pooler(subject: Subject, random: Random) -> None:
    if subject.family.pooler is None:
        raise NotApplicable
    subject.base.pooler = None


def pooler_activation(subject: Subject, random: Random) -> None:
    if getattr(subject.base, "pooler", None) is None:
        raise NotApplicable
    subject.base.pooler.activation = nn.SiLU()


def parametrised(subject: Subject, random: Random) -> None:
    linear = linear_of(subject, random)[2]
    if type(linear) is not nn.Linear or nn.utils.parametrize.is_parametrized(linear):
        raise NotApplicable
    nn.utils.parametrizations.weight_norm(linear)
    subject.fixed = True  # torch refuses to pickle a parametrised module


def pruned(subject: Subject, random: Random) -> None:
    linear = linear_of(subject, random)[2]
    if "weight" not in linear._parameters or linear.weight.dtype is torch.float16:
        raise NotApplicable
    nn.utils.prune.ln_structured(linear, "weight", amount=0.5, n=2, dim=0)
    subject.fixed = True


def lora(subject: Subject, random: Random) -> None:
    import peft

    query, key, value, *others = (name.rpartition(".")[2] for name in subject.family.places.names.linears)
    names = random.choice(([query, value], sorted(set(others)), sorted({query, key, value, *others})))
    dropout = random.choice((0.0, 0.0, 0.2))
    config = peft.LoraConfig(target_modules=names, r=2, lora_alpha=4, lora_dropout=dropout, init_lora_weights=False)
    if not isinstance(subject.model, PreTrainedModel):
        raise NotApplicable
    dtype = next(subject.model.parameters()).dtype
    subject.model = peft.get_peft_model(subject.model, config, autocast_adapter_dtype=False).to(dtype)
    if random.random() < 0.2:
        subject.model.merge_adapter()
    subject.fixed = True


def lora_merged(subject: Subject, random: Random) -> None:
    lora(subject, random)
    subject.model = subject.model.merge_and_unload()
