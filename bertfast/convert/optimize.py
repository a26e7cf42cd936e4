"""optimize() and restore(): swap classes in place, and swap them back."""

import warnings
from typing import Any, TypeVar

import torch
from torch import nn

from bertfast import _ext, _torch, graphs
from bertfast.convert import accumulation, counts, installed, options, sentences, trial, verdicts
from bertfast.convert.accumulation import FastAveragedHead
from bertfast.convert.encoder import FastEncoder
from bertfast.convert.families import averaged_class, fast_class, masked_class, of, of_instance, stock_class
from bertfast.convert.masked_heads import FastMaskedHead
from bertfast.convert.refusals import known, refusal
from bertfast.graphs import Limits
from bertfast.nn import fp8_state
from bertfast.nn import prepack as prepack_cache
from bertfast.ops import packed_linear

Model = TypeVar("Model", bound=nn.Module)


class UnsupportedModelError(ValueError):
    """The model holds nothing that optimize() knows, or something it would compute wrongly."""


def _is_decoder(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    return bool(getattr(module, "is_decoder", False) or getattr(config, "is_decoder", False))


def _heads(model: nn.Module, required: bool) -> list[nn.Module]:
    """The pre-training heads inside, stock or swapped; an error where `required` and there is none."""
    heads = [m for m in model.modules() if masked_class(m) is not None]
    heads = [head for head in heads if not _is_decoder(head)]
    if required and not heads:
        raise UnsupportedModelError(
            f"masked_head=True needs a masked-LM or pre-training head, and {type(model).__name__} holds none that bertfast knows "
            "(a subclass may compute another loss): leave the option out. The model was not changed."
        )
    return heads


def _labelled_heads(model: nn.Module, required: bool) -> list[nn.Module]:
    """The heads inside with a loss over labels, stock or swapped; an error where `required` and there is none."""
    heads = [
        module
        for module in model.modules()
        if of(type(module)) is not None
        and not _is_decoder(module)
        and installed.averages_over_labels(stock_class(module) or type(module))
    ]
    if required and not heads:
        raise UnsupportedModelError(
            f"average_over_accumulation=True needs a head whose loss is a mean over labels, and {type(model).__name__} holds none "
            "that bertfast knows (a subclass may compute another loss): leave the option out. The model was not changed."
        )
    return heads


def _swap(module: nn.Module, target: type[nn.Module]) -> None:
    for part in module.modules():
        installed.drop_recorder(part)
    module.__class__ = target


def _check_dtype(dtype: str | None, prepack: bool) -> None:
    if dtype not in (None, "int8"):
        raise ValueError(
            f'dtype must be None (the model\'s own) or "int8", got {dtype!r}; for bfloat16 call model.to(torch.bfloat16) first'
        )
    if dtype == "int8" and not prepack:
        raise ValueError('dtype="int8" keeps 8-bit copies of the weights: leave prepack=True')
    if dtype == "int8" and not packed_linear.available(torch.float32, 4, int8=True):
        reason = _ext.why_absent() or "the int8 kernels need AVX512-VNNI and AVX512-BF16, which this processor lacks"
        raise ValueError(f'dtype="int8" cannot be had: {reason}')


def _check_precision(precision: str | None, dtype: str | None, gpu_kernels: bool | None) -> None:
    if precision not in (None, "fp8"):
        raise ValueError(f'precision must be None (the model\'s own) or "fp8", got {precision!r}')
    if precision is None:
        return
    if dtype is not None:
        raise ValueError(f'precision="fp8" is for GPUs and dtype="{dtype}" for CPUs: leave one of them out')
    if gpu_kernels is False:
        raise ValueError(
            'precision="fp8" is in the GPU kernels, which gpu_kernels=False switches off: leave one of them out'
        )
    reason = fp8_state.unavailable()
    if reason is not None:
        raise ValueError(
            f'precision="fp8" cannot be had: {reason}. It needs an NVIDIA GPU of sm_89 (Ada, Hopper) or newer; leave it out, and '
            "call model.to(torch.bfloat16) for the fastest way here"
        )


def optimize(
    model: Model,
    *,
    strict: bool = True,
    unpad: bool = True,
    prepack: bool = True,
    masked_head: bool = False,
    average_over_accumulation: bool = False,
    dtype: str | None = None,
    gpu_kernels: bool | None = None,
    precision: str | None = None,
    max_graphs: int = Limits.max_graphs,
    max_graph_bytes: int = Limits.max_bytes,
) -> Model:
    """Swap the encoder layers inside `model` for fused ones, in place.

    Works on every head class of the families that it knows (`bertfast.convert.families`) in transformers 5.x, and on modules that
    hold one (sentence-transformers, PEFT, your own). Weights, names and hooks stay as they are; calls that the fast path cannot
    take go to the stock code, and `report(model)` says why. Decoder layers are left untouched, and reported. Calling it twice is
    the same as calling it once with the later options.

    Args:
        model: any module with such an encoder inside. On a CPU the kernels take float32 and bfloat16, on a GPU float16 as well.
        strict: raise an error for a model that bertfast does not take. False returns it as it is, so that a caller may try any
            model; `report` says why.
        unpad: compute real tokens only. Hidden states at padding positions are then zeros, as with transformers' flash
            attention; heads that would read them (a pooler under left padding; with gradients enabled the losses of
            question answering and causal language modelling heads) stay padded.
        prepack: keep reordered copies of the weights for inference on a CPU. They take as much memory as the encoder's
            Linear weights (twice that where calls for the hidden states of every layer alternate with others), follow
            changes of the weights, and go with `restore` or the model. An edit of a few elements through `.data`, which
            torch does not count as a change, can be missed: call `optimize` again after it.
        masked_head: in training, make the logits of the masked tokens only. Pre-training and masked-LM heads then
            return None for `prediction_logits` or `logits` while the model is in training mode and labels are given; the loss
            is stock's mean over the labels other than -100, in float32, except that a batch without any counts 0 where stock
            gives NaN. What nobody reads of the last layer is not computed either. Evaluation,
            calls without labels, and calls that ask for hidden states, attentions or a tuple return all logits as ever.
        average_over_accumulation: where the caller gives `num_items_in_batch`, as Trainer does, divide the loss of a head over
            labels by it: the losses of a step's micro-batches then add up to the mean over all its labels (tokens, or samples), and
            gradients do not depend on how a step is cut. The stock heads ignore the number and average over each micro-batch, so
            that gradients at four accumulated micro-batches are four times as large; False, the default, does what they do.
            Causal language models divide already; question answering has no labels that Trainer could count, and it divides their
            loss itself. Of a pre-training head the next sentence loss is weighed by masked tokens too.
        dtype: "int8" multiplies 8-bit integers in inference on a CPU: the encoder's weights are rounded with one scale for
            each output, its activations with one for each token, found at each product. Weights stay as they are; training,
            and dropout or gradients in general, use them. Not the same numbers any more: compare before you trust it.
            None, the default, computes in the model's own dtype.
        gpu_kernels: on a GPU, True takes the fast path in every call and False in none. None, the default, takes it where the
            kernels of every op that it needs are verified on that architecture, in whole inference calls and in training's
            layers forward and backward, which run from CUDA graphs, in dtypes and sizes that no committed line shows slower than
            stock; all else stays stock, and `report` says so.
            Ops whose kernels never passed parity on such a GPU are computed by torch's own functions. No effect on a CPU.
        precision: "fp8" multiplies in FP8 on a GPU of sm_89 (Ada, Hopper) or newer, wherever the fast path multiplies in bfloat16:
            the model's own or autocast's. In inference weights have a scale for each output and activations one for each token; in
            training scales follow earlier steps, and the last layer stays in bfloat16. Not the same numbers any more: compare
            before you trust it (docs/fp8.md). Weights stay as they are. None, the default, never does. Where no GPU here can, an
            error; a model that is on a CPU meanwhile computes as without it, and `report` names what else keeps it from FP8.
        max_graphs: how many captured calls each base model inside may keep, of inference and of training together, one for each
            bucket of sizes; the least recently used goes first. 0 for none: calls then launch kernel by kernel, which only
            `gpu_kernels=True` takes.
        max_graph_bytes: device memory that these graphs may hold, in bytes; 4 GiB by default.

    Returns:
        `model` itself.

    Raises:
        TypeError: where `model` is no module.
        ValueError: for another `dtype`, for "int8" with `prepack=False`, or where this processor has no int8 kernels; for
            another `precision`, for "fp8" with `dtype="int8"` or `gpu_kernels=False`, or where no GPU here has FP8 products; for
            another `max_graphs` or `max_graph_bytes` than an integer of 0 or more, or another `gpu_kernels`.
        UnsupportedModelError: where nothing inside belongs to a family that bertfast knows, unless `strict` is False; where
            positions are relative, or parameters are sharded already; where `masked_head` is asked for and no such head is inside.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bertfast.optimize takes a torch.nn.Module, got {type(model).__name__}")
    _check_dtype(dtype, prepack)
    _check_precision(precision, dtype, gpu_kernels)
    for name, number in (("max_graphs", max_graphs), ("max_graph_bytes", max_graph_bytes)):
        if type(number) is not int or number < 0:
            raise ValueError(f"{name} must be an integer of 0 or more, got {number!r}")
    if not any(gpu_kernels is choice for choice in (None, True, False)):
        raise ValueError(f"gpu_kernels must be True, False or None, got {gpu_kernels!r}")
    if trial.is_here():
        return model
    reason = refusal(model)
    if reason is not None:
        if strict:
            raise UnsupportedModelError(
                f"{reason}. The model was not changed; strict=False returns such a model as it is."
            )
        return model
    heads = _heads(model, masked_head and strict)
    _labelled_heads(model, average_over_accumulation and strict)
    for family in dict.fromkeys(filter(None, (of(type(module)) for module in known(model)))):
        reason = trial.run(family, _swap_for_trial)
        if reason is not None:
            warnings.warn(f"bertfast: {reason}", stacklevel=2)
            return restore(model)
    common: dict[str, Any] = {"prepack": prepack, "gpu_kernels": gpu_kernels}
    if dtype == "int8":
        common["int8"] = True
    if precision is not None:
        common["precision"] = precision
    if average_over_accumulation:
        common[accumulation.NAME] = True
    common |= {"max_graphs": max_graphs, "max_graph_bytes": max_graph_bytes}
    _swap_in(model, heads, masked_head, unpad, common)
    sentences.swap(model)
    _forget(model)  # made again when first needed, whatever happened to the weights
    return model


def _forget(model: nn.Module) -> None:
    """Let go of all that was found out of a model and made of its weights."""
    verdicts.forget(model)
    graphs.clear(model)
    prepack_cache.clear(model)


def _swap_for_trial(model: nn.Module, masked_head: bool) -> None:
    _swap_in(model, _heads(model, masked_head), masked_head, True, {"prepack": True})


def _swap_in(model: nn.Module, heads: list[nn.Module], masked_head: bool, unpad: bool, common: dict[str, Any]) -> None:
    """Give every known module its fast class, and its options; decoders stay as they are."""
    encoder_options: dict[nn.Module, dict[str, bool]] = {}
    for module in model.modules():
        for stack, name in _read_by(module):
            encoder_options.setdefault(stack, {})[name] = True
    for module in known(model):
        if _is_decoder(module):
            continue
        _swap(module, fast_class(module) or type(module))
        own = {"unpad": unpad, **encoder_options.get(module, {})} if isinstance(module, FastEncoder) else {}
        options.give(module, {**common, **own})
    for head in heads:
        _swap(head, (masked_class(head) if masked_head else stock_class(head)) or type(head))
        options.drop(head)
        if masked_head:
            options.give(head, {name: common[name] for name in ("gpu_kernels", accumulation.NAME) if name in common})
    for head in _labelled_heads(model, False):
        target = averaged_class(head)
        if target is None or isinstance(head, FastMaskedHead):  # others go by the option that they have got
            continue
        if accumulation.NAME in common:
            _swap(head, target)
            options.give(head, {accumulation.NAME: True})
        elif isinstance(head, FastAveragedHead):
            _swap(head, stock_class(head) or type(head))
            options.drop(head)


def _read_by(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """What a base model or a head, a user's subclass as well, reads of a stack of layers: the stack, and the name of its option."""
    family = of_instance(module)
    if family is None:
        return []
    if isinstance(module, family.model):
        pooler = getattr(module, "pooler", None)
        return [] if pooler is None else [(family.encoder_of(module), "first_token_read")]
    base: Any = getattr(module, "base_model", None)
    if not isinstance(base, family.model):
        return []
    reads = []
    if isinstance(module, family.first_token_heads):
        reads.append((family.encoder_of(base), "first_token_read"))
    if isinstance(module, family.summary_heads):
        reads_first = module.sequence_summary.summary_type == "first"
        reads.append((family.encoder_of(base), "first_token_read" if reads_first else "padding_read"))
    if isinstance(module, family.losses_over_padding):
        reads.append((family.encoder_of(base), "loss_over_padding"))
    return reads


def restore(model: Model) -> Model:
    """Undo `optimize` exactly: stock classes, no options, no copies of weights. A model never optimised is left alone.

    Raises:
        TypeError: where `model` is no module.
        UnsupportedModelError: where a swapped module was sharded since; nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bertfast.restore takes a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if stock_class(module) is not None and _torch.is_sharded(module):
            raise UnsupportedModelError(
                f"{name or type(module).__name__} was sharded after bertfast.optimize, and fully_shard has made a class of its own "
                "for it: call bertfast.restore before fully_shard, or load its state dict into a new model"
            )
    _forget(model)
    for module in model.modules():
        stock = stock_class(module) or sentences.stock_class(module)
        if stock is not None:
            _swap(module, stock)
            options.drop(module)
            counts.forget(module)
    return model
