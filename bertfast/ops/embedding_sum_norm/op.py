"""embedding_sum_norm: BERT's three embeddings, their sum, layer norm and dropout in one pass each way.

Saved for backward: the ids and the mean and rstd of each token; the sum is gathered again. Every table's gradient adds
tokens in their order in the batch, so it is deterministic; the row of padding_idx stays zero. A word table that is the
decoder's weight too has a backward of its own, which adds to the decoder's gradient (`tied`).
"""

from typing import Any

import torch
from torch import Tensor

from bertfast import _library
from bertfast.ops import rng as dropout_bits
from bertfast.ops.dropout_add_norm.reference import compute_dtype
from bertfast.ops.embedding_sum_norm import reference, tied

_library.define(
    "embedding_sum_norm_fwd(Tensor input_ids, Tensor position_ids, Tensor segment_ids, Tensor word, Tensor position, "
    "Tensor segment, Tensor weight, Tensor bias, int padding_idx, float eps, float dropout_p, Tensor? rng) "
    "-> (Tensor y, Tensor mean, Tensor rstd)"
)
_library.define(
    "embedding_sum_norm_bwd(Tensor dy, Tensor input_ids, Tensor position_ids, Tensor segment_ids, Tensor word, Tensor position, "
    "Tensor segment, Tensor weight, Tensor mean, Tensor rstd, int padding_idx, float dropout_p, Tensor? rng) "
    "-> (Tensor dword, Tensor dposition, Tensor dsegment, Tensor dweight, Tensor dbias)"
)
# The same, the word table's gradient added to `dword` in place.
_library.define(
    "embedding_sum_norm_tied_bwd(Tensor(a!) dword, Tensor dy, Tensor input_ids, Tensor position_ids, Tensor segment_ids, "
    "Tensor word, Tensor position, Tensor segment, Tensor weight, Tensor mean, Tensor rstd, int padding_idx, float dropout_p, "
    "Tensor? rng) -> (Tensor dposition, Tensor dsegment, Tensor dweight, Tensor dbias)"
)
_library.reference("embedding_sum_norm_fwd")(reference.forward)
_library.reference("embedding_sum_norm_bwd")(reference.backward)
_library.reference("embedding_sum_norm_tied_bwd")(reference.tied_backward)


@_library.fake("embedding_sum_norm_fwd")
def _(input_ids, position_ids, segment_ids, word, position, segment, weight, bias, padding_idx, eps, dropout_p, rng):
    tokens = input_ids.shape[0]
    statistics = word.new_empty(tokens, dtype=compute_dtype(word))
    return word.new_empty(tokens, word.shape[1]), statistics, torch.empty_like(statistics)


@_library.fake("embedding_sum_norm_bwd")
def _(
    dy, input_ids, position_ids, segment_ids, word, position, segment, weight, mean, rstd, padding_idx, dropout_p, rng
):
    return tuple(t.new_empty(t.shape) for t in (word, position, segment, weight, weight))


@_library.fake("embedding_sum_norm_tied_bwd")
def _(
    dword, dy, input_ids, position_ids, segment_ids, word, position, segment, weight, mean, rstd, padding_idx, dropout_p, rng
):  # fmt: skip
    return tuple(t.new_empty(t.shape) for t in (position, segment, weight, weight))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, padding_idx, _, dropout_p, rng = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors[:-1], mean, rstd, rng)  # the norm's bias is not needed
    ctx.padding_idx, ctx.dropout_p = padding_idx, dropout_p


@_library.once_differentiable
def _backward(ctx, dy, _dmean, _drstd):
    if dy is None:
        return (None,) * 12
    *tensors, mean, rstd, rng = ctx.saved_tensors
    gradients = _library.op("embedding_sum_norm_bwd")(
        dy.contiguous(), *tensors, mean, rstd, ctx.padding_idx, ctx.dropout_p, rng
    )
    return None, None, None, *gradients, None, None, None, None


_library.differentiate("embedding_sum_norm_fwd", _backward, _setup_context)


def _arguments(
    input_ids: Tensor,
    tensors: tuple[Tensor, ...],
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
    padding_idx: int | None,
    eps: float,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Any, ...]:
    """What the op takes, checked."""
    dropout_bits.check_probability(dropout_p, rng, "embedding_sum_norm")
    word, position, segment, weight, bias = tensors
    size = word.shape[-1]
    for name, table in (("word", word), ("position", position), ("segment", segment)):
        if table.dim() != 2 or table.shape[1] != size or table.dtype != word.dtype:
            raise ValueError(
                f"embedding_sum_norm: table {name} is {table.dtype} {tuple(table.shape)}; all three must be two-dimensional, "
                f"{size} wide and {word.dtype}, as word is"
            )
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.shape != (size,):
            raise ValueError(f"embedding_sum_norm: {name} must have shape ({size},), got {tuple(vector.shape)}")
    shape = input_ids.shape
    if position_ids is None:
        if shape[-1] > position.shape[0]:
            raise ValueError(
                f"embedding_sum_norm: the sequence has {shape[-1]} tokens but the model has {position.shape[0]} positions; "
                "truncate the text, or give position_ids for packed tokens"
            )
        position_ids = torch.arange(shape[-1], device=input_ids.device)
    segment_ids = input_ids.new_zeros(()) if segment_ids is None else segment_ids
    for name, ids in (("input_ids", input_ids), ("position_ids", position_ids), ("segment_ids", segment_ids)):
        if ids.dtype not in (torch.int64, torch.int32):  # a float id would be truncated to another word
            raise ValueError(f"embedding_sum_norm: {name} must be int32 or int64, got {ids.dtype}")
        if ids.dim() > len(shape) or any(a not in (1, b) for a, b in zip(ids.shape[::-1], shape[::-1], strict=False)):
            raise ValueError(
                f"embedding_sum_norm: {name} {tuple(ids.shape)} does not broadcast to input_ids {tuple(shape)}"
            )

    def flat(ids: Tensor) -> Tensor:
        return ids.expand(shape).reshape(-1).to(torch.int64)

    rows = word.shape[0]
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"embedding_sum_norm: padding_idx must be within the {rows} words, got {padding_idx}")
    # From the end where it is negative, as in torch.nn.Embedding.
    skipped = -1 if padding_idx is None else padding_idx % rows
    return flat(input_ids), flat(position_ids), flat(segment_ids), *tensors, skipped, eps, dropout_p, rng


def embedding_sum_norm(
    input_ids: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    position_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
    padding_idx: int | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """Sum of word, position and segment embeddings, layer norm, dropout (Devlin et al., 2018, section 3), in one pass.

    Args:
        input_ids: [B, S] or packed [T], int32 or int64, each in [0, V).
        word, position, segment: the tables, [V, E], [P, E], [2, E] as a rule, of one dtype.
        weight, bias: [E], the norm's parameters.
        position_ids: broadcastable to input_ids; 0, 1, 2, ... along the last dimension where it is None. Packed tokens
            need them given.
        segment_ids: broadcastable to input_ids; all 0 where it is None.
        padding_idx: the word whose gradient stays zero, counted from the end where negative, as in `torch.nn.Embedding`.
        eps, dropout_p, rng: as in `bertfast.ops.dropout_add_norm`.

    Returns:
        [*input_ids.shape, E] in the tables' dtype; arithmetic is float32. Forward and backward repeat bit for bit.

    Raises:
        IndexError: on an id outside its table, naming the id, its flattened position and the table's size.
        ValueError: on shapes or dtypes that do not belong together.
    """
    tensors = word, position, segment, weight, bias
    args = _arguments(input_ids, tensors, position_ids, segment_ids, padding_idx, eps, dropout_p, rng)
    y, _, _ = _library.op("embedding_sum_norm_fwd")(*args)
    return y.view(*input_ids.shape, word.shape[1])


def tied_embedding_sum_norm(
    input_ids: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    position_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
    padding_idx: int | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`embedding_sum_norm` for a word table that is the decoder's weight too, as in pre-training.

        y, tied = tied_embedding_sum_norm(ids, word, ...)
        loss, *_ = masked_lm_loss(encoder(y), labels, decoder_weight=tied, ...)

    The decoder's gradient of `tied`, [V, E], then becomes that of `word` by adding the rows of the words that occur, where
    otherwise this op writes [V, E] of its own and autograd adds the two. Gradients are those of using `word` itself, up to
    rounding; a gradient of `tied` that somebody else holds, such as a hook, is copied and not overwritten. Under
    torch.compile, or where `word` needs no gradient, `tied` is `word` and nothing is saved.

    Args and Raises are those of `embedding_sum_norm`.

    Returns:
        What `embedding_sum_norm` returns, and `tied`, the word table.
    """
    tensors = word, position, segment, weight, bias
    args = _arguments(input_ids, tensors, position_ids, segment_ids, padding_idx, eps, dropout_p, rng)
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and word.requires_grad):
        y, _, _ = _library.op("embedding_sum_norm_fwd")(*args)
    else:
        tied.holders_of_fresh()
        y, word = tied.Tied.apply(*args)
    return y.view(*input_ids.shape, word.shape[1]), word


_library.implement("embedding_sum_norm_fwd", "CUDA", "bertfast.ops.embedding_sum_norm.triton:forward")
_library.implement("embedding_sum_norm_bwd", "CUDA", "bertfast.ops.embedding_sum_norm.triton_backward:backward")
_library.implement(
    "embedding_sum_norm_tied_bwd", "CUDA", "bertfast.ops.embedding_sum_norm.triton_backward:tied_backward"
)
