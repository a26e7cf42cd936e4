"""`attn_implementation="bertfast"`: the fused attention alone, for encoders whose layers `optimize` does not know.

transformers calls what is registered under a name as f(module, query, key, value, mask, dropout=..., scaling=...), with query, key
and value [B, H, S, D], and takes [B, S, H, D] back. What the kernels do not compute, or not faster, goes to the function registered
as "sdpa", with the same mask. Both a function and a mask are registered: under a name without a mask transformers makes none, and
padding is attended to.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bertfast import _ext, ops
from bertfast.convert import checks, counts, installed
from bertfast.ops.rng import new_rng

NAME = installed.OWN_ATTENTION
_FUNCTIONS, _MASKS = AttentionInterface(), AttentionMaskInterface()  # views of what is registered now
_LARGEST_HEAD = 256  # csrc/cpu/attention.h
# Below these sizes the copy into one tensor and the checks cost what the kernels gain, and torch's function runs.
_SHORTEST_FLOAT32 = 192
_SHORTEST_PACKED = 64
_FEWEST_TOKENS = 32
# What sdpa does not read either: what a sliding window excludes is in the mask, and flash attention alone reads positions.
_UNREAD = (checks.UNREAD - {"output_attentions"}) | {"sliding_window", "deterministic"}
# What changes the result and is in neither our kernels nor torch's.
_NOT_COMPUTED = ("softcap", "s_aux", "sinks")
_unpad = True


def register_attention(*, unpad: bool = True) -> None:
    """Register `"bertfast"` with transformers, as a name that `attn_implementation` takes.

        bertfast.register_attention()
        model = AutoModel.from_pretrained(folder, attn_implementation="bertfast")  # or model.set_attn_implementation("bertfast")

    Models that `optimize` knows gain more from it: this replaces attention alone. It may be called again; the last options count,
    for all models. `report(model)` tells which attention modules were called, and why calls went to torch's own function ("sdpa"):
    causal or cross attention, position bias, short float32 batches, other devices than a CPU, and more (docs/drop_in.md).

    Args:
        unpad: leave padding out where a quarter of the batch or more is padding and every sequence begins with a token. The output
            at padding is then zeros, as with transformers' flash attention. False computes what sdpa does there.

    Raises:
        TypeError: where `unpad` is no bool.

    Calls of a model raise ValueError where it asks for what neither torch's function nor ours computes (soft caps, attention
    sinks), and where transformers refuses sdpa to it.
    """
    global _unpad
    if not isinstance(unpad, bool):
        raise TypeError(f"bertfast.register_attention: unpad must be True or False, got {unpad!r}")
    _unpad = unpad
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, padding_mask)


def padding_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask that transformers asks for: sdpa's, except that padding alone stays one row for all queries, [B, 1, Q, K] expanded.

    sdpa's has the same elements, made Q times over, and not to be told from other masks.
    """
    padding: Any = kwargs.get("attention_mask")
    keys, queries = kwargs.get("kv_length"), kwargs.get("q_length")
    if queries is None and "cache_position" in kwargs:  # up to transformers 5.2
        queries = len(kwargs["cache_position"])
    is_padding_alone = (
        not args
        and isinstance(padding, Tensor)
        and isinstance(queries, int)
        and padding.shape == (kwargs.get("batch_size"), keys)
        and padding.dtype == torch.bool
        and not kwargs.get("kv_offset")
        and kwargs.get("local_size") is None
        and installed.is_bidirectional(kwargs.get("mask_function"))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )
    if not is_padding_alone:
        return _MASKS["sdpa"](*args, **kwargs)
    if kwargs.get("allow_is_bidirectional_skip") and bool(padding.all()):
        return None
    return padding[:, None, None, :].expand(-1, 1, queries, -1)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls under this name.

    Args:
        module: the attention module; read are `is_causal` and `num_key_value_groups`, as sdpa does.
        query: [B, H, S, D].
        key, value: [B, H or H / groups, S, D]; other lengths go to sdpa.
        attention_mask: broadcastable to [B, H, S, S], bool or to be added to the scores; None attends to everything.
        dropout: probability of dropping a probability.
        scaling: of the scores; 1 / sqrt(D) where it is None.
        is_causal: of this call, in place of the module's.

    Returns:
        [B, S, H, D], and None for the probabilities.

    Raises:
        ValueError: for a soft cap or attention sinks, which neither torch's function nor ours computes, and for models of which
            transformers refuses sdpa.
    """
    for name in _NOT_COMPUTED:
        if kwargs.get(name) is not None:
            raise ValueError(
                f'attn_implementation="{NAME}" does not compute {name}, which {type(module).__name__} asks for: load the model '
                'with attn_implementation="eager"'
            )
    if not installed.supports_sdpa(type(module)):
        raise ValueError(
            f'attn_implementation="{NAME}": transformers supports no other attention of {type(module).__name__} than '
            'attn_implementation="eager"'
        )
    # sdpa takes a module that does not say for causal, and reads it only where there is no mask.
    causal = getattr(module, "is_causal", attention_mask is None) if is_causal is None else is_causal
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = _as_autocast(query, key, value)
    packing = None
    reason = _size_reason(query, attention_mask is not None)  # first: a small call is over before the other reasons are
    if reason is None:
        reason = _reason(module, query, key, value, attention_mask, dropout, scaling, causal, kwargs)
    if reason is None and attention_mask is not None:
        packing = _packing(attention_mask, query)
        reason = _size_reason(query, False) if packing is None else None
    if reason is not None:
        counts.count(module, f"sdpa: {reason}")
        if is_causal is not None:
            kwargs["is_causal"] = is_causal
        return _FUNCTIONS["sdpa"](module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    heads = [x.transpose(1, 2) for x in (query, key, value)]  # [B, S, H, D]
    rng = new_rng(query.device) if dropout > 0.0 else None
    if packing is None:
        counts.count(module, counts.FAST)
        qkv = torch.stack(heads, 2)
        return ops.attention_padded(qkv, attention_mask, scale=scaling, dropout_p=dropout, rng=rng), None
    counts.count(module, counts.UNPADDED)
    qkv = torch.stack([ops.unpad(x, packing) for x in heads], 1)
    out = ops.attention(qkv, packing.cu_seqlens, packing.max_seqlen, scale=scaling, dropout_p=dropout, rng=rng)
    return ops.repad(out, packing), None


def _as_autocast(*tensors: Tensor) -> list[Tensor]:
    """As autocast casts the arguments of torch's function: rotary embeddings leave query and key in float32, value is 16 bits."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def _reason(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    dropout: Any,
    scaling: Any,
    causal: Any,
    kwargs: dict[str, Any],
) -> str | None:
    """Why this call is torch's, apart from speed."""
    if installed.is_exporting():
        return "a trace or an export keeps torch's own operators"
    name = installed.unknown(kwargs, _UNREAD)
    if name is not None:
        return f"{name} was given"
    if causal:
        return "it is causal"
    if query.dim() != 4 or key.shape != value.shape or query.numel() == 0:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        return f"query, key and value have shapes {shapes}"
    if query.shape[2] != key.shape[2]:
        return "it is cross attention, or reads a cache"
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3] or query.shape[1] % key.shape[1]:
        return f"query has shape {tuple(query.shape)}, keys {tuple(key.shape)}"
    if query.shape[1] != key.shape[1] * getattr(module, "num_key_value_groups", 1):
        return "its keys are shared by groups of heads that num_key_value_groups does not tell"
    if query.shape[3] > _LARGEST_HEAD:
        return f"its heads have {query.shape[3]} dimensions; the kernels take {_LARGEST_HEAD}"
    if query.device.type != "cpu":
        return f"on the {query.device.type} device torch's function is the faster one"
    if _ext.why_absent() is not None:
        return "the C++ kernels are missing"
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value have several dtypes"
    if not isinstance(dropout, float | int) or not 0.0 <= dropout < 1.0 or isinstance(scaling, Tensor):
        return "its dropout or its scale is no number in range"
    return checks.tensor_reason(query) or _mask_reason(mask, query)


def _mask_reason(mask: Any, query: Tensor) -> str | None:
    """Masks for which `ops.attention_padded` gives other numbers than sdpa."""
    reason = checks.mask_reason(mask, query[:, 0], "sdpa")
    if reason is not None or mask is None:
        return reason
    if mask.shape[1] not in (1, query.shape[1]):
        return f"the attention mask has shape {tuple(mask.shape)}"
    if mask.dtype == torch.bool:
        return None  # a query without any key gives zeros, here and there
    if torch.compiler.is_compiling():
        return "a mask of numbers may mask whole rows, which a compiled graph cannot look at"
    # Added numbers leave sdpa's softmax over a row at the bottom even, where ours has no key left.
    seen = mask > torch.finfo(mask.dtype).min / 2
    return None if bool(seen.any(-1).all()) else "a query may attend to nothing"


def _packing(mask: Tensor, query: Tensor) -> ops.Packing | None:
    """The packing of a batch that is worth it: padding alone, much of it, and nobody's first position."""
    batch, _, seqlen, _ = query.shape
    if not _unpad or torch.compiler.is_compiling() or seqlen < _SHORTEST_PACKED:
        return None
    if mask.dtype != torch.bool or mask.shape[1] != 1 or (mask.shape[2] != 1 and mask.stride(2) != 0):
        return None
    real = mask[:, 0, 0].expand(batch, seqlen)
    known = ops.survey(real)
    if not known.begins or 4 * known.tokens > 3 * real.numel():
        return None
    return ops.pack(real, known)


def _size_reason(query: Tensor, may_pack: bool) -> str | None:
    """Why torch's function is as fast at this size. A compiled graph must not ask for it."""
    is_float32 = query.dtype == torch.float32
    if torch.compiler.is_compiling():
        return "in a compiled graph float32 gains nothing" if is_float32 else None
    if query.dim() != 4:
        return None
    if is_float32:
        least = _SHORTEST_PACKED if may_pack else _SHORTEST_FLOAT32
        return "short float32 sequences gain nothing" if query.shape[2] < least else None
    return "a handful of tokens gains nothing" if query.shape[0] * query.shape[2] < _FEWEST_TOKENS else None
