"""Changes of weights, dtypes and lives: what the copies of weights and the plans of calls must follow."""

import copy
import pickle
from random import Random

import torch
from torch import nn

import bertfast
from fuzz.subject import (
    NotApplicable,
    Subject,
    linear_of,
    nearby,
    normal_like,
)


def in_place(subject: Subject, random: Random) -> None:
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.copy_(nearby(random, parameter))


def one_in_place(subject: Subject, random: Random) -> None:
    parameters = list(subject.model.parameters())
    parameter = parameters[random.randrange(len(parameters))]
    with torch.no_grad():
        parameter.copy_(nearby(random, parameter))


def load_state_dict(subject: Subject, random: Random) -> None:
    state = {
        name: nearby(random, value) if value.is_floating_point() else value
        for name, value in subject.model.state_dict().items()
    }
    subject.model.load_state_dict(state)


def load_assigned(subject: Subject, random: Random) -> None:
    state = {
        name: nearby(random, value) if value.is_floating_point() else value
        for name, value in subject.model.state_dict().items()
    }
    subject.model.load_state_dict(state, assign=True)


def data_assigned(subject: Subject, random: Random) -> None:
    linear = linear_of(subject, random)[2]
    for parameter in linear.parameters():
        parameter.data = nearby(random, parameter)


def data_in_place(subject: Subject, random: Random) -> None:
    linear = linear_of(subject, random)[2]
    for parameter in linear.parameters():
        parameter.data.copy_(nearby(random, parameter))


def replaced_parameter(subject: Subject, random: Random) -> None:
    linear = linear_of(subject, random)[2]
    if nn.utils.parametrize.is_parametrized(linear):
        raise NotApplicable
    linear.weight = nn.Parameter(nearby(random, linear.weight))


def optimizer_step(subject: Subject, random: Random) -> None:
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    if not parameters:
        raise NotApplicable
    for parameter in parameters:
        parameter.grad = normal_like(random, parameter) * 0.1
    kind = torch.optim.SGD if random.random() < 0.5 else torch.optim.AdamW
    kind(parameters, lr=0.1).step()


def tied_layers(subject: Subject, random: Random) -> None:
    layers, down = subject.encoder.layer, subject.family.places.mlp.down
    if len(layers) < 2:
        raise NotApplicable
    layers[1].get_submodule(down).weight = layers[0].get_submodule(down).weight


def frozen(subject: Subject, random: Random) -> None:
    for parameter in subject.model.parameters():
        parameter.requires_grad_(random.random() < 0.5)


def frozen_part(subject: Subject, random: Random) -> None:
    parts = [subject.base.embeddings, subject.encoder, *subject.encoder.layer]
    parts[random.randrange(len(parts))].requires_grad_(False)


def frozen_whole(subject: Subject, random: Random) -> None:
    subject.model.requires_grad_(False)


def all_trainable(subject: Subject, random: Random) -> None:
    subject.model.requires_grad_(True)


def resized_vocabulary(subject: Subject, random: Random) -> None:
    resize = getattr(subject.model, "resize_token_embeddings", None)
    if resize is None or not isinstance(subject.base.embeddings.word_embeddings, nn.Embedding):
        raise NotApplicable
    resize(random.choice((101, 128)))


def to_dtype(subject: Subject, random: Random) -> None:
    kinked = subject.family.name == "distilbert" or subject.base.config.hidden_act == "relu"
    dtype = random.choice((torch.float32, torch.float64) if kinked else (torch.float32, torch.bfloat16, torch.float64))
    subject.model.to(dtype)


def deepcopied(subject: Subject, random: Random) -> None:
    if subject.fixed:
        raise NotApplicable
    subject.model = copy.deepcopy(subject.model)


def pickled(subject: Subject, random: Random) -> None:
    if subject.fixed:
        raise NotApplicable
    subject.model = pickle.loads(pickle.dumps(subject.model))


def restored(subject: Subject, random: Random) -> None:
    if subject.options is not None:
        bertfast.restore(subject.model)


def restored_and_back(subject: Subject, random: Random) -> None:
    if subject.options is not None:
        bertfast.optimize(bertfast.restore(subject.model), **subject.options)


def optimised_again(subject: Subject, random: Random) -> None:
    if subject.options is not None:
        subject.options = {**subject.options, "unpad": random.random() < 0.7, "prepack": random.random() < 0.7}
        bertfast.optimize(subject.model, **subject.options)


def reported(subject: Subject, random: Random) -> None:
    str(bertfast.report(subject.model))
