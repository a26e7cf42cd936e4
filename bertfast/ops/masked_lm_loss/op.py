"""masked_lm_loss: BERT's masked-LM head and its cross-entropy (Devlin et al., 2018, section 3.1) on the masked tokens only.

The head is gather, linear_gelu, norm, and linear_cross_entropy. Of the logits, x W^T is kept in x's dtype for backward while it
takes at most KEPT_BYTES: forward's peak holds it anyway and backward holds one more of that size. Larger ones never live
whole: they are made by chunks of rows and made again in backward, which costs 2 M E V FLOPs on top of 6 M E V.

A decoder weight that is the word table too: give what `tied_embedding_sum_norm` returned, and their gradients are one tensor.
"""

import torch
from torch import Tensor

from bertfast import _library
from bertfast.ops.dropout_add_norm import dropout_add_norm
from bertfast.ops.dropout_add_norm.reference import compute_dtype
from bertfast.ops.linear.op import check_shapes
from bertfast.ops.linear_gelu import linear_gelu
from bertfast.ops.masked_lm_loss import reference

KEPT_BYTES = 1 << 30  # 17,500 masked tokens of BERT's vocabulary in bfloat16

_library.define(
    "linear_cross_entropy_fwd(Tensor x, Tensor weight, Tensor bias, Tensor labels, bool keep) "
    "-> (Tensor loss, Tensor lse, Tensor argmax, Tensor kept)"
)
_library.define(
    "linear_cross_entropy_bwd(Tensor dloss, Tensor x, Tensor weight, Tensor bias, Tensor labels, Tensor lse, Tensor kept, "
    "bool needs_dx, bool needs_dweight, bool needs_dbias) -> (Tensor dx, Tensor dweight, Tensor dbias)"
)
_library.reference("linear_cross_entropy_fwd")(reference.forward)
_library.reference("linear_cross_entropy_bwd")(reference.backward)


@_library.fake("linear_cross_entropy_fwd")
def _(x, weight, bias, labels, keep):
    loss = x.new_empty(x.shape[0], dtype=compute_dtype(x))
    kept = x.new_empty((x.shape[0], reference.padded(weight.shape[0])) if keep else (0,))
    return loss, torch.empty_like(loss), labels.new_empty(labels.shape), kept


@_library.fake("linear_cross_entropy_bwd")
def _(dloss, x, weight, bias, labels, lse, kept, needs_dx, needs_dweight, needs_dbias):
    wanted = ((x, needs_dx), (weight, needs_dweight), (bias, needs_dbias))
    return tuple(t.new_empty(t.shape if needed else (0,)) for t, needed in wanted)


def _setup_context(ctx, inputs, output) -> None:
    _, lse, argmax, kept = output
    ctx.mark_non_differentiable(lse, argmax, kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4], lse, kept)


@_library.once_differentiable
def _backward(ctx, dloss, _dlse, _dargmax, _dkept):
    if dloss is None:
        return (None,) * 5
    needs = ctx.needs_input_grad[:3]
    gradients = _library.op("linear_cross_entropy_bwd")(dloss.contiguous(), *ctx.saved_tensors, *needs)
    return *(g if needed else None for g, needed in zip(gradients, needs, strict=True)), None, None


_library.differentiate("linear_cross_entropy_fwd", _backward, _setup_context)


def _gather(
    hidden: Tensor, labels: Tensor, positions: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to predict, their labels with IGNORED for `ignore_index` and empty slots, and their places."""
    if positions is None:
        positions = (labels != ignore_index).nonzero()[:, 0]
    over = positions >= hidden.shape[0]
    if not torch.compiler.is_compiling() and positions.device.type == "cpu" and over.any():
        slot = int(over.nonzero()[0])
        raise IndexError(
            f"masked_lm_loss: position {int(positions[slot])} in slot {slot} is past the {hidden.shape[0]} tokens of hidden; "
            "positions count the flattened tokens, padding included where hidden is padded"
        )
    # Empty slots read token 0 and give it a gradient of zero; those past the end read the last and get no word for a label.
    places = positions.clamp(0, hidden.shape[0] - 1)
    chosen = labels.index_select(0, places)
    ignored = (positions < 0) | (chosen == ignore_index)
    if ignore_index != reference.IGNORED:
        # No word: an error, not ignored.
        chosen = chosen.masked_fill(chosen == reference.IGNORED, reference.IGNORED - 1)
    chosen = chosen.masked_fill(ignored, reference.IGNORED).masked_fill(over, reference.IGNORED - 1)
    return hidden.index_select(0, places), chosen, positions


def _check(hidden: Tensor, labels: Tensor, positions: Tensor | None, dense: Tensor, norm: list[Tensor]) -> None:
    if hidden.dim() < 2:
        raise ValueError(f"masked_lm_loss: hidden must be [B, S, E] or [T, E], got {tuple(hidden.shape)}")
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"masked_lm_loss: labels {tuple(labels.shape)} do not fit hidden {tuple(hidden.shape)}: one label a token"
        )
    for name, integers in (("labels", labels), ("positions", positions)):
        if integers is not None and integers.dtype != torch.int64:
            raise ValueError(f"masked_lm_loss: {name} must be int64, got {integers.dtype}")
    if positions is not None and positions.dim() != 1:
        raise ValueError(f"masked_lm_loss: positions must be [M], got {tuple(positions.shape)}")
    if positions is not None and positions.numel() and not labels.numel():
        raise ValueError(
            f"masked_lm_loss: {positions.numel()} positions, but hidden {tuple(hidden.shape)} has no tokens"
        )
    if any(t.shape != dense.shape[:1] for t in norm):
        raise ValueError(f"masked_lm_loss: the norm's parameters must have shape ({dense.shape[0]},)")


def masked_lm_loss(
    hidden: Tensor,
    labels: Tensor,
    *,
    dense_weight: Tensor,
    dense_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    decoder_weight: Tensor,
    decoder_bias: Tensor,
    positions: Tensor | None = None,
    eps: float = 1e-12,
    approximate: str = "none",
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of predicting the masked tokens, computed for these tokens only. Under autocast products run in its dtype.

    Args:
        hidden: [B, S, E] or packed [T, E], the encoder's output.
        labels: [B, S] or [T] int64: the word that was there, or `ignore_index` where nothing is to be predicted.
        dense_weight, dense_bias: [E, E], [E], the transform's Linear, followed by GELU.
        norm_weight, norm_bias, eps: the transform's layer norm.
        decoder_weight, decoder_bias: [V, E], [V]; the weight is the word table itself as a rule.
        positions: [M] int64, places of the masked tokens among the flattened ones, each at most once; negative ones are
            empty slots. Made by the loader they spare a wait for the device and make shapes constant, as CUDA graphs and
            `torch.compile(fullgraph=True)` need; where they are None they are looked up. Labels elsewhere are not read.
        approximate: GELU's form, as in `bertfast.ops.linear_gelu`.
        ignore_index: the label of tokens that are not to be predicted.

    Returns:
        loss, a float32 scalar (float64 for float64); correct, int64: how many of the masked words have the largest logit;
        count, int64: how many masked tokens there are. With none the loss is 0 and gradients are zero, where
        `torch.nn.functional.cross_entropy` gives NaN: one sequence without masks must not end a training run.

    Raises:
        IndexError: on a CPU, for a label outside [0, V), naming it, its place and V, or for a position past the tokens. On
            CUDA the loss is NaN and the error comes with the next call.
        ValueError: on shapes or dtypes that do not belong together.
    """
    if dense_bias is None or decoder_bias is None:
        raise ValueError("masked_lm_loss: dense_bias and decoder_bias must be given; BERT's heads have both")
    decoder_dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, dense_weight, dense_bias = hidden.to(dtype), dense_weight.to(dtype), dense_bias.to(dtype)
        if (
            hidden.device.type != "cpu"
        ):  # whose products read another dtype on their way: a cast takes longer than they do
            decoder_weight, decoder_bias = decoder_weight.to(dtype), decoder_bias.to(dtype)
        decoder_dtype = decoder_weight.dtype
    _check(hidden, labels, positions, dense_weight, [norm_weight, norm_bias])
    transformed = hidden.new_empty((), dtype=decoder_dtype).expand(*hidden.shape[:-1], dense_weight.shape[0])
    check_shapes("masked_lm_loss (decoder)", transformed, decoder_weight, decoder_bias)
    rows, chosen, places = _gather(hidden.flatten(0, -2), labels.flatten(), positions, ignore_index)
    if not torch.compiler.is_compiling():
        reference.check_labels(chosen, decoder_weight.shape[0], places)
    transformed = linear_gelu(rows, dense_weight, dense_bias, approximate=approximate)
    transformed = dropout_add_norm(transformed, None, norm_weight, norm_bias, eps=eps)
    inputs = (transformed, decoder_weight, decoder_bias)
    keep = (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in inputs)
        and rows.shape[0] * decoder_weight.shape[0] * rows.element_size() <= KEPT_BYTES
    )
    loss, _, argmax, _ = _library.op("linear_cross_entropy_fwd")(*inputs, chosen, keep)
    count = (chosen != reference.IGNORED).sum()
    return loss.sum() / count.clamp(min=1), (argmax == chosen).sum(), count


_library.implement("linear_cross_entropy_fwd", "CPU", "bertfast.ops.masked_lm_loss.chunked:forward")
_library.implement("linear_cross_entropy_bwd", "CPU", "bertfast.ops.masked_lm_loss.chunked:backward")
for _pass in ("fwd", "bwd"):
    _library.implement(
        f"linear_cross_entropy_{_pass}", "CUDA", f"bertfast.ops.masked_lm_loss.triton:linear_cross_entropy_{_pass}"
    )
