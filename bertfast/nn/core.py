"""The one post-LN transformer layer: used by bertfast.nn and by the Hugging Face drop-in, on padded and on packed tokens.

A layer is qkv product, attention, output product, dropout_add_norm, two feed-forward products around GELU, dropout_add_norm.
Without gradients on a CPU the products run from prepacked weights with bias and GELU fused; on a GPU each half is one step by
launchers (`halves`); otherwise they are differentiable ops, and the bias of each second product goes to dropout_add_norm, which
returns its gradient for nothing.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import ops
from bertfast.nn import device, halves, prepack
from bertfast.nn.adapters import LowRank, added
from bertfast.nn.feed_forward import feed_forward
from bertfast.nn.layout import Biased, Layout, Packed
from bertfast.nn.linear import joined_linear
from bertfast.nn.parts import AttentionParts, MlpParts
from bertfast.nn.plain import is_unwatched, product_dtype
from bertfast.ops.rng import new_rng

_PREPACKED_DTYPES = (torch.float32, torch.bfloat16)
Beside = Sequence[Sequence[LowRank]]  # the adapters of each product


def _prepacked(x: Tensor, linears: tuple[nn.Linear, ...], dtype: torch.dtype, wanted: bool) -> bool:
    """Whether this product may come from reordered copies: wanted, on a CPU, and nothing in it needs a gradient."""
    if not wanted or x.device.type != "cpu" or dtype not in _PREPACKED_DTYPES:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # a graph must hold the weights, not copies of them
        return False
    if torch.is_grad_enabled() and (
        x.requires_grad
        or any(p.requires_grad for linear in linears for p in linear._parameters.values() if p is not None)
    ):
        return False
    return prepack.can_fuse(linears, dtype)


def _shaped(flat: Tensor, x: Tensor) -> Tensor:
    """In x's shape; rows as they are, since FSDP warns of a layer that returns a view."""
    return flat if x.dim() == 2 else flat.view(x.shape)


def _add_norm(out: Tensor, residual: Tensor, bias: Tensor | None, norm: nn.LayerNorm, p: float) -> Tensor:
    rng = new_rng(out.device) if p > 0.0 else None
    return ops.dropout_add_norm(out, residual, norm.weight, norm.bias, bias=bias, eps=norm.eps, dropout_p=p, rng=rng)


def _beside(y: Tensor, x: Tensor, linears: tuple[nn.Linear, ...], beside: Beside) -> Tensor:
    """The products y of Linears on x, with what adapters beside them add."""
    return added(y, x, beside, [linear.weight.shape[0] for linear in linears]) if any(beside) else y


def _project_add_norm(
    x: Tensor,
    residual: Tensor,
    dense: nn.Linear,
    norm: nn.LayerNorm,
    p: float,
    use_prepack: bool,
    int8: bool,
    beside: Beside = (),
) -> Tensor:
    dtype = product_dtype(residual)
    x = x.to(dtype)
    if _prepacked(x, (dense,), dtype, use_prepack):
        y, bias = prepack.fused_linear(x, (dense,), int8=int8), None
    else:
        y, bias = joined_linear(x, (dense,), bias=False), dense.bias
    return _add_norm(_beside(y, x, (dense,), beside), residual, bias, norm, p)


def _adapted_feed_forward(
    x: Tensor, up: nn.Linear, down: nn.Linear, approximate: str, use_prepack: bool, int8: bool, beside: Beside
) -> tuple[Tensor, Tensor | None]:
    """down(gelu(up(x))) with adapters beside both, and the bias that is not in it yet.

    Adapters stand between what is fused elsewhere: GELU reads what the first ones add, and the others read GELU's result.
    """
    before, after = beside
    activation = "gelu" if approximate == "none" else "gelu_tanh"
    if _prepacked(x, (up,), x.dtype, use_prepack):
        hidden = prepack.fused_linear(x, (up,), "none" if before else activation, int8=int8)
        if before:
            hidden = F.gelu(_beside(hidden, x, (up,), (before,)), approximate=approximate)
    else:
        hidden = F.gelu(_beside(joined_linear(x, (up,), bias=True), x, (up,), (before,)), approximate=approximate)
    if _prepacked(hidden, (down,), x.dtype, use_prepack):
        y, bias = prepack.fused_linear(hidden, (down,), int8=int8), None
    else:
        y, bias = joined_linear(hidden, (down,), bias=False), down.bias
    return _beside(y, hidden, (down,), (after,)), bias


def _for_halves(x: Tensor, parts: AttentionParts | MlpParts) -> list[Tensor | None] | None:
    """The parameters of a half that is one step by launchers: on a GPU, wherever nothing looks at what happens inside."""
    if x.device.type not in device.KINDS or x.dtype is torch.float64:  # of which no kernel knows
        return None
    parameters = parts.parameters()
    return parameters if halves.takes(x, parameters) and is_unwatched() else None


def _seed(x: Tensor, p: float) -> Tensor | None:
    return new_rng(x.device) if p > 0.0 else None


def _biased_attention(qkv: Tensor, layout: Biased, scale: float | None) -> Tensor:
    """qkv [T, 3, H, D] to [T, H, D], a sequence at a time, so that no score of padding is made."""
    context = torch.empty_like(qkv[:, 0])
    bounds = layout.cu_seqlens.tolist()
    for begin, end in pairwise(bounds):
        if end > begin:
            bias = layout.bias[:, : end - begin, : end - begin]
            context[begin:end] = ops.attention_padded(qkv[begin:end][None], bias[None], scale=scale)[0]
    return context


def attention_block(
    x: Tensor,
    layout: Layout,
    parts: AttentionParts,
    heads: int,
    *,
    scale: float | None = None,
    attention_p: float = 0.0,
    hidden_p: float = 0.0,
    use_prepack: bool = True,
    int8: bool = False,
    beside: Beside = (),
) -> Tensor:
    """norm(x + dropout(dense(attention(x)))).

    Args:
        x: [T, E] for a `Packed` layout, [B, S, E] for a `Padded` one.
        attention_p, hidden_p: dropout as it is to be applied now, so 0 in evaluation.
        use_prepack: whether inference on a CPU may keep reordered copies of the weights.
        int8: whether the products from these copies are of 8-bit integers.
        beside: the adapters of query, key, value and dense, or ().

    Returns:
        The shape of x, or [R, E] where the layout names R tokens to be read. Under autocast products run in its dtype and the
        residual stream keeps x's, as in Hugging Face's BERT.
    """
    dtype = product_dtype(x)
    flat = x.reshape(-1, x.shape[-1])
    projections = parts[:3]
    size = parts.query.weight.shape[0] // heads
    parameters = None if any(beside) else _for_halves(x, parts)
    if parameters is not None:
        scale = size**-0.5 if scale is None else scale
        seeds, rates = (_seed(x, attention_p), _seed(x, hidden_p)), (attention_p, hidden_p)
        mixing = halves.Mixing(layout, x.shape[:-1], heads, scale, dtype, parts.norm.eps, rates, seeds)
        rows = halves.attention(mixing, flat.contiguous(), *parameters)
        return rows if isinstance(layout, Packed) and layout.read is not None else _shaped(rows, x)
    rows = flat.to(dtype)
    if _prepacked(x, projections, dtype, use_prepack):
        qkv = prepack.fused_linear(rows, projections, int8=int8)
    else:
        qkv = joined_linear(rows, projections, bias=True)
    qkv = _beside(qkv, rows, projections, beside[:3])
    rng = new_rng(x.device) if attention_p > 0.0 else None
    if isinstance(layout, Biased):
        context = _biased_attention(qkv.view(-1, 3, heads, size), layout, scale)
    elif isinstance(layout, Packed):
        context = ops.attention(
            qkv.view(-1, 3, heads, size),
            layout.cu_seqlens,
            layout.max_seqlen,
            scale=scale,
            dropout_p=attention_p,
            rng=rng,
        )
    else:
        context = ops.attention_padded(
            qkv.view(x.shape[0], x.shape[1], 3, heads, size), layout.mask, scale=scale, dropout_p=attention_p, rng=rng
        )
    context, behind = context.reshape(-1, heads * size), (hidden_p, use_prepack, int8, beside[3:])
    if isinstance(layout, Packed) and layout.read is not None:
        # Every token is a key and a value; only here does a token that nobody reads cease to matter.
        read = layout.read
        return _project_add_norm(context[read], flat[read], parts.dense, parts.norm, *behind)
    return _shaped(_project_add_norm(context, flat, parts.dense, parts.norm, *behind), x)


def mlp_block(
    x: Tensor,
    parts: MlpParts,
    *,
    approximate: str = "none",
    hidden_p: float = 0.0,
    use_prepack: bool = True,
    int8: bool = False,
    beside: Beside = (),
    at_a_time: int | None = None,
) -> Tensor:
    """norm(x + dropout(down(gelu(up(x))))), x [..., E]; arguments as in `attention_block`, `beside` of up and down.

    at_a_time: how many rows go through it at a time, so that no more of its wide middle is there at once; None for all. Dropout
        draws for each such part.
    """
    flat = x.reshape(-1, x.shape[-1])
    if at_a_time is not None and flat.shape[0] > at_a_time:
        each = partial(
            mlp_block,
            parts=parts,
            approximate=approximate,
            hidden_p=hidden_p,
            use_prepack=use_prepack,
            int8=int8,
            beside=beside,
        )
        return _shaped(torch.cat([each(rows) for rows in flat.split(at_a_time)]), x)
    up, down, norm = parts[:3]
    dtype = product_dtype(x)
    if any(beside):
        out, bias = _adapted_feed_forward(flat.to(dtype), up, down, approximate, use_prepack, int8, beside)
        return _shaped(_add_norm(out, flat, bias, norm, hidden_p), x)
    parameters = _for_halves(x, parts)
    if parameters is not None and up.bias is not None:
        feeding = halves.Feeding(approximate == "tanh", dtype, norm.eps, hidden_p, _seed(x, hidden_p))
        return _shaped(halves.feed_forward(feeding, flat.contiguous(), *parameters), x)
    if _prepacked(x, (up, down), dtype, use_prepack):
        activation = "gelu" if approximate == "none" else "gelu_tanh"
        hidden = prepack.fused_linear(flat.to(dtype), (up,), activation, int8=int8)
        out, bias = prepack.fused_linear(hidden, (down,), int8=int8), None
    else:
        out, bias = feed_forward(flat.to(dtype), up.weight, up.bias, down.weight, approximate), down.bias
    return _shaped(_add_norm(out, flat, bias, norm, hidden_p), x)
