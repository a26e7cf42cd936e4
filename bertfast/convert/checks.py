"""Why a module, or one call of it, cannot take the fast path. Every function returns None or a reason in plain words."""

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import activations
from transformers.models.bert import modeling_bert as hf

from bertfast import _torch
from bertfast.convert import installed
from bertfast.nn.parts import HOLDERS, NAMES, Kind, below, parts_of
from bertfast.nn.plain import dropout_rate
from bertfast.triton import faster, verified

# Activation classes of transformers to the `approximate` argument of GELU; not every 5.x release has all of them.
_ACTIVATIONS = {
    getattr(activations, name): approximate
    for name, approximate in (("GELUActivation", "none"), ("GELUTanh", "tanh"), ("NewGELUActivation", "tanh"))
    if hasattr(activations, name)
}

# What a GELU class of transformers may hold as `act`: functions of torch, or its own method in plain Python.
_OWN_METHODS = frozenset({"_gelu_python", "_gelu_tanh_python"})
_ABSENT = nn.Module()
TURN_ON = "bertfast.optimize(model, gpu_kernels=True) turns the kernels on"

KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


# Arguments that no layer reads: of Trainer, of the recorders around a call, positions, which flash attention alone reads, and what
# goes with a cache (cache_position up to transformers 5.2), which is an argument of its own.
UNREAD = frozenset(
    {
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_cache",
        "cache_position",
        "position_ids",
    }
)


def environment_reason() -> str | None:
    """What about this process, no module's own, makes stock's code the one that counts."""
    if installed.is_exporting():
        return "a trace or an export keeps torch's own operators"
    if _torch.has_global_hooks():
        return "global module hooks are registered"
    return installed.replaced_code()


def argument_reason(arguments: dict[str, Any] | None, known: frozenset[str]) -> str | None:
    """An argument that bertfast does not know, stock may; `arguments` are None where they do not fit stock's signature."""
    if arguments is None:
        return "the arguments do not fit"
    name = installed.unknown(arguments, known)
    return None if name is None else f"{name} was given"


def _foreign(hooks: dict[int, Any]) -> bool:
    """Whether any hook is not the one transformers leaves on modules after the first recorded call."""
    return not all(map(installed.is_recorder, hooks.values()))


def hook_reason(module: nn.Module, name: str) -> str | None:
    """A user's hooks, or a patched forward, on `module` itself."""
    if (
        module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or (module._forward_hooks and _foreign(module._forward_hooks))
    ):
        return f"{name} has hooks"
    own = module.__dict__.get("forward")
    # transformers 5.0 and 5.1 set `forward` while they record, and leave the class's own one on the instance afterwards.
    if own is not None and getattr(own, "__func__", None) is not type(module).forward:
        return f"the forward of {name} was replaced"
    return None


def _plain(module: Any, kind: type, name: str, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """`module` is exactly `kind`, unhooked, and its parameters are ordinary tensors on `device`, of `dtype` where given."""
    if type(module) is not kind:
        found = type(module)
        # An adapter may have the name of what it wraps, as LoRA's Linear has.
        said = found.__name__ if found.__name__ != kind.__name__ else f"{found.__module__}.{found.__name__}"
        return f"{name} is {said}, not a plain {kind.__name__}"
    reason = hook_reason(module, name)
    if reason is not None:
        return reason
    for parameter in module._parameters.values():
        if parameter is None:
            continue
        if type(parameter) not in (nn.Parameter, Tensor) or parameter.device != device:
            where = f"on the {parameter.device.type} device" if parameter.device != device else type(parameter).__name__
            return f"the weights of {name} are {where}"
        if dtype is not None and parameter.dtype != dtype:
            return f"the weights of {name} are {parameter.dtype} where hidden states are {dtype}"
    if kind is nn.Dropout and module.p >= 1.0:
        return f"{name} drops everything"
    if kind is nn.LayerNorm:
        if module.weight is None or module.bias is None:
            return f"{name} has no weight or no bias"
        if tuple(module.normalized_shape) != tuple(module.weight.shape) or module.weight.dim() != 1:
            return f"{name} normalises over {tuple(module.normalized_shape)}"
    return None


def approximate_of(activation: Any) -> str | None:
    """The `approximate` of a GELU, "none" or "tanh"; None for any other activation, one whose function was replaced too."""
    if type(activation) is nn.GELU:
        return activation.approximate
    approximate = _ACTIVATIONS.get(type(activation))
    act = activation.__dict__.get("act") if approximate is not None else None
    if act is None:  # it has its formula in its forward
        return approximate
    if isinstance(act, functools.partial):
        return approximate if (act.func, act.args, act.keywords) == (F.gelu, (), {"approximate": approximate}) else None
    if act is F.gelu:
        return approximate if approximate == "none" else None
    is_own = getattr(act, "__self__", None) is activation and act.__name__ in _OWN_METHODS
    return approximate if is_own else None


def kind_of(layer: Any) -> Kind:
    """Heads, scale of the scores and form of GELU of a BertLayer that `layer_reason` found plain."""
    children = layer._modules
    attention = children["attention"]._modules["self"]
    activation = children["intermediate"]._modules["intermediate_act_fn"]
    return Kind(heads_of(attention), attention.scaling, approximate_of(activation) or "none")


def heads_of(attention: Any) -> int:
    """The heads that stock makes: its forward reads the size of one, and as many follow as the query is wide."""
    return attention._modules["query"].weight.shape[0] // attention.attention_head_size


def drops(layer: Any) -> bool:
    """Whether any dropout of a BertLayer that `layer_reason` finds plain is on, which may be so outside training."""
    return any(dropout_rate(dropout) > 0.0 for dropout in parts_of(layer).dropouts)


# What must stand at each place below a layer for the fused code to take its place: holders first, since one that was replaced may
# lack what is below.
_HOLDERS = (hf.BertAttention, hf.BertSelfAttention, hf.BertSelfOutput, hf.BertIntermediate, hf.BertOutput)
_LEAVES = ((NAMES.linears, nn.Linear), (NAMES.norms, nn.LayerNorm), (NAMES.dropouts, nn.Dropout))
_PLACES: tuple[tuple[str, type[nn.Module]], ...] = (
    *zip(HOLDERS, _HOLDERS, strict=True),
    *((name, kind) for names, kind in _LEAVES for name in names),
)
_WITH_BIAS = (*NAMES.linears[:3], NAMES.mlp.up)


def layer_reason(layer: Any, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """What about a BertLayer as it stands now keeps it from the fast path on hidden states of `device` and `dtype`."""
    if layer.is_decoder or layer.add_cross_attention:
        return "it is a decoder layer"
    if "feed_forward_chunk" in layer.__dict__:
        return "its feed_forward_chunk was replaced"
    if layer.chunk_size_feed_forward:
        return "chunk_size_feed_forward is set"
    for name, kind in _PLACES:
        reason = _plain(below(layer, name, _ABSENT), kind, name, device, dtype)
        if reason is not None:
            return reason
    attention, intermediate = layer._modules["attention"], layer._modules["intermediate"]
    activation = intermediate._modules.get("intermediate_act_fn", intermediate.__dict__.get("intermediate_act_fn"))
    if approximate_of(activation) is None:
        return f"its activation is {getattr(activation, '__name__', type(activation).__name__)}, not GELU"
    reason = hook_reason(activation, "intermediate.intermediate_act_fn")
    if reason is not None:
        return reason
    for name in _WITH_BIAS:
        if below(layer, name, _ABSENT)._parameters["bias"] is None:
            return f"{name} has no bias"
    projections = attention._modules["self"]
    if projections.is_causal or getattr(attention, "is_cross_attention", False):
        return "its attention is causal, or across"
    if projections._modules["query"].weight.shape[0] % projections.attention_head_size:
        return "its heads do not fill the width of its query"
    if getattr(projections, "num_key_value_groups", 1) != 1:
        return "its keys are shared by groups of heads"
    return implementation_reason(projections.config)


def implementation_reason(config: Any) -> str | None:
    """An attention function, or the mask made for it, other than the eager one and sdpa."""
    implementation = installed.attention_implementation(config)
    if implementation not in ("eager", "sdpa", None):
        return f'its attention implementation is "{implementation}"'
    return None


def attentions_reason(config: Any, arguments: dict[str, Any]) -> str | None:
    """Whether the call asks for attention probabilities, which the fused code never makes."""
    # Arguments and config too: when backward repeats a checkpointed layer, transformers no longer records.
    if (
        arguments.get("output_attentions")
        or getattr(config, "output_attentions", False)
        or "attentions" in installed.recorded(config, arguments)
    ):
        return "attentions were asked for"
    return None


@functools.cache
def architecture(index: int | None) -> int:
    """The architecture of a GPU, such as 90; of the current one where `index` is None."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@functools.cache
def gpu_reason(
    index: int | None, gpu_kernels: bool | None, *, captured: bool, dtype: torch.dtype, train: bool = False
) -> str | None:
    """Why a call on a GPU stays stock, whatever its size. Asked for every layer.

    Args:
        index: of the GPU.
        gpu_kernels: the option of `optimize`.
        captured: whether the call is whole inference, which one CUDA graph holds, or all layers in training, which two do.
        dtype: of the products.
        train: whether it is training.
    """
    if gpu_kernels is False:
        return "gpu_kernels=False"
    if importlib.util.find_spec("triton") is None:
        return "the GPU kernels need Triton: pip install 'bertfast[gpu]'"
    if gpu_kernels:
        return None
    arch = architecture(index)
    unverified = verified.default_gate(arch)
    if unverified:
        state = f"{', '.join(unverified)} not verified on sm_{arch}, for which torch's own functions would step in"
        reason = f"the GPU kernels are off by default ({state})"
    elif not captured:
        which = "whole inference calls, and all layers in training,"
        reason = f"on a GPU only {which} are captured; eager calls launch more slowly than the GPU computes"
    else:
        reason = faster.dtype_reason(arch, dtype, train) or ""
    return f"{reason}: {TURN_ON}" if reason else None


def tensor_reason(
    x: Tensor, gpu_kernels: bool | None = None, captured: bool = False, train: bool = False
) -> str | None:
    """Device and dtype that the kernels take; other dtypes are faster in stock PyTorch than in our references.

    captured, train: whether a call on a GPU would be one captured call, and that one of training.
    """
    kind = x.device.type
    if kind not in KERNEL_DTYPES:
        return f"no kernels exist for the {kind} device"
    if x.dtype not in KERNEL_DTYPES[kind]:
        names = [str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES[kind]]
        return f"hidden states are {x.dtype}; the kernels take {', '.join(names[:-1])} and {names[-1]}"
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if dtype not in KERNEL_DTYPES[kind]:
        return f"autocast is to {dtype}"
    if kind == "cuda":
        reason = gpu_reason(x.device.index, gpu_kernels, captured=captured, dtype=dtype, train=train)
        if reason is not None:
            return reason
    if type(x) not in (Tensor, nn.Parameter) and not torch.compiler.is_compiling():
        return f"hidden states are {type(x).__name__}"
    if not torch.compiler.is_compiling() and _torch.is_transformed():
        return "a functorch transform is active"
    return None


def mask_reason(mask: Any, x: Tensor, implementation: str) -> str | None:
    """Masks that `ops.attention_padded` treats as transformers' own attention would."""
    if mask is None:
        return None
    if type(mask) not in (Tensor, nn.Parameter) and not torch.compiler.is_compiling():
        return f"the attention mask is {type(mask).__name__}"
    if mask.dim() != 4:
        return f"the attention mask that reached the encoder has {mask.dim()} dimensions, not 4"
    if any(size not in (1, wanted) for size, wanted in zip(mask.shape[2:], (x.shape[1],) * 2, strict=True)) or (
        mask.shape[0] not in (1, x.shape[0])
    ):
        return f"the attention mask has shape {tuple(mask.shape)}"
    if mask.requires_grad:
        return "the attention mask needs a gradient"
    if mask.dtype == torch.bool:
        # Eager attention adds a boolean mask as 0 and 1, which masks nothing: stock behaviour, so stock code.
        return "a boolean 4-D mask under eager attention" if implementation == "eager" else None
    return None if mask.is_floating_point() else f"the attention mask is {mask.dtype}"


def key_padding(mask: Tensor | None, batch: int, seqlen: int) -> Tensor | None:
    """The real tokens [B, S] that a 4-D mask describes, if it is the same for every query and head and only masks or not."""
    if mask is None or mask.shape[1] != 1:
        return None
    if mask.shape[2] != 1 and mask.stride(2) != 0 and not torch.equal(mask, mask[:, :, :1].expand_as(mask)):
        return None
    row = mask[:, 0, 0, :]
    if mask.dtype != torch.bool:
        real = row == 0
        if not bool((real | (row <= torch.finfo(row.dtype).min / 2)).all()):
            return None
        row = real
    return row.expand(batch, seqlen)


def predictions_reason(head: Any, kind: type) -> str | None:
    """What about a masked-LM head, `kind` holding BertLMPredictionHead, keeps it from `ops.masked_lm_loss`."""
    predictions = getattr(head, "predictions", _ABSENT)
    transform, decoder = (predictions._modules.get(name, _ABSENT) for name in ("transform", "decoder"))
    dense, norm = (transform._modules.get(name, _ABSENT) for name in ("dense", "LayerNorm"))
    activation = getattr(transform, "transform_act_fn", None)
    if type(decoder) is not nn.Linear:
        return f"cls.predictions.decoder is {type(decoder).__name__}, not a plain Linear"
    device, dtype = decoder.weight.device, decoder.weight.dtype
    for module, wanted, name in (
        (head, kind, "cls"),
        (predictions, hf.BertLMPredictionHead, "cls.predictions"),
        (transform, hf.BertPredictionHeadTransform, "cls.predictions.transform"),
        (dense, nn.Linear, "cls.predictions.transform.dense"),
        (norm, nn.LayerNorm, "cls.predictions.transform.LayerNorm"),
        (decoder, nn.Linear, "cls.predictions.decoder"),
    ):
        reason = _plain(module, wanted, name, device, dtype)
        if reason is not None:
            return reason
    if dense.bias is None or decoder.bias is None:
        return f"cls.predictions.{'transform.dense' if dense.bias is None else 'decoder'} has no bias"
    if approximate_of(activation) is None:
        return (
            f"the activation of its transform is {getattr(activation, '__name__', type(activation).__name__)}, not GELU"
        )
    return hook_reason(activation, "cls.predictions.transform.transform_act_fn")


def embeddings_reason(module: Any) -> str | None:
    """What about a BertEmbeddings as it stands now keeps it from the fast path."""
    device = getattr(getattr(module.word_embeddings, "weight", None), "device", None)
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(module, name)
        reason = _plain(table, nn.Embedding, name, device)
        if reason is not None:
            return reason
        if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
            return f"{name} uses max_norm, scale_grad_by_freq or sparse gradients"
        if name != "word_embeddings" and table.padding_idx is not None:
            return f"{name} has a padding_idx"
    if (
        not module.word_embeddings.weight.dtype
        == module.position_embeddings.weight.dtype
        == module.token_type_embeddings.weight.dtype
    ):
        return "the tables have several dtypes"
    for name in ("position_ids", "token_type_ids"):
        # Stock gathers from the second only where it is there.
        buffer = getattr(module, name, None)
        if buffer is None and name == "token_type_ids" and not hasattr(module, name):
            continue
        if not isinstance(buffer, Tensor):
            return f"{name} is {type(buffer).__name__}, not a tensor"
        if buffer.dtype != torch.int64 or buffer.dim() != 2 or buffer.device != device:
            return f"{name} is {buffer.dtype} {tuple(buffer.shape)} on {buffer.device}"
    norm, dropout = module.LayerNorm, module.dropout
    return _plain(norm, nn.LayerNorm, "LayerNorm", device) or _plain(dropout, nn.Dropout, "dropout", device)
