"""The models and inputs of a case. Both are functions of the case alone, whatever dtype they are then cast to."""

import inspect
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, DynamicCache
from transformers.models.bert import modeling_bert as hf

from fuzz.draw import Call, Case

PREFIX = 2


class UserModel(hf.BertModel):
    """A user's subclass with a forward of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if isinstance(outputs, tuple):
            return outputs
        outputs.last_hidden_state = outputs.last_hidden_state * 2
        return outputs


class UserTagger(hf.BertForTokenClassification):
    """A user's head that reads its own base model twice."""

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        first = super().forward(input_ids=input_ids, labels=labels, **kwargs)
        second = self.bert(input_ids=input_ids, **{**kwargs, "return_dict": True})
        return first, self.classifier(second.last_hidden_state)


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

    def __init__(self, inner: hf.BertModel):
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids).last_hidden_state


def base_of(model: nn.Module) -> hf.BertModel:
    """The first BertModel inside, or the model itself."""
    return next(m for m in model.modules() if isinstance(m, hf.BertModel))


def head_class(name: str) -> type[nn.Module]:
    return {"BertModel without pooler": hf.BertModel, "UserModel": UserModel, "UserTagger": UserTagger}.get(
        name
    ) or getattr(hf, name)


def _one(case: Case) -> nn.Module:
    config = BertConfig(initializer_range=case.spread / case.config["hidden_size"] ** 0.5, **case.config)
    options = {"add_pooling_layer": False} if case.head == "BertModel without pooler" else {}
    return head_class(case.head)(config, **options)


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
        inner = BertConfig(**{**case.config, "is_decoder": False, "add_cross_attention": False, "return_dict": True})
        base_of(model).embeddings.word_embeddings = ContextualWords(hf.BertModel(inner))
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
        if case.head == "BertForMultipleChoice" and value.dim() == 2 and value.shape[0] * 2 == batch:
            return value[self.defined(case).view(-1, 2).all(1)]
        if value.dim() == 0 or value.shape[0] != batch:
            return value
        if value.dim() == 4 and value.shape[2] == length:  # attentions [B, H, S, keys]
            return value.transpose(1, 2)[self.real]
        if value.dim() == 3 and 0 < value.shape[1] <= length:  # the last ones alone where logits_to_keep says so
            return value[self.real[:, length - value.shape[1] :]]
        if value.dim() == 2 and value.shape[1] == length and case.head == "BertForQuestionAnswering":
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
    kind = "right" if choices > 1 and call.mask[1] == "-" else call.mask
    if kind == "absent":
        return None, ones
    two = {
        "ones": ones,
        "right": right,
        "left": right.flip(1),
        "holes": holes,
        "an empty row": empty,
        "all padding": ~ones,
    }
    if kind in two:
        return two[kind].to(getattr(torch, call.mask_dtype)), two[kind]
    if kind == "odd floats":
        return torch.where(right, -1e9, 0.0).masked_fill(right & holes, 0.5), right
    if kind == "3-D":
        return right[:, None].expand(batch, length, length).to(getattr(torch, call.mask_dtype)), right
    if kind == "4-D keys":
        return right[:, None, None], right
    if kind == "4-D bool":
        return right[:, None, None].expand(batch, 1, length, length), right
    if kind == "4-D float":
        mask = torch.zeros(batch, 1, length, length).masked_fill(~right[:, None, None], torch.finfo(torch.float32).min)
        return mask, right
    if kind == "4-D causal":
        future = torch.ones(length, length).triu(1).bool().expand(batch, 1, length, length)
        return torch.zeros(batch, 1, length, length).masked_fill(future, -1e4), ones
    width = {"too wide": length + 1, "too narrow": max(length - 1, 0)}
    shape = (batch, width[kind]) if kind in width else (length,)
    return torch.ones(shape, dtype=torch.long), ones


def _ids(call: Call, case: Case, batch: int, length: int, real: Tensor, generator: torch.Generator) -> dict[str, Any]:
    ids = torch.randint(0, case.config["vocab_size"], (batch, length), generator=generator)
    if call.ids in ("out of range", "negative") and bool(real.any()):
        place = real.nonzero()[-1]
        ids[place[0], place[1]] = 5000 if call.ids == "out of range" else -3
    embeds = torch.randn(batch, length, case.config["hidden_size"], generator=generator)
    if call.ids == "neither":
        return {}
    if call.ids == "both":
        return {"input_ids": ids, "inputs_embeds": embeds}
    if call.ids == "embeds":
        return {"inputs_embeds": embeds}
    return {"input_ids": ids.int() if call.ids == "int32" else ids}


def _integers(kind: str, size: int, real: Tensor, generator: torch.Generator) -> Tensor | None:
    """token_type_ids or position_ids below `size`; one too large at a real token, since at padding none is looked at."""
    if kind == "absent":
        return None
    batch, length = real.shape
    values = torch.randint(0, size, (1 if kind == "one row" else batch, length), generator=generator)
    if kind == "out of range" and bool(real.any()):
        place = real.nonzero()[0]
        values[place[0], place[1]] = 1000
    return values.int() if kind == "int32" else values


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

    vocabulary = case.config["vocab_size"]
    if case.head in ("BertForMaskedLM", "BertLMHeadModel"):
        return {"labels": at_tokens(vocabulary)}
    if case.head == "BertForPreTraining":
        return {"labels": at_tokens(vocabulary), "next_sentence_label": spoilt(below(2, batch), 2)}
    if case.head in ("BertForTokenClassification", "UserTagger"):
        return {"labels": at_tokens(count)}
    if case.head == "BertForNextSentencePrediction":
        return {"labels": spoilt(below(2, batch), 2)}
    if case.head == "BertForMultipleChoice":
        return {"labels": spoilt(below(choices, batch // choices), choices)}
    if case.head == "BertForQuestionAnswering":
        return {"start_positions": below(length + 2, batch), "end_positions": below(length, batch)}
    if case.head == "BertForSequenceClassification":
        kind = case.config.get("problem_type") or ("regression" if count == 1 else "single_label_classification")
        if kind == "single_label_classification":
            return {"labels": spoilt(below(count, batch), count)}
        shape = (batch,) if count == 1 and kind == "regression" else (batch, count)
        return {"labels": torch.rand(shape, generator=generator).round(decimals=1)}
    return {}


def inputs_of(case: Case, index: int, model: nn.Module) -> Inputs:
    """The inputs of the case's call `index`, in float32 where they are floating."""
    call = case.calls[index]
    generator = torch.Generator().manual_seed(case.seed * 16 + index)
    choices = 2 if case.head == "BertForMultipleChoice" else 1
    batch, length = call.batch * choices, call.length
    mask, real = _mask(call, batch, length, choices, generator)
    kwargs = _ids(call, case, batch, length, real, generator)
    kwargs["attention_mask"] = mask
    kwargs["token_type_ids"] = _integers(call.segments, case.config["type_vocab_size"], real, generator)
    kwargs["position_ids"] = _integers(call.positions, case.config["max_position_embeddings"], real, generator)
    labels = {} if call.labels == "absent" else _labels(call, case, real, choices, generator)
    if case.config.get("add_cross_attention") and case.head in ("BertModel", "BertLMHeadModel", "BertForMaskedLM"):
        kwargs["encoder_hidden_states"] = torch.randn(batch, 3, case.config["hidden_size"], generator=generator)
    kwargs |= labels
    if choices > 1:
        kwargs = {
            n: v.view(v.shape[0] // choices, choices, *v.shape[1:])
            if isinstance(v, Tensor) and n != "labels" and v.dim() >= 2 and v.shape[0] == batch
            else v
            for n, v in kwargs.items()
        }
    if call.prefix and batch and mask is not None and mask.dim() == 2 and choices == 1:
        kwargs |= _prefix(case, model, batch, length)
    order = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    kwargs = {name: kwargs[name] for name in (*order, *kwargs) if kwargs.get(name) is not None}
    at_padding = any(
        labels[name].shape == real.shape and bool((labels[name] != -100)[~real].any())
        for name in ("labels",)
        if name in labels
    )
    return Inputs(kwargs, real, at_padding)


def _prefix(case: Case, model: nn.Module, batch: int, length: int) -> dict[str, Any]:
    """Keys and values of two tokens before each sequence, as prefix tuning gives them."""
    parameters = inspect.signature(hf.BertModel.forward).parameters
    heads = case.config["num_attention_heads"]
    size = case.config["hidden_size"] // heads
    generator = torch.Generator().manual_seed(case.seed)
    pairs = [
        tuple(torch.randn(batch, heads, PREFIX, size, generator=generator) for _ in range(2))
        for _ in range(case.config["num_hidden_layers"])
    ]
    mask = torch.ones(batch, length + PREFIX, dtype=torch.long)
    return {"cache" if "cache" in parameters else "past_key_values": pairs, "attention_mask": mask}
