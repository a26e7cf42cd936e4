"""Planted faults. Each changes a copy of the stock model as a fault of the fast path would; the judge must see it.

A mutant plants its fault and says what a case must be for the fault to show.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.convert.families import FAMILIES
from bertfast.convert.families.record import Family
from bertfast.nn.parts import LayerParts
from fuzz.changes import WEIGHTS
from fuzz.draw import Call, Case, draw, own_options
from fuzz.family import attention_dropouts, base_of, encoder_of, family_of, kind


@dataclass(frozen=True)
class Mutant:
    """
    Attributes:
        plant: makes a stock model faulty.
        call, config: what a case must have for the fault to show.
        seeds, offset: seeds are multiples of the one plus the other, for laws that are tried on some cases only.
        kinds: the kinds of heads that show it.
        later: a change before a second call, for faults that come with one.
        captured: whether the case runs with captured calls.
        shows: whether a family's models can show it.
    """

    plant: Callable[[nn.Module], None]
    call: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1
    offset: int = 0
    later: str = ""
    captured: bool = False
    kinds: tuple[str, ...] = ("Model", "SequenceClassification", "NextSentencePrediction", "MaskedLM")
    shows: Callable[[Family], bool] = lambda family: True

    def case(self, seed: int) -> Case:
        """A drawn case in which nothing else than the fault is unusual."""
        case = draw(seed * self.seeds + self.offset, WEIGHTS)
        family = next(
            family for family in (FAMILIES[name] for name in _turned(list(FAMILIES), seed)) if self.shows(family)
        )
        config = {n: v for n, v in case.config.items() if n not in ODD}
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12}
        config |= {
            "num_hidden_layers": max(1, config["num_hidden_layers"]),
            "num_attention_heads": 2,
            "type_vocab_size": 2,
        }
        config |= {"hidden_size": 2 * max(4, config["hidden_size"] // 2), **self.config}
        config = {n: v for n, v in config.items() if n not in OWN} | own_options(Random(seed), family, config)
        config |= {n: v for n, v in self.config.items() if n not in OWN}
        first = case.calls[0]
        ordinary = Call(
            mode=first.mode, mask="right", batch=3, length=9, segments="random", labels="normal", objective="all"
        )
        call = replace(ordinary, **{"mode": "train" if first.mode == "train no_grad" else first.mode, **self.call})
        calls = (call, replace(call, changes=(self.later,))) if self.later else (call,)
        heads = [head for head in family.head_names if kind(head) in self.kinds]
        head = heads[seed % len(heads)]
        plain: dict[str, Any] = {"nest": "", "dtype": "float32", "spread": 1.0, "optimize": {}}
        return replace(case, family=family.name, head=head, config=config, calls=calls, captured=self.captured, **plain)

    def make(self, model: nn.Module, case: Case) -> nn.Module:
        self.plant(model)
        return model


ODD = {
    "is_decoder",
    "add_cross_attention",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    "return_dict",
    "problem_type",
    "classifier_dropout",
}
# What families have besides, or otherwise.
OWN = {"pad_token_id", "use_task_id", "task_type_vocab_size", "embedding_size", "sinusoidal_pos_embds"}
OWN |= {"summary_type", "summary_last_dropout"}


def _turned(names: list[str], number: int) -> list[str]:
    """The same names, beginning with another for each number."""
    place = number % len(names)
    return names[place:] + names[:place]


def _around(model: nn.Module, change: Callable[[Any, dict[str, Any]], Any]) -> None:
    """Replace what the base model's forward inside does by change(its own forward, its arguments by name)."""
    base = base_of(model)
    before = base.forward
    names = list(inspect.signature(before).parameters)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return change(before, {**dict(zip(names, args, strict=False)), **kwargs})

    base.forward = forward


def _layer(model: nn.Module) -> Any:
    return encoder_of(model).layer[0]


def _parts(model: nn.Module) -> LayerParts:
    return family_of(model).places.parts(_layer(model))


def lost_bias(model: nn.Module) -> None:
    _parts(model).mlp.down.bias.data.zero_()


def lost_bias_of_values(model: nn.Module) -> None:
    _parts(model).attention.value.bias.data.zero_()


def wrong_mask_row(model: nn.Module) -> None:
    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        mask = inputs["attention_mask"].clone()
        row = mask.bool().sum(1).argmax()
        mask[row, mask[row].bool().nonzero()[-1]] = 0
        return forward(**{**inputs, "attention_mask": mask})

    _around(model, change)


def mask_ignored(model: nn.Module) -> None:
    _around(model, lambda forward, inputs: forward(**{**inputs, "attention_mask": None}))


def wrong_scale(model: nn.Module) -> None:
    query = _parts(model).attention.query
    for parameter in (query.weight, query.bias):
        parameter.data *= 2.0


def swapped_heads(model: nn.Module) -> None:
    query = _parts(model).attention.query
    size = query.weight.shape[0] // 2
    for p in (query.weight, query.bias):
        p.data = torch.cat([p.data[size:], p.data[:size]])


def positions_ignored(model: nn.Module) -> None:
    _around(model, lambda forward, inputs: forward(**{**inputs, "position_ids": None}))


def segments_ignored(model: nn.Module) -> None:
    _around(model, lambda forward, inputs: forward(**{**inputs, "token_type_ids": None}))


def wrong_eps(model: nn.Module) -> None:
    _parts(model).mlp.norm.eps = 1e-3


def wrong_gelu(model: nn.Module) -> None:
    holder, _, name = family_of(model).activation.rpartition(".")
    setattr(_layer(model).get_submodule(holder), name, nn.GELU("tanh"))


def stale_weights(model: nn.Module) -> None:
    """The first product goes on with the weights of the first call."""
    linear = _parts(model).attention.query
    kept: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        if not kept:
            kept.extend((linear.weight.detach().clone(), linear.bias.detach().clone()))
        return nn.functional.linear(x, *kept)

    linear.forward = forward


def larger_gradient(model: nn.Module) -> None:
    _parts(model).mlp.down.weight.register_hook(lambda grad: grad * 1.02)


def lost_gradient(model: nn.Module) -> None:
    layer = _layer(model)
    before = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return before(x.detach(), *args, **kwargs)

    layer.forward = forward


def absent_gradient(model: nn.Module) -> None:
    base_of(model).embeddings.position_embeddings.weight.requires_grad_(False)


def unlike_dropout(model: nn.Module) -> None:
    """A pass with gradients draws once more than one without, as separate ways of numbering do."""

    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        if torch.is_grad_enabled():
            torch.rand(3)
        return forward(**inputs)

    _around(model, change)


def other_dropout_back(model: nn.Module) -> None:
    """Backward draws its mask again, from another state than forward did."""
    for module in encoder_of(model).modules():
        if isinstance(module, nn.Dropout):
            module.forward = _OtherBack(module)


class _OtherBack:
    def __init__(self, dropout: nn.Dropout):
        self.dropout = dropout

    def __call__(self, x: Tensor) -> Tensor:
        rate, training = self.dropout.p, self.dropout.training
        dropped = nn.functional.dropout(x.detach(), rate, training)
        other = nn.functional.dropout(x, rate, training)
        return dropped + other - other.detach()


def no_dropout(model: nn.Module) -> None:
    for module in base_of(model).modules():
        if isinstance(module, nn.Dropout):
            module.forward = lambda x: x
    for dropout, _ in attention_dropouts(model):
        dropout.p = 0.0  # type: ignore[assignment]


def swallowed_error(model: nn.Module) -> None:
    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        ids = inputs["input_ids"]
        return forward(**{**inputs, "input_ids": ids.clamp(0, 30)})

    _around(model, change)


def other_error(model: nn.Module) -> None:
    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        try:
            return forward(**inputs)
        except IndexError as error:
            raise ValueError(str(error)) from error

    _around(model, change)


def chatty(model: nn.Module) -> None:
    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        warnings.warn("`past_key_values` is deprecated", FutureWarning, stacklevel=1)
        return forward(**inputs)

    _around(model, change)


def forgets_hidden_states(model: nn.Module) -> None:
    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        return forward(**{n: v for n, v in inputs.items() if n != "output_hidden_states"})

    _around(model, change)


def leaves_training(model: nn.Module) -> None:
    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        outputs = forward(**inputs)
        norm = base_of(model).embeddings.LayerNorm
        norm.training = not norm.training
        return outputs

    _around(model, change)


def leaves_buffer(model: nn.Module) -> None:
    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        outputs = forward(**inputs)
        embeddings = base_of(model).embeddings
        embeddings.position_ids = embeddings.position_ids.flip(1)
        return outputs

    _around(model, change)


def deaf(model: nn.Module) -> None:
    """Modules that are computed without being called, so that their hooks are never run."""

    def change(forward: Any, inputs: dict[str, Any]) -> Any:
        for module in base_of(model).modules():
            if module is not base_of(model):
                module._forward_pre_hooks.clear()
        return forward(**inputs)

    _around(model, change)


DROPPING = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.1}
LEARNING = {"mode": "train"}
WRONG = {"ids": "out of range", "mode": "no_grad"}
MUTANTS: dict[str, Mutant] = {
    "lost bias": Mutant(lost_bias),
    "lost bias of values": Mutant(lost_bias_of_values),
    "wrong mask row": Mutant(wrong_mask_row),
    "mask ignored": Mutant(mask_ignored),
    "wrong scale": Mutant(wrong_scale),
    "swapped heads": Mutant(swapped_heads),
    "positions ignored": Mutant(positions_ignored, {"positions": "random"}),
    "segments ignored": Mutant(segments_ignored, shows=lambda family: family.segments),
    "wrong eps": Mutant(wrong_eps),
    "wrong gelu": Mutant(wrong_gelu, config={"hidden_act": "gelu"}),
    "stale weights": Mutant(stale_weights, later="in_place"),
    "gradient 2 % too large": Mutant(larger_gradient, LEARNING),
    "lost gradient": Mutant(lost_gradient, LEARNING),
    "absent gradient": Mutant(absent_gradient, LEARNING),
    "dropout unlike without gradients": Mutant(unlike_dropout, LEARNING, DROPPING),
    "gradient of another dropout": Mutant(other_dropout_back, LEARNING, DROPPING, seeds=4),
    "no dropout": Mutant(no_dropout, LEARNING, DROPPING, seeds=4, offset=1, kinds=("Model",)),
    "an error of another type": Mutant(other_error, WRONG),
    "a swallowed error": Mutant(swallowed_error, WRONG),
    "a new warning": Mutant(chatty),
    "no hidden states": Mutant(forgets_hidden_states, {"options": {"output_hidden_states": True}}),
    "training flags left behind": Mutant(leaves_training),
    "a buffer left behind": Mutant(leaves_buffer),
    "hooks not run": Mutant(deaf, later="layer_pre_hook"),
}
