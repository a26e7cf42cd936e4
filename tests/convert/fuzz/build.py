"""The models and inputs of a case. Both are functions of the case alone, whatever dtype they are then cast to."""

import inspect
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bertfast.convert.families import FAMILIES
from fuzz.draw import Call, Case
from fuzz.family import NO_POOLER, USER_MODEL, USER_TAGGER, base_of, config_of, head_of, kind, width_of

PREFIX = 2


def _doubled(stock: Any) -> Any:
    """A forward of a user's own, around stock's."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = stock.forward(self, *args, **kwargs)
        if isinstance(outputs, tuple):
            return outputs
        outputs.last_hidden_state = outputs.last_hidden_state * 2
        return outputs

    return forward


def _reading_twice(stock: Any) -> Any:
    """A forward that reads the base model twice."""

    def forward(self: Any, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        first = stock.forward(self, input_ids=input_ids, labels=labels, **kwargs)
        second = self.base_model(input_ids=input_ids, **{**kwargs, "return_dict": True})
        return first, self.classifier(second.last_hidden_state)

    return forward


def _users(prefix: str, stock: type, forward: Any) -> type:
    """A user's subclass, an attribute of this module, where pickle looks for it."""
    name = f"{prefix}{stock.__name__}"
    made = type(name, (stock,), {"forward": forward, "__module__": __name__})
    globals()[name] = made
    return made


USERS = {
    (family.name, head): _users("User", stock, make(stock))
    for family in FAMILIES.values()
    for head, make in ((USER_MODEL, _doubled), (USER_TAGGER, _reading_twice))
    for stock in (getattr(family.module, head_of(family, kind(head))),)
}


class Wrapped(nn.Module):
    """A user's module around a model, which adds one linear map to whatever tensor comes first."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.inner(*args, **kwargs)
        first = outputs[0]
        while not isinstance(first, Tensor):
            first = first[0]
        return first * 3


class Tower(nn.Module):
    """Two models that share their embeddings, as bi-encoders do."""

    def __init__(self, left: nn.Module, right: nn.Module):
        super().__init__()
        self.left, self.right = left, right
        base_of(right).embeddings = base_of(left).embeddings

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.left(*args, **kwargs), self.right(*args, **kwargs)


class ContextualWords(nn.Module):
    """A BERT in the place of another's word embeddings."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids).last_hidden_state


def head_class(case: Case) -> Any:
    family = FAMILIES[case.family]
    own = {NO_POOLER: family.model, **{head: USERS[case.family, head] for head in (USER_MODEL, USER_TAGGER)}}
    return own.get(case.head) or getattr(family.module, case.head)


def parameters_of(case: Case) -> list[str]:
    """The arguments of stock's forward of the case's head, in their order."""
    stock = next(c for c in head_class(case).__mro__ if c.__module__.startswith("transformers."))
    return list(inspect.signature(stock.forward).parameters)[1:]


def takes(case: Case, argument: str) -> bool:
    """Whether the forwards of a case's head and of its base model have this argument."""
    base = inspect.signature(FAMILIES[case.family].model.forward).parameters
    return argument in base and argument in parameters_of(case)


def _one(case: Case) -> nn.Module:
    config = config_of(
        FAMILIES[case.family], {"initializer_range": case.spread / case.config["hidden_size"] ** 0.5, **case.config}
    )
    return head_class(case)(config, **({"add_pooling_layer": False} if case.head == NO_POOLER else {}))


def model_of(case: Case) -> nn.Module:
    """The case's model in float32, in evaluation mode."""
    torch.manual_seed(case.seed)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = _one(case)
    if case.nest == "wrapped":
        model = Wrapped(model)
    elif case.nest == "tower":
        model = Tower(model, _one(case))
    elif case.nest == "contextual words":
        family = FAMILIES[case.family]
        inner = config_of(
            family, {**case.config, "is_decoder": False, "add_cross_attention": False, "return_dict": True}
        )
        base_of(model).embeddings.word_embeddings = ContextualWords(family.model(inner))
    for parameter in model.parameters():  # biases begin at zero, where a lost one would not show
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    return model.eval()


@dataclass
class Inputs:
    """
    Attributes:
        kwargs: what the model is called with, in the order of its forward's first parameters.
        real: [B, S], which tokens are no padding; of a multiple choice, B counts choices.
        labels_at_padding: whether a label other than -100 stands at padding.
    """

    kwargs: dict[str, Any]
    real: Tensor
    labels_at_padding: bool

    def defined(self, case: Case) -> Tensor:
        """[B] bool, the sequences whose outputs are defined. Eager attention over nothing but padding is a mean over padding."""
        switched = any("implementation" in call.changes for call in case.calls)
        return self.real.any(1) | (case.config["attn_implementation"] != "eager" and not switched)

    def undefined_loss(self, case: Case) -> bool:
        """Whether a loss reads hidden states at padding, whatever the mode; a loss of tokens reads none of an empty sequence."""
        return self.labels_at_padding or not bool(self.defined(case).all())

    def at_tokens(self, value: Tensor, case: Case) -> Tensor:
        """The entries of real tokens, and of sequences that are defined; `value` whole where it has no such dimensions."""
        batch, length = self.real.shape
        if kind(case.head) == "MultipleChoice" and value.dim() == 2 and value.shape[0] * 2 == batch:
            return value[self.defined(case).view(-1, 2).all(1)]
        if value.dim() == 0 or value.shape[0] != batch:
            return value
        if value.dim() == 4 and value.shape[2] == length:  # attentions [B, H, S, keys]
            return value.transpose(1, 2)[self.real]
        if value.dim() == 3 and 0 < value.shape[1] <= length:  # the last ones alone where logits_to_keep says so
            return value[self.real[:, length - value.shape[1] :]]
        a_token_each = kind(case.head) == "QuestionAnswering" or (case.family, kind(case.head)) == (
            "electra",
            "PreTraining",
        )
        if value.dim() == 2 and value.shape[1] == length and a_token_each:
            return value[self.real]
        return value[self.defined(case)]

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Fresh arguments of one call, every floating tensor that meets the model's numbers at `dtype`."""

        def fresh(name: str, value: Any) -> Any:
            if isinstance(value, list):  # a cache changes with each call, so every call has its own
                return DynamicCache([tuple(t.to(dtype) for t in pair) for pair in value])
            meets = name != "attention_mask" or value.dim() == 4
            return value.to(dtype) if meets and value.is_floating_point() else value.clone()

        return {name: fresh(name, value) for name, value in self.kwargs.items()}


def _mask(
    call: Call, batch: int, length: int, choices: int, generator: torch.Generator
) -> tuple[Tensor | None, Tensor]:
    """attention_mask, and the real tokens [B, S]."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    places = torch.arange(length)
    lengths = (rand(batch) * length).long() + 1
    if batch:
        lengths[int(rand(1) * batch)] = length
    right = places < lengths[:, None]
    ones = torch.ones(batch, length, dtype=torch.bool)
    holes = rand(batch, length) < 0.6
    holes[torch.arange(batch), (rand(batch) * length).long()] = True
    empty = right.clone()
    if batch:
        empty[int(rand(1) * batch)] = False
    # BertForMultipleChoice makes two dimensions of whatever mask it gets; of four, that is one of other sequences.
    form = "right" if choices > 1 and call.mask[1] == "-" else call.mask
    if form == "absent":
        return None, ones
    two = {
        "ones": ones,
        "right": right,
        "left": right.flip(1),
        "holes": holes,
        "an empty row": empty,
        "all padding": ~ones,
    }
    if form in two:
        return two[form].to(getattr(torch, call.mask_dtype)), two[form]
    if form == "odd floats":
        return torch.where(right, -1e9, 0.0).masked_fill(right & holes, 0.5), right
    if form == "3-D":
        return right[:, None].expand(batch, length, length).to(getattr(torch, call.mask_dtype)), right
    if form == "4-D keys":
        return right[:, None, None], right
    if form == "4-D bool":
        return right[:, None, None].expand(batch, 1, length, length), right
    if form == "4-D float":
        mask = torch.zeros(batch, 1, length, length).masked_fill(~right[:, None, None], torch.finfo(torch.float32).min)
        return mask, right
    if form == "4-D causal":
        future = torch.ones(length, length).triu(1).bool().expand(batch, 1, length, length)
        return torch.zeros(batch, 1, length, length).masked_fill(future, -1e4), ones
    width = {"too wide": length + 1, "too narrow": max(length - 1, 0)}
    shape = (batch, width[form]) if form in width else (length,)
    return torch.ones(shape, dtype=torch.long), ones


def _ids(call: Call, case: Case, batch: int, length: int, real: Tensor, generator: torch.Generator) -> dict[str, Any]:
    ids = torch.randint(0, case.config["vocab_size"], (batch, length), generator=generator)
    if call.ids in ("out of range", "negative") and bool(real.any()):
        place = real.nonzero()[-1]
        ids[place[0], place[1]] = 5000 if call.ids == "out of range" else -3
    embeds = torch.randn(batch, length, width_of(case), generator=generator)
    if call.ids == "neither":
        return {}
    if call.ids == "both":
        return {"input_ids": ids, "inputs_embeds": embeds}
    if call.ids == "embeds":
        return {"inputs_embeds": embeds}
    return {"input_ids": ids.int() if call.ids == "int32" else ids}


def _integers(form: str, size: int, real: Tensor, generator: torch.Generator) -> Tensor | None:
    """token_type_ids or position_ids below `size`; one too large at a real token, since at padding none is looked at."""
    if form == "absent":
        return None
    batch, length = real.shape
    values = torch.randint(0, size, (1 if form == "one row" else batch, length), generator=generator)
    if form == "out of range" and bool(real.any()):
        place = real.nonzero()[0]
        values[place[0], place[1]] = 1000
    return values.int() if form == "int32" else values


def _labels(call: Call, case: Case, real: Tensor, choices: int, generator: torch.Generator) -> dict[str, Tensor]:
    batch, length = real.shape
    count = case.config["num_labels"]

    def below(size: int, *shape: int) -> Tensor:
        return torch.randint(0, size, shape, generator=generator)

    def spoilt(labels: Tensor, size: int) -> Tensor:
        if call.labels == "all ignored":
            return torch.full_like(labels, -100)
        if call.labels == "out of range" and labels.numel():
            labels.view(-1)[0] = size + 3
        return labels

    def at_tokens(size: int) -> Tensor:
        labels = below(size, batch, length)
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
        if call.labels != "at padding":
            labels = labels.masked_fill(~real, -100)
        return spoilt(labels, size)

    vocabulary, head = case.config["vocab_size"], kind(case.head)
    if head in ("MaskedLM", "CausalLM"):
        return {"labels": at_tokens(vocabulary)}
    if head == "PreTraining" and case.family == "electra":  # which tokens were replaced; padding goes by the mask
        return {"labels": below(2, batch, length)}
    if head == "PreTraining":
        return {"labels": at_tokens(vocabulary), "next_sentence_label": spoilt(below(2, batch), 2)}
    if head == "TokenClassification":
        return {"labels": at_tokens(count)}
    if head == "NextSentencePrediction":
        return {"labels": spoilt(below(2, batch), 2)}
    if head == "MultipleChoice":
        return {"labels": spoilt(below(choices, batch // choices), choices)}
    if head == "QuestionAnswering":
        return {"start_positions": below(length + 2, batch), "end_positions": below(length, batch)}
    if head == "SequenceClassification":
        problem = case.config.get("problem_type") or ("regression" if count == 1 else "single_label_classification")
        if problem == "single_label_classification":
            return {"labels": spoilt(below(count, batch), count)}
        shape = (batch,) if count == 1 and problem == "regression" else (batch, count)
        return {"labels": torch.rand(shape, generator=generator).round(decimals=1)}
    return {}


def inputs_of(case: Case, index: int, model: nn.Module) -> Inputs:
    """The inputs of the case's call `index`, in float32 where they are floating."""
    call = case.calls[index]
    generator = torch.Generator().manual_seed(case.seed * 16 + index)
    choices = 2 if kind(case.head) == "MultipleChoice" else 1
    batch, length = call.batch * choices, call.length
    mask, real = _mask(call, batch, length, choices, generator)
    kwargs = _ids(call, case, batch, length, real, generator)
    kwargs["attention_mask"] = mask
    for name, form, size in (
        ("token_type_ids", call.segments, case.config["type_vocab_size"]),
        ("task_type_ids", call.tasks, case.config.get("task_type_vocab_size", 3)),
    ):
        if takes(case, name):
            kwargs[name] = _integers(form, size, real, generator)
    kwargs["position_ids"] = _integers(call.positions, case.config["max_position_embeddings"], real, generator)
    labels = {} if call.labels == "absent" else _labels(call, case, real, choices, generator)
    if case.config.get("add_cross_attention") and takes(case, "encoder_hidden_states"):
        kwargs["encoder_hidden_states"] = torch.randn(batch, 3, case.config["hidden_size"], generator=generator)
    kwargs |= labels
    if choices > 1:
        kwargs = {
            n: v.view(v.shape[0] // choices, choices, *v.shape[1:])
            if isinstance(v, Tensor) and n != "labels" and v.dim() >= 2 and v.shape[0] == batch
            else v
            for n, v in kwargs.items()
        }
    cached = not {"cache", "past_key_values"}.isdisjoint(
        inspect.signature(FAMILIES[case.family].model.forward).parameters
    )
    if call.prefix and cached and batch and mask is not None and mask.dim() == 2 and choices == 1:
        kwargs |= _prefix(case, model, batch, length)
    order = ("input_ids", "attention_mask", "token_type_ids", "task_type_ids", "position_ids", "inputs_embeds")
    kwargs = {name: kwargs[name] for name in (*order, *kwargs) if kwargs.get(name) is not None}
    at_padding = any(
        labels[name].shape == real.shape and bool((labels[name] != -100)[~real].any())
        for name in ("labels",)
        if name in labels and (case.family, kind(case.head)) != ("electra", "PreTraining")
    )
    return Inputs(kwargs, real, at_padding)


def _prefix(case: Case, model: nn.Module, batch: int, length: int) -> dict[str, Any]:
    """Keys and values of two tokens before each sequence, as prefix tuning gives them."""
    parameters = inspect.signature(FAMILIES[case.family].model.forward).parameters
    heads = case.config["num_attention_heads"]
    size = case.config["hidden_size"] // heads
    generator = torch.Generator().manual_seed(case.seed)
    pairs = [
        tuple(torch.randn(batch, heads, PREFIX, size, generator=generator) for _ in range(2))
        for _ in range(case.config["num_hidden_layers"])
    ]
    mask = torch.ones(batch, length + PREFIX, dtype=torch.long)
    return {"cache" if "cache" in parameters else "past_key_values": pairs, "attention_mask": mask}
