"""embedding_sum_norm on GPUs: y = dropout(norm(word[id] + segment[id] + position[id])), a token's row in registers.

Forward: a program gathers a tile of tokens. Backward: programs walk over tiles, gather the sum again, write its gradient dz [T, E]
and keep what all tokens add to (norm parameters, a segment table of two rows) in registers; `segments` then adds dz by sorted ids.
dz is in the tables' dtype: half of float32's bytes for bfloat16, and one rounding, which torch's own backward makes there too.
Saved: ids, mean, rstd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.embedding_sum_norm import reference, segments
from bertfast.triton import mailbox, sums
from bertfast.triton.launch import INTERPRETED, cdiv, launch, multiprocessors
from bertfast.triton.rows import (
    backward_programs,
    backward_tile,
    contiguous,
    drop,
    dropout_numbers,
    forward_tile,
    load_columns,
    normalise,
    normalise_backward,
    taken,
)

_ADVICE = (
    "was the text tokenised for another model, or is it longer than the model's positions? Found in an earlier call"
)
WORD = tl.constexpr(3)
POSITION = tl.constexpr(4)
SEGMENT = tl.constexpr(5)
for _slot, _name in ((WORD, "input_ids"), (POSITION, "position_ids"), (SEGMENT, "segment_ids")):
    _text = f"embedding_sum_norm: {_name} is outside its table at flattened position {{place}}; {_ADVICE}"
    mailbox.meaning(_slot.value, IndexError, _text)


@triton.jit
def load_ids(ids_ptr, row, tokens, TABLE: tl.constexpr):
    """(id clamped into the table, whether it was outside), [ROWS, 1]; 0 past the end."""
    given = tl.load(ids_ptr + row, mask=row < tokens, other=0)
    clamped = tl.minimum(tl.maximum(given, 0), TABLE - 1)
    return clamped, given != clamped


@triton.jit
def gather(table_ptr, ids, col, mask, E: tl.constexpr):
    return tl.load(table_ptr + ids * E + col, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def report_first(box_ptr, SLOT: tl.constexpr, row, bad):
    first = tl.min(tl.where(bad, row, 0x7FFFFFFFFFFFFFFF))
    mailbox.report(box_ptr, SLOT, first, tl.max(bad.to(tl.int32)) > 0)


@triton.jit(do_not_specialize=["tokens", "threshold"])
def embedding_sum_norm_fwd_kernel(
    input_ids_ptr,
    position_ids_ptr,
    segment_ids_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    weight_ptr,
    bias_ptr,
    rng_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    box_ptr,
    tokens,
    eps,
    threshold,
    scale,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < tokens) & (col < E)
    word, bad_word = load_ids(input_ids_ptr, row, tokens, WORDS)
    position, bad_position = load_ids(position_ids_ptr, row, tokens, POSITIONS)
    segment, bad_segment = load_ids(segment_ids_ptr, row, tokens, SEGMENTS)
    z = gather(word_ptr, word, col, mask, E) + gather(segment_ptr, segment, col, mask, E)
    z += gather(position_ptr, position, col, mask, E)
    bad = bad_word | bad_position | bad_segment
    if tl.max(bad.to(tl.int32)) > 0:
        report_first(box_ptr, WORD, row, bad_word)
        report_first(box_ptr, POSITION, row, bad_position)
        report_first(box_ptr, SEGMENT, row, bad_segment)
    z = tl.where(bad, float("nan"), z)
    centred, mean, rstd = normalise(z, mask, eps, E)
    y = centred * rstd * load_columns(weight_ptr, col, E) + load_columns(bias_ptr, col, E)
    if DROPOUT:
        y = drop(y, rng_ptr, row, threshold, scale, ROWS, BLOCK)
    tl.store(y_ptr + row * E + col, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row < tokens)
    tl.store(rstd_ptr + row, rstd, mask=row < tokens)


@triton.jit(do_not_specialize=["tokens", "padding_idx", "threshold"])
def embedding_sum_norm_bwd_kernel(
    dy_ptr,
    input_ids_ptr,
    position_ids_ptr,
    segment_ids_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    rng_ptr,
    dz_ptr,
    keys_ptr,
    partial_ptr,
    tokens,
    padding_idx,
    threshold,
    scale,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    OUTS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    col = tl.arange(0, BLOCK)[None, :]
    weight = load_columns(weight_ptr, col, E)
    dweight = tl.zeros((1, BLOCK), tl.float32)
    dbias = tl.zeros((1, BLOCK), tl.float32)
    dfirst = tl.zeros((1, BLOCK), tl.float32)  # segment 0; two sums, as the total less segment 1 would cancel
    dsecond = tl.zeros((1, BLOCK), tl.float32)
    for start in range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        row = tl.arange(0, ROWS)[:, None].to(tl.int64) + start
        mask = (row < tokens) & (col < E)
        word, bad_word = load_ids(input_ids_ptr, row, tokens, WORDS)
        position, bad_position = load_ids(position_ids_ptr, row, tokens, POSITIONS)
        segment, bad_segment = load_ids(segment_ids_ptr, row, tokens, SEGMENTS)
        dy = tl.load(dy_ptr + row * E + col, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < tokens, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < tokens, other=0.0)  # 0: rows past the end add nothing to the sums
        z = gather(word_ptr, word, col, mask, E) + gather(segment_ptr, segment, col, mask, E)
        z += gather(position_ptr, position, col, mask, E)
        if DROPOUT:
            dy = drop(dy, rng_ptr, row, threshold, scale, ROWS, BLOCK)
        xhat = (z - mean) * rstd
        dz = normalise_backward(dy, xhat, weight, rstd, E)
        dweight += tl.sum(dy * xhat, 0)[None, :]
        dbias += tl.sum(dy, 0)[None, :]
        tl.store(dz_ptr + row * E + col, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        # Keys to sort by: all tables in one numbering, -1 where nothing is to be added.
        key = tl.where(bad_word | (word == padding_idx), -1, word).to(tl.int32)
        tl.store(keys_ptr + row, key, mask=row < tokens)
        key = tl.where(bad_position, -1, WORDS + position).to(tl.int32)
        tl.store(keys_ptr + tokens + row, key, mask=row < tokens)
        if OUTS > 2:
            dfirst += tl.sum(tl.where(segment == 0, dz, 0.0), 0)[None, :]
            dsecond += tl.sum(tl.where(segment == 1, dz, 0.0), 0)[None, :]
        else:
            key = tl.where(bad_segment, -1, WORDS + POSITIONS + segment).to(tl.int32)
            tl.store(keys_ptr + 2 * tokens.to(tl.int64) + row, key, mask=row < tokens)
    partial_ptr += tl.program_id(0) * OUTS * E
    tl.store(partial_ptr + col, dweight, mask=col < E)
    tl.store(partial_ptr + E + col, dbias, mask=col < E)
    if OUTS > 2:
        tl.store(partial_ptr + 2 * E + col, dfirst, mask=col < E)
        tl.store(partial_ptr + 3 * E + col, dsecond, mask=col < E)


def _check(input_ids, position_ids, segment_ids, word, position, segment) -> None:
    """Raise what an earlier call's kernel reported; in the interpreter, look at these ids at once as the reference does."""
    if INTERPRETED:
        reference.check_ids(input_ids, word.shape[0], "input_ids")
        reference.check_ids(position_ids, position.shape[0], "position_ids")
        reference.check_ids(segment_ids, segment.shape[0], "segment_ids")
    mailbox.check(word.device)


def _taken(word: Tensor, *others: Tensor) -> bool:
    # A table without rows has nothing to clamp to; the reference raises on any id.
    return taken(word, *others) and all(t.shape[0] > 0 for t in (word, *others[:2]))


def forward(
    input_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding_idx: int,
    eps: float,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (input_ids, position_ids, segment_ids, word, position, segment, weight, bias)
    if not _taken(*tensors[3:]):
        return reference.forward(*tensors, padding_idx, eps, dropout_p, rng)
    _check(*tensors[:6])
    tensors = contiguous(*tensors)
    tokens, cols = input_ids.shape[0], word.shape[1]
    y = torch.empty((tokens, cols), dtype=word.dtype, device=word.device)
    mean = torch.empty(tokens, dtype=torch.float32, device=word.device)
    rstd = torch.empty_like(mean)
    tile = forward_tile(cols, tokens, multiprocessors(word.device))
    dropout = rng is not None and dropout_p > 0.0
    launch(
        embedding_sum_norm_fwd_kernel,
        (cdiv(tokens, tile.rows),),
        (
            *(*tensors, rng if dropout else None, y, mean, rstd, mailbox.box(word.device)),
            *(tokens, eps, *dropout_numbers(dropout_p)),
        ),
        {
            "E": cols,
            "WORDS": word.shape[0],
            "POSITIONS": position.shape[0],
            "SEGMENTS": segment.shape[0],
            "DROPOUT": dropout,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
        },
        warps=tile.warps,
    )
    return y, mean, rstd


def backward(
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    padding_idx: int,
    dropout_p: float,
    rng: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (dy, input_ids, position_ids, segment_ids, word, position, segment, weight, mean, rstd)
    tables = (word, position, segment)
    if not _taken(*tables, weight, dy) or not segments.fits(input_ids.shape[0], tables):
        return reference.backward(*tensors, padding_idx, dropout_p, rng)
    _check(*tensors[1:7])
    tensors = contiguous(*tensors)
    tokens, cols = input_ids.shape[0], word.shape[1]
    two = segment.shape[0] == 2
    dz = torch.empty((tokens, cols), dtype=word.dtype, device=word.device)
    keys = torch.empty((2 if two else 3) * tokens, dtype=torch.int32, device=word.device)
    tile = backward_tile(cols)
    programs = backward_programs(tokens, tile, multiprocessors(word.device))
    outs = 4 if two else 2
    partial = torch.empty((programs, outs, cols), dtype=torch.float32, device=word.device)
    dropout = rng is not None and dropout_p > 0.0
    launch(
        embedding_sum_norm_bwd_kernel,
        (programs,),
        (
            *(*tensors, rng if dropout else None, dz, keys, partial),
            *(tokens, padding_idx, *dropout_numbers(dropout_p)),
        ),
        {
            "E": cols,
            "WORDS": word.shape[0],
            "POSITIONS": position.shape[0],
            "SEGMENTS": segment.shape[0],
            "OUTS": outs,
            "DROPOUT": dropout,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
        },
        warps=tile.warps,
    )
    # Contiguous whatever the tables' strides; rows that no token names stay zero.
    dword, dposition = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (word, position))
    dsegment = (torch.empty if two else torch.zeros)(segment.shape, dtype=segment.dtype, device=segment.device)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    sums.add_up(partial, dweight, dbias, dsegment if two else None)
    segments.add_rows(dz, keys, dword, dposition, None if two else dsegment)
    return dword, dposition, dsegment, dweight, dbias
