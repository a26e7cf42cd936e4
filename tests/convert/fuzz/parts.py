"""Changes of parts: modules put in the place of stock's."""

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert import modeling_bert as hf

from fuzz.subject import NotApplicable, Subject, layer_of, linear_of, norm_of


class Doubled(nn.Linear):
    """A user's Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class UserLayer(hf.BertLayer):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(hidden_states, *args, **kwargs) * 0.5


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
    layers = subject.base.encoder.layer
    subject.base.encoder.layer = nn.ModuleList(reversed(list(layers)))


def dropped_layer(subject: Subject, random: Random) -> None:
    layers = subject.base.encoder.layer
    if not len(layers):
        raise NotApplicable
    del layers[random.randrange(len(layers))]


def repeated_layer(subject: Subject, random: Random) -> None:
    subject.base.encoder.layer.append(layer_of(subject, random))


def user_linear(subject: Subject, random: Random) -> None:
    linear_of(subject, random)[2].__class__ = Doubled


def user_layer(subject: Subject, random: Random) -> None:
    layers = subject.base.encoder.layer
    if not len(layers):
        raise NotApplicable
    place = random.randrange(len(layers))
    layer = UserLayer(subject.base.config)
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
    intermediate = layer_of(subject, random).intermediate
    if not hasattr(intermediate, "intermediate_act_fn"):
        raise NotApplicable
    intermediate.intermediate_act_fn = random.choice((nn.SiLU(), nn.GELU("tanh"), nn.GELU(), torch.tanh))


def wrapped_part(subject: Subject, random: Random) -> None:
    layer = layer_of(subject, random)
    name = random.choice(("attention", "attention.self", "attention.output", "intermediate", "output"))
    try:
        layer.set_submodule(name, Through(layer.get_submodule(name)))
    except AttributeError as error:
        raise NotApplicable from error


def wrapped_layer(subject: Subject, random: Random) -> None:
    layers = subject.base.encoder.layer
    if not len(layers):
        raise NotApplicable
    place = random.randrange(len(layers))
    layers[place] = Through(layers[place])


def no_pooler(subject: Subject, random: Random) -> None:
    subject.base.pooler = None


def pooler_activation(subject: Subject, random: Random) -> None:
    if subject.base.pooler is None:
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

    names = random.choice((["query", "value"], ["dense"], ["query", "key", "value", "dense"]))
    dropout = random.choice((0.0, 0.0, 0.2))
    config = peft.LoraConfig(target_modules=names, r=2, lora_alpha=4, lora_dropout=dropout, init_lora_weights=False)
    if not isinstance(subject.model, hf.BertPreTrainedModel):
        raise NotApplicable
    dtype = next(subject.model.parameters()).dtype
    subject.model = peft.get_peft_model(subject.model, config, autocast_adapter_dtype=False).to(dtype)
    if random.random() < 0.2:
        subject.model.merge_adapter()
    subject.fixed = True


def lora_merged(subject: Subject, random: Random) -> None:
    lora(subject, random)
    subject.model = subject.model.merge_and_unload()
