"""attention: exact softmax attention on packed tokens, or on a padded batch with a mask, reading one QKV projection.

Saved for backward: qkv, the output and the log-sum-exp of each row; probabilities and dropout bits are computed again.
Rows without any key give zeros and zero gradients.
"""

import torch
from torch import Tensor

from bertfast import _library
from bertfast.ops import rng as dropout_bits
from bertfast.ops.attention import reference
from bertfast.ops.dropout_add_norm.reference import compute_dtype

_library.define(
    "attention_fwd(Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, float scale, float dropout_p, Tensor? rng) "
    "-> (Tensor out, Tensor lse)"
)
_library.define(
    "attention_bwd(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor cu_seqlens, SymInt max_seqlen, float scale, "
    "float dropout_p, Tensor? rng) -> Tensor"
)
_library.define(
    "attention_padded_fwd(Tensor qkv, Tensor? mask, float scale, float dropout_p, Tensor? rng) -> (Tensor out, Tensor lse)"
)
_library.define(
    "attention_padded_bwd(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor? mask, float scale, float dropout_p, "
    "Tensor? rng) -> Tensor"
)
_library.reference("attention_fwd")(reference.forward)
_library.reference("attention_bwd")(reference.backward)
_library.reference("attention_padded_fwd")(reference.padded_forward)
_library.reference("attention_padded_bwd")(reference.padded_backward)


@_library.fake("attention_fwd")
def _(qkv, cu_seqlens, max_seqlen, scale, dropout_p, rng):
    tokens, _, heads, size = qkv.shape
    return qkv.new_empty(tokens, heads, size), qkv.new_empty(heads, tokens, dtype=compute_dtype(qkv))


@_library.fake("attention_bwd")
def _(dout, qkv, out, lse, cu_seqlens, max_seqlen, scale, dropout_p, rng):
    return qkv.new_empty(qkv.shape)


@_library.fake("attention_padded_fwd")
def _(qkv, mask, scale, dropout_p, rng):
    batch, seqlen, _, heads, size = qkv.shape
    return qkv.new_empty(batch, seqlen, heads, size), qkv.new_empty(batch, heads, seqlen, dtype=compute_dtype(qkv))


@_library.fake("attention_padded_bwd")
def _(dout, qkv, out, lse, mask, scale, dropout_p, rng):
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx, inputs, output) -> None:
    qkv, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.dropout_p, rng = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, out, lse, cu_seqlens, rng)


@_library.once_differentiable
def _backward(ctx, dout, _dlse):
    if dout is None:
        return (None,) * 6
    qkv, out, lse, cu_seqlens, rng = ctx.saved_tensors
    dqkv = _library.op("attention_bwd")(
        dout.contiguous(), qkv, out, lse, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.dropout_p, rng
    )
    return dqkv, None, None, None, None, None


def _padded_setup_context(ctx, inputs, output) -> None:
    qkv, mask, ctx.scale, ctx.dropout_p, rng = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, out, lse, mask, rng)


@_library.once_differentiable
def _padded_backward(ctx, dout, _dlse):
    if dout is None:
        return (None,) * 5
    qkv, out, lse, mask, rng = ctx.saved_tensors
    dqkv = _library.op("attention_padded_bwd")(dout.contiguous(), qkv, out, lse, mask, ctx.scale, ctx.dropout_p, rng)
    return dqkv, None, None, None, None


_library.differentiate("attention_fwd", _backward, _setup_context)
_library.differentiate("attention_padded_fwd", _padded_backward, _padded_setup_context)


def _check(qkv: Tensor, dims: int, layout: str, name: str) -> None:
    if qkv.dim() != dims or qkv.shape[-3] != 3:
        raise ValueError(f"{name}: qkv must be {layout}, got {tuple(qkv.shape)}")
    if not qkv.is_floating_point():
        raise ValueError(f"{name}: qkv must be floating point, got {qkv.dtype}")


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """Softmax attention within each packed sequence.

    Args:
        qkv: [T, 3, H, D], queries, keys and values of one projection; float32, bfloat16, float16 or float64.
        cu_seqlens: [B + 1] int32, where sequences begin: it rises from 0 to T. Empty sequences are allowed.
        max_seqlen: at least the length of the longest sequence.
        scale: of the scores; 1 / sqrt(D) where it is None.
        dropout_p: probability in [0, 1) of dropping a probability; realised in units of 1/256.
        rng: int64 [2] from `bertfast.ops.rng.new_rng`, given when and only when dropout_p > 0.

    Returns:
        [T, H, D] in qkv's dtype; softmax and sums are float32. Gradients repeat bit for bit.

    Raises:
        ValueError: on shapes that do not belong together, or cu_seqlens that does not cover the tokens.
    """
    dropout_bits.check_probability(dropout_p, rng, "attention")
    _check(qkv, 4, "[T, 3, H, D]", "attention")
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"attention: cu_seqlens must be int32 [B + 1], got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    out, _ = _library.op("attention_fwd")(qkv, cu_seqlens, max_seqlen, scale, dropout_p, rng)
    return out


def attention_padded(
    qkv: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """Softmax attention on a padded batch, with an optional mask.

    Args:
        qkv: [B, S, 3, H, D].
        mask: broadcastable to [B, H, S, S]: bool, True where a query may attend, or floating point, added to the scores.
            No gradient. Values at or below half of the lowest finite number of its dtype mean "masked".
        scale, dropout_p, rng: as in `attention`.

    Returns:
        [B, S, H, D] in qkv's dtype. A query that may attend to nothing gives zeros and zero gradients.

    Raises:
        ValueError: on shapes or dtypes that do not belong together.
    """
    dropout_bits.check_probability(dropout_p, rng, "attention_padded")
    _check(qkv, 5, "[B, S, 3, H, D]", "attention_padded")
    if mask is not None:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"attention_padded: mask must be bool or floating point, got {mask.dtype}")
        batch, seqlen, _, heads, _ = qkv.shape
        target = (batch, heads, seqlen, seqlen)
        if mask.dim() > 4 or any(m not in (1, t) for m, t in zip(mask.shape[::-1], target[::-1], strict=False)):
            raise ValueError(f"attention_padded: mask of shape {tuple(mask.shape)} does not broadcast to {target}")
        mask = mask.detach()
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    out, _ = _library.op("attention_padded_fwd")(qkv, mask, scale, dropout_p, rng)
    return out


for _name, _function in (
    ("attention_fwd", "forward"),
    ("attention_bwd", "backward"),
    ("attention_padded_fwd", "padded_forward"),
    ("attention_padded_bwd", "padded_backward"),
):
    _library.implement(_name, "CUDA", f"bertfast.ops.attention.triton:{_function}")
