"""Why a module, or one call of it, cannot take the fast path. Every function returns None or a reason in plain words."""

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import activations

from bertfast import _torch
from bertfast._extras import install
from bertfast.convert import adapters, chunking, installed
from bertfast.convert.plain import hook_reason, module_reason
from bertfast.nn.parts import Kind, below, parts_of
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
_FEW_TOKENS = 48
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


def attention_of(layer: Any) -> Any:
    """The module of a layer that has its heads, or whatever stands in its place."""
    return below(layer, layer.family.attention, _ABSENT)


def config_of(encoder: Any) -> Any:
    """The config that a stack of layers goes by; where it has none itself, that of its first layer's attention."""
    config = getattr(encoder, "config", None)
    if config is not None or not encoder.layer:
        return config
    first = encoder.layer[0]
    return getattr(attention_of(first), "config", None) if hasattr(first, "family") else None


def _activation_of(layer: Any) -> Any:
    holder, _, name = layer.family.activation.rpartition(".")
    module = below(layer, holder, _ABSENT)
    return module._modules.get(name, module.__dict__.get(name))


def kind_of(layer: Any) -> Kind:
    """Heads, scale of the scores and form of GELU of a layer that `layer_reason` found plain."""
    attention = attention_of(layer)
    scale = getattr(attention, "scaling", None)
    size = attention.attention_head_size
    # The heads that stock makes: its forward reads the size of one, and as many follow as the query is wide.
    heads = parts_of(layer).attention.query.weight.shape[0] // size
    return Kind(heads, size**-0.5 if scale is None else scale, approximate_of(_activation_of(layer)) or "none")


def drops(layer: Any) -> bool:
    """Whether any dropout of a layer that `layer_reason` finds plain is on, which may be so outside training."""
    parts = parts_of(layer)
    beside = (low for linear in parts.linears for low in adapters.low_ranks(linear))
    return any(dropout_rate(dropout) > 0.0 for dropout in parts.dropouts) or any(low.rate > 0.0 for low in beside)


def drops_apart(layer: Any) -> bool:
    """Whether the attention of a layer that `layer_reason` finds plain, whose mode says in stock whether probabilities are dropped,
    is in another mode than its Dropout, as where dropout alone is switched on."""
    dropout = parts_of(layer).attention.dropout
    return bool(dropout.p > 0.0 and attention_of(layer).training != dropout.training)


def layer_reason(
    layer: Any,
    device: torch.device,
    dtype: torch.dtype | None = None,
    sharded: bool = False,
    seqlen: int | None = None,
) -> str | None:
    """What about a layer as it stands now keeps it from the fast path on hidden states of `device` and `dtype`.

    sharded: its parameters are whole only when it is called, and of the dtype that `fully_shard` was asked for.
    seqlen: positions of the batch, padding among them; None where it is not asked about.
    """
    family = layer.family
    if getattr(layer, "is_decoder", False) or getattr(layer, "add_cross_attention", False):
        return "it is a decoder layer"
    places, with_bias = family.checked
    dtype = None if sharded else dtype
    for name, kind in places:
        module = below(layer, name, _ABSENT)
        if kind is nn.Linear:
            reason = adapters.product_reason(module, name, device, dtype, sharded)
        else:
            reason = module_reason(module, kind, name, device, dtype, sharded)
        if reason is not None:
            return reason
    reason = chunking.reason(layer, device, seqlen)
    if reason is not None:
        return reason
    activation = _activation_of(layer)
    if approximate_of(activation) is None:
        return f"its activation is {getattr(activation, '__name__', type(activation).__name__)}, not GELU"
    reason = hook_reason(activation, family.activation)
    if reason is not None:
        return reason
    for name in with_bias:
        if adapters.base(below(layer, name, _ABSENT))._parameters["bias"] is None:
            return f"{name} has no bias"
    attention = attention_of(layer)
    outer = below(layer, family.attention.rpartition(".")[0], _ABSENT)
    if getattr(attention, "is_causal", False) or getattr(outer, "is_cross_attention", False):
        return "its attention is causal, or across"
    width = parts_of(layer).attention.query.weight.shape[0]
    if width % attention.attention_head_size or getattr(attention, "all_head_size", width) != width:
        return "its heads do not fill the width of its query"
    if getattr(attention, "num_key_value_groups", 1) != 1:
        return "its keys are shared by groups of heads"
    return implementation_reason(getattr(attention, "config", None))


def implementation_reason(config: Any) -> str | None:
    """An attention function, or the mask made for it, other than the eager one and sdpa."""
    implementation = None if config is None else installed.attention_implementation(config)
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


def few_tokens_reason(layer: Any, x: Tensor) -> str | None:
    """Why training a layer with adapters on a handful of tokens [B, S, E] is stock's: our Python around the products takes longer
    than the fused ops gain (0.87 times the rate of stock on 16 tokens of MiniLM, 0.92 on 32). The same in a pass without
    gradients where dropout is on.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.shape[0] * x.shape[1] >= _FEW_TOKENS:
        return None
    if not adapters.beside(layer) or not (torch.is_grad_enabled() or layer.training or drops(layer)):
        return None
    return "adapters gain nothing in training on a handful of tokens"


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
        return f"the GPU kernels need Triton: {install('gpu')}"
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


def predictions_reason(model: Any, head: Any) -> str | None:
    """What about a model's masked-LM head, as its record (`families.record.MaskedHead`) describes it, keeps it from
    `ops.masked_lm_loss`."""
    dense, decoder = (below(model, name, _ABSENT) for name in (head.dense, head.decoder))
    if type(decoder) is not nn.Linear:
        return f"{head.decoder} is {type(decoder).__name__}, not a plain Linear"
    device, dtype = decoder.weight.device, decoder.weight.dtype
    leaves = ((head.dense, nn.Linear), (head.norm, nn.LayerNorm), (head.decoder, nn.Linear))
    for name, kind in (*head.holders.items(), *leaves):
        reason = module_reason(below(model, name, _ABSENT), kind, name, device, dtype)
        if reason is not None:
            return reason
    for name, module in ((head.dense, dense), (head.decoder, decoder)):
        if module.bias is None:
            return f"{name} has no bias"
    if head.activation is None:
        return None
    activation = activation_of(model, head)
    if approximate_of(activation) is None:
        return (
            f"the activation of its transform is {getattr(activation, '__name__', type(activation).__name__)}, not GELU"
        )
    return hook_reason(activation, head.activation)


def activation_of(model: Any, head: Any) -> Any:
    """The activation module or function of a masked-LM head that has one."""
    holder, _, name = head.activation.rpartition(".")
    return getattr(below(model, holder, _ABSENT) if holder else model, name, None)


def embeddings_reason(module: Any) -> str | None:
    """What about embeddings as they stand now keeps them from the fast path."""
    family = module.family
    device = getattr(getattr(module.word_embeddings, "weight", None), "device", None)
    names = ["word_embeddings", "position_embeddings"]
    names += ["token_type_embeddings"] if family.segments else []
    names += ["task_type_embeddings"] if getattr(module, "use_task_id", False) else []
    for name in names:
        table = getattr(module, name, None)
        reason = module_reason(table, nn.Embedding, name, device)
        if reason is not None:
            return reason
        if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
            return f"{name} uses max_norm, scale_grad_by_freq or sparse gradients"
        if name.endswith("type_embeddings") and table.padding_idx is not None:
            return f"{name} has a padding_idx"
    if len({getattr(module, name).weight.dtype for name in names}) > 1:
        return "the tables have several dtypes"
    if "task_type_embeddings" in module._modules and "task_type_embeddings" not in names:
        return "use_task_id is off, and there is a table of tasks"
    if family.positions_follow_tokens and type(getattr(module, "padding_idx", None)) is not int:
        return f"padding_idx is {getattr(module, 'padding_idx', None)}"
    if "create_position_ids_from_input_ids" in module.__dict__:
        return "its create_position_ids_from_input_ids was replaced"
    buffers = [] if family.positions_follow_tokens else ["position_ids"]
    # Stock gathers from the second only where it is there.
    buffers += ["token_type_ids"] if family.segments and hasattr(module, "token_type_ids") else []
    for name in buffers:
        buffer = getattr(module, name, None)
        if not isinstance(buffer, Tensor):
            return f"{name} is {type(buffer).__name__}, not a tensor"
        if buffer.dtype != torch.int64 or buffer.dim() != 2 or buffer.device != device:
            return f"{name} is {buffer.dtype} {tuple(buffer.shape)} on {buffer.device}"
    norm, dropout = module.LayerNorm, module.dropout
    return module_reason(norm, nn.LayerNorm, "LayerNorm", device) or module_reason(
        dropout, nn.Dropout, "dropout", device
    )


def projection_reason(model: Any) -> str | None:
    """What about the product between a model's embeddings and its layers, where it has one, keeps it from being run uncalled."""
    name = model.family.projection
    projection = None if name is None else model._modules.get(name)
    if projection is None:
        return None
    word = model._modules["embeddings"].word_embeddings.weight
    return module_reason(projection, nn.Linear, str(name), word.device, word.dtype)
