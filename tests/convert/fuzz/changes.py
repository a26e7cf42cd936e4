"""What users do to a model between two calls. Each change is done alike to the stock, the optimised and the oracle's model.

A change is a function of a `Subject` and a `Random` that gives every subject the same numbers. Those of CHANGES work on one
model, those of PATCHES on the process, as context managers.
"""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as hf

import bertfast
from fuzz.build import base_of


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
    def base(self) -> hf.BertModel:
        return base_of(self.model)


def checkpoint_layers(model: Any, reentrant: bool) -> None:
    """Gradient checkpointing of each layer, by the method that this transformers does not warn of."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


class NotApplicable(Exception):
    """This model has nothing that the change could be done to."""


def _layer(subject: Subject, random: Random) -> Any:
    layers = subject.base.encoder.layer
    if not len(layers):
        raise NotApplicable
    return layers[random.randrange(len(layers))]


def _linear(subject: Subject, random: Random) -> tuple[nn.Module, str, Any]:
    """A Linear inside a layer: its parent, its name there, itself."""
    layer = _layer(subject, random)
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    path = random.choice((*names, "intermediate.dense", "output.dense"))
    parent, _, name = path.rpartition(".")
    try:
        module = layer.get_submodule(parent)
        linear = getattr(module, name)
    except AttributeError as error:  # something else was put there before
        raise NotApplicable from error
    if not isinstance(linear, nn.Linear):
        raise NotApplicable
    return module, name, linear


def _norm(subject: Subject, random: Random) -> tuple[nn.Module, str, Any]:
    parents = [m for m in subject.base.modules() if isinstance(getattr(m, "LayerNorm", None), nn.LayerNorm)]
    if not parents:
        raise NotApplicable
    parent = parents[random.randrange(len(parents))]
    return parent, "LayerNorm", parent.LayerNorm


def _normal(random: Random, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def _nearby(random: Random, parameter: Tensor) -> Tensor:
    """Other values, of about the same size."""
    return parameter.detach() * 0.5 + _normal(random, parameter) * parameter.detach().float().std(unbiased=False).to(
        parameter.dtype
    )


# Weights


def in_place(subject: Subject, random: Random) -> None:
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.copy_(_nearby(random, parameter))


def one_in_place(subject: Subject, random: Random) -> None:
    parameters = list(subject.model.parameters())
    parameter = parameters[random.randrange(len(parameters))]
    with torch.no_grad():
        parameter.copy_(_nearby(random, parameter))


def load_state_dict(subject: Subject, random: Random) -> None:
    state = {
        name: _nearby(random, value) if value.is_floating_point() else value
        for name, value in subject.model.state_dict().items()
    }
    subject.model.load_state_dict(state)


def load_assigned(subject: Subject, random: Random) -> None:
    state = {
        name: _nearby(random, value) if value.is_floating_point() else value
        for name, value in subject.model.state_dict().items()
    }
    subject.model.load_state_dict(state, assign=True)


def data_assigned(subject: Subject, random: Random) -> None:
    linear = _linear(subject, random)[2]
    for parameter in linear.parameters():
        parameter.data = _nearby(random, parameter)


def data_in_place(subject: Subject, random: Random) -> None:
    linear = _linear(subject, random)[2]
    for parameter in linear.parameters():
        parameter.data.copy_(_nearby(random, parameter))


def replaced_parameter(subject: Subject, random: Random) -> None:
    linear = _linear(subject, random)[2]
    if nn.utils.parametrize.is_parametrized(linear):
        raise NotApplicable
    linear.weight = nn.Parameter(_nearby(random, linear.weight))


def optimizer_step(subject: Subject, random: Random) -> None:
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    if not parameters:
        raise NotApplicable
    for parameter in parameters:
        parameter.grad = _normal(random, parameter) * 0.1
    kind = torch.optim.SGD if random.random() < 0.5 else torch.optim.AdamW
    kind(parameters, lr=0.1).step()


def tied_layers(subject: Subject, random: Random) -> None:
    layers = subject.base.encoder.layer
    if len(layers) < 2:
        raise NotApplicable
    layers[1].output.dense.weight = layers[0].output.dense.weight


def frozen(subject: Subject, random: Random) -> None:
    for parameter in subject.model.parameters():
        parameter.requires_grad_(random.random() < 0.5)


def frozen_part(subject: Subject, random: Random) -> None:
    parts = [subject.base.embeddings, subject.base.encoder, *subject.base.encoder.layer]
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


# Dtypes and lives


def to_dtype(subject: Subject, random: Random) -> None:
    dtype = random.choice((torch.float32, torch.bfloat16, torch.float64))
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


# Buffers and attributes that stock reads


def recycled_positions(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    embeddings.position_ids = embeddings.position_ids % 4 if random.random() < 0.5 else embeddings.position_ids.flip(1)


def positions_in_place(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    embeddings.position_ids = embeddings.position_ids.contiguous()
    embeddings.position_ids[:, 1:] -= 1


def longer_positions(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    size = embeddings.position_embeddings.num_embeddings
    embeddings.position_ids = (torch.arange(size + 20) % size)[None]
    embeddings.token_type_ids = torch.zeros(1, size + 20, dtype=torch.long)


def other_segments(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    last = embeddings.token_type_embeddings.num_embeddings - 1
    embeddings.token_type_ids = torch.full_like(embeddings.position_ids, last)


def segments_in_place(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    last = embeddings.token_type_embeddings.num_embeddings - 1
    if not hasattr(embeddings, "token_type_ids"):
        raise NotApplicable
    embeddings.token_type_ids[:, ::2] = last


def no_segment_buffer(subject: Subject, random: Random) -> None:
    if "token_type_ids" not in subject.base.embeddings._buffers:
        raise NotApplicable
    del subject.base.embeddings.token_type_ids


def table_option(subject: Subject, random: Random) -> None:
    words = subject.base.embeddings.word_embeddings
    if not isinstance(words, nn.Embedding):
        raise NotApplicable
    name, value = random.choice(
        (("padding_idx", 3), ("padding_idx", None), ("max_norm", 0.5), ("scale_grad_by_freq", True), ("sparse", True))
    )
    setattr(words, name, value)


def other_eps(subject: Subject, random: Random) -> None:
    _norm(subject, random)[2].eps = random.choice((0.1, 1e-3))


def other_scaling(subject: Subject, random: Random) -> None:
    _attention(subject, random).scaling *= 0.5


def _attention(subject: Subject, random: Random) -> Any:
    attention = getattr(getattr(_layer(subject, random), "attention", None), "self", None)
    if not isinstance(attention, hf.BertSelfAttention):
        raise NotApplicable
    return attention


def attention_attribute(subject: Subject, random: Random) -> None:
    attention = _attention(subject, random)
    name = random.choice(
        ("num_attention_heads", "attention_head_size", "is_causal", "is_decoder", "layer_idx", "all_head_size")
    )
    value = getattr(attention, name)
    if name == "attention_head_size":
        value = value // 2 if value % 2 == 0 else value
    elif isinstance(value, bool):
        value = not value
    else:
        value = (value or 0) + 1
    setattr(attention, name, value)


def layer_attribute(subject: Subject, random: Random) -> None:
    layer = _layer(subject, random)
    name, value = random.choice(
        (("chunk_size_feed_forward", 1), ("is_decoder", True), ("add_cross_attention", True), ("seq_len_dim", 0))
    )
    setattr(layer, name, value)


def other_rate(subject: Subject, random: Random) -> None:
    dropouts = [m for m in subject.base.modules() if isinstance(m, nn.Dropout)]
    dropouts[random.randrange(len(dropouts))].p = random.choice((0.0, 0.4))


def config_flag(subject: Subject, random: Random) -> None:
    name, value = random.choice(
        (
            ("output_hidden_states", True),
            ("output_attentions", True),
            ("return_dict", False),
            ("is_causal", True),
            ("chunk_size_feed_forward", 2),
            ("tie_last_hidden_states", False),
            ("use_cache", False),
            ("problem_type", "multi_label_classification"),
        )
    )
    setattr(subject.base.config, name, value)


def implementation(subject: Subject, random: Random) -> None:
    subject.base.set_attn_implementation(random.choice(("eager", "sdpa")))


def checkpointing(subject: Subject, random: Random) -> None:
    checkpoint_layers(subject.base, reentrant=random.random() < 0.5)


# Parts replaced


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
    subject.base.encoder.layer.append(_layer(subject, random))


def user_linear(subject: Subject, random: Random) -> None:
    _linear(subject, random)[2].__class__ = Doubled


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
    chosen = _linear(subject, random)[2] if random.random() < 0.6 else _norm(subject, random)[2]
    if nn.utils.parametrize.is_parametrized(chosen):
        raise NotApplicable
    chosen.bias = None


def other_norm(subject: Subject, random: Random) -> None:
    parent, name, norm = _norm(subject, random)
    if norm.weight is None:
        raise NotApplicable
    setattr(parent, name, Rms(norm))


def other_activation(subject: Subject, random: Random) -> None:
    intermediate = _layer(subject, random).intermediate
    if not hasattr(intermediate, "intermediate_act_fn"):
        raise NotApplicable
    intermediate.intermediate_act_fn = random.choice((nn.SiLU(), nn.GELU("tanh"), nn.GELU(), torch.tanh))


def wrapped_part(subject: Subject, random: Random) -> None:
    layer = _layer(subject, random)
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
    subject.base.pooler.activation = nn.ReLU()


def parametrised(subject: Subject, random: Random) -> None:
    linear = _linear(subject, random)[2]
    if type(linear) is not nn.Linear or nn.utils.parametrize.is_parametrized(linear):
        raise NotApplicable
    nn.utils.parametrizations.weight_norm(linear)
    subject.fixed = True  # torch refuses to pickle a parametrised module


def pruned(subject: Subject, random: Random) -> None:
    linear = _linear(subject, random)[2]
    if "weight" not in linear._parameters or linear.weight.dtype is torch.float16:
        raise NotApplicable
    nn.utils.prune.ln_structured(linear, "weight", amount=0.5, n=2, dim=0)
    subject.fixed = True


def lora(subject: Subject, random: Random) -> None:
    import peft

    names = random.choice((["query", "value"], ["dense"], ["query", "key", "value", "dense"]))
    config = peft.LoraConfig(target_modules=names, r=2, lora_alpha=4, init_lora_weights=False)
    if not isinstance(subject.model, hf.BertPreTrainedModel):
        raise NotApplicable
    dtype = next(subject.model.parameters()).dtype
    subject.model = peft.get_peft_model(subject.model, config, autocast_adapter_dtype=False).to(dtype)
    subject.fixed = True


def lora_merged(subject: Subject, random: Random) -> None:
    lora(subject, random)
    subject.model = subject.model.merge_and_unload()


# Hooks and forwards

PLACES = (
    "embeddings",
    "embeddings.word_embeddings",
    "embeddings.LayerNorm",
    "encoder",
    "encoder.layer.0",
    "encoder.layer.0.attention",
    "encoder.layer.0.attention.self",
    "encoder.layer.0.attention.self.value",
    "encoder.layer.0.attention.output.LayerNorm",
    "encoder.layer.0.intermediate",
    "encoder.layer.0.output.dense",
    "pooler",
    "pooler.dense",
    "",
)


def _place(subject: Subject, random: Random) -> nn.Module:
    try:
        module = subject.base.get_submodule(random.choice(PLACES))
    except AttributeError as error:
        raise NotApplicable from error
    if module is None:
        raise NotApplicable
    subject.fixed = True
    return module


def forward_hook(subject: Subject, random: Random) -> None:
    module = _place(subject, random)
    module.register_forward_hook(lambda m, args, output: subject.events.append(("forward", shape_of(output))))


def forward_pre_hook(subject: Subject, random: Random) -> None:
    module = _place(subject, random)
    module.register_forward_pre_hook(lambda m, args: subject.events.append(("before", shape_of(args))))


def layer_pre_hook(subject: Subject, random: Random) -> None:
    layer = _layer(subject, random)
    subject.fixed = True
    layer.register_forward_pre_hook(lambda m, args: subject.events.append("layer"))


def hook_with_kwargs(subject: Subject, random: Random) -> None:
    module = _place(subject, random)
    module.register_forward_hook(
        lambda m, args, kwargs, output: subject.events.append(("kwargs", shape_of(output))), with_kwargs=True
    )


def replacing_hook(subject: Subject, random: Random) -> None:
    module = _place(subject, random)

    def halve(m: nn.Module, args: Any, output: Any) -> Any:
        subject.events.append("halved")
        return output * 0.5 if isinstance(output, Tensor) else None

    module.register_forward_hook(halve)


def replacing_pre_hook(subject: Subject, random: Random) -> None:
    module = _place(subject, random)

    def halve(m: nn.Module, args: Any) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            return (args[0] * 0.5, *args[1:])
        return None

    module.register_forward_pre_hook(halve)


def backward_hook(subject: Subject, random: Random) -> None:
    module = _place(subject, random)
    module.register_full_backward_hook(lambda m, before, after: subject.events.append("backward"))


def tensor_hook(subject: Subject, random: Random) -> None:
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    if not parameters:
        raise NotApplicable
    parameter = parameters[random.randrange(len(parameters))]
    subject.fixed = True
    if random.random() < 0.5:
        parameter.register_hook(lambda grad: grad * 2)
    else:
        parameter.register_post_accumulate_grad_hook(lambda p: subject.events.append("accumulated"))


def hook_on_and_off(subject: Subject, random: Random) -> None:
    module = _place(subject, random)
    module.register_forward_hook(lambda *args: None).remove()
    module.register_full_backward_hook(lambda *args: None).remove()


def replaced_forward(subject: Subject, random: Random) -> None:
    module = _place(subject, random)
    # What transformers before 5.2 leaves on an instance calls the class's forward; so does this, then and later.
    before = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        subject.events.append("replaced")
        output = before(*args, **kwargs)
        return output * 0.5 if isinstance(output, Tensor) else output

    module.forward = forward


def replaced_method(subject: Subject, random: Random) -> None:
    """A method other than forward, on an instance."""
    subject.fixed = True
    if random.random() < 0.5:
        layer = _layer(subject, random)
        if not isinstance(layer, hf.BertLayer):
            raise NotApplicable
        before = layer.feed_forward_chunk
        layer.feed_forward_chunk = lambda x: before(x) * 0.5
        return
    model = subject.base
    if not hasattr(model, "_create_attention_masks"):
        raise NotApplicable
    make = model._create_attention_masks

    def without(**kwargs: Any) -> Any:
        return make(**{**kwargs, "attention_mask": None})

    model._create_attention_masks = without


def shape_of(value: Any) -> Any:
    """Shapes inside a hook's arguments, without the count of tokens, which unpadding may change inside a layer."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(shape_of(v) for v in value)
    return type(value).__name__ if isinstance(value, (str, int, float)) else None


# The process

CLASSES = (
    "BertEmbeddings",
    "BertSelfAttention",
    "BertSelfOutput",
    "BertAttention",
    "BertIntermediate",
    "BertOutput",
    "BertLayer",
    "BertEncoder",
    "BertPooler",
    "BertModel",
    "BertPredictionHeadTransform",
    "BertLMPredictionHead",
    "BertForSequenceClassification",
    "BertForMaskedLM",
    "BertForPreTraining",
)


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
def class_forward(random: Random) -> Iterator[None]:
    kind = getattr(hf, random.choice(CLASSES))
    before = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _halved(before(self, *args, **kwargs))

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = before


@contextmanager
def class_method(random: Random) -> Iterator[None]:
    before = hf.BertLayer.feed_forward_chunk
    hf.BertLayer.feed_forward_chunk = lambda self, x: before(self, x) * 0.5
    try:
        yield
    finally:
        hf.BertLayer.feed_forward_chunk = before


@contextmanager
def activation_forward(random: Random) -> Iterator[None]:
    from transformers.activations import GELUActivation

    before = GELUActivation.forward
    GELUActivation.forward = lambda self, x: before(self, x) * 0.5
    try:
        yield
    finally:
        GELUActivation.forward = before


@contextmanager
def registered_attention(random: Random) -> Iterator[None]:
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
def eager_attention(random: Random) -> Iterator[None]:
    before = hf.eager_attention_forward

    def attention(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        return before(module, query * 0.5, *args, **kwargs)

    hf.eager_attention_forward = attention
    try:
        yield
    finally:
        hf.eager_attention_forward = before


@contextmanager
def mask_function(random: Random) -> Iterator[None]:
    before = hf.create_bidirectional_mask

    def masks(*args: Any, **kwargs: Any) -> Any:
        return before(*args, **{**kwargs, "attention_mask": None})

    hf.create_bidirectional_mask = masks
    try:
        yield
    finally:
        hf.create_bidirectional_mask = before


@contextmanager
def global_hook(random: Random) -> Iterator[None]:
    def halve(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 0.5 if isinstance(module, (nn.LayerNorm, nn.Embedding)) else None

    handle = nn.modules.module.register_module_forward_hook(halve)
    try:
        yield
    finally:
        handle.remove()


Change = Callable[[Subject, Random], None]
CHANGES: dict[str, tuple[Change, float]] = {
    f.__name__: (f, weight)
    for weight, functions in {
        1.0: (
            in_place,
            one_in_place,
            load_state_dict,
            data_assigned,
            data_in_place,
            replaced_parameter,
            optimizer_step,
            frozen,
            frozen_part,
            recycled_positions,
            positions_in_place,
            other_segments,
            segments_in_place,
            attention_attribute,
            layer_attribute,
            config_flag,
            forward_hook,
            forward_pre_hook,
            layer_pre_hook,
            replacing_hook,
            replaced_forward,
            restored_and_back,
            optimised_again,
        ),
        0.6: (
            load_assigned,
            frozen_whole,
            all_trainable,
            resized_vocabulary,
            to_dtype,
            deepcopied,
            pickled,
            table_option,
            other_eps,
            other_scaling,
            other_rate,
            implementation,
            dropped_layer,
            user_linear,
            no_bias,
            other_activation,
            hook_on_and_off,
            backward_hook,
            tensor_hook,
            replacing_pre_hook,
            replaced_method,
        ),
        0.3: (
            tied_layers,
            longer_positions,
            no_segment_buffer,
            checkpointing,
            reordered_layers,
            repeated_layer,
            user_layer,
            other_norm,
            wrapped_part,
            wrapped_layer,
            no_pooler,
            pooler_activation,
            parametrised,
            pruned,
            lora,
            lora_merged,
            hook_with_kwargs,
            restored,
            reported,
        ),
    }.items()
    for f in functions
}
PATCHES = {
    f.__name__: (f, weight)
    for f, weight in (
        (class_forward, 2.0),
        (class_method, 0.4),
        (activation_forward, 0.4),
        (registered_attention, 0.6),
        (eager_attention, 0.4),
        (mask_function, 0.4),
        (global_hook, 0.5),
    )
}
WEIGHTS = {name: weight for table in (CHANGES, PATCHES) for name, (_, weight) in table.items()}
