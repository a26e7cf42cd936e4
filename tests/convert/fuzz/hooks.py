"""Hooks, and forwards and other methods replaced on an instance."""

from random import Random
from typing import Any

from torch import Tensor, nn

from fuzz.subject import NotApplicable, Subject, holder_of, layer_of


def _places(subject: Subject) -> list[str]:
    """Names below the base model: its own parts, and those of its first layer, one of them of each depth."""
    family = subject.family
    names = family.places.names
    first = f"{family.encoder_name}.layer.0"
    inner = [*family.holders, names.attention.value, names.attention.norm, names.mlp.down]
    outer = ["embeddings", "embeddings.word_embeddings", "embeddings.LayerNorm", family.encoder_name, first, ""]
    if family.pooler is not None:
        outer += ["pooler", "pooler.dense"]
    return outer + [f"{first}.{name}" for name in inner]


def _place(subject: Subject, random: Random) -> nn.Module:
    try:
        module = subject.base.get_submodule(random.choice(_places(subject)))
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
    layer = layer_of(subject, random)
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
        holder, name = holder_of(subject, random, subject.family.chunk)
        before = getattr(holder, name, None)
        if before is None:
            raise NotApplicable
        setattr(holder, name, lambda x: before(x) * 0.5)
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
