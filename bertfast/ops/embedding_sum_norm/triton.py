"""embedding_sum_norm on GPUs: y = dropout(norm(word[id] + segment[id] + position[id])), a token's row in registers.

A program gathers a tile of tokens. Saved for backward, which is in `triton_backward`: ids, mean, rstd; the sum is gathered again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.ops.embedding_sum_norm import reference
from bertfast.ops.rng import numbers_rows
from bertfast.triton import mailbox
from bertfast.triton.launch import INTERPRETED, cdiv, launch
from bertfast.triton.rows import (
    MAX_COLS,
    contiguous,
    drop,
    forward_tile,
    load_columns,
    normalise,
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


def check(input_ids, position_ids, segment_ids, word, position, segment) -> None:
    """Raise what an earlier call's kernel reported; in the interpreter, look at these ids at once as the reference does."""
    if INTERPRETED:
        reference.check_ids(input_ids, word.shape[0], "input_ids")
        reference.check_ids(position_ids, position.shape[0], "position_ids")
        reference.check_ids(segment_ids, segment.shape[0], "segment_ids")
    mailbox.check(word.device)


def takes_sizes(words: int, positions: int, segments: int, cols: int) -> bool:
    """Whether the kernels take tables of so many rows; the reference takes the others."""
    # A table without rows has nothing to clamp to; the reference raises on any id.
    return 0 not in (words, positions, segments) and words + positions + segments < 2**31 - 1 and cols <= MAX_COLS


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
    if not (taken(*tensors[3:]) and takes_sizes(word.shape[0], position.shape[0], segment.shape[0], word.shape[1])):
        return reference.forward(*tensors, padding_idx, eps, dropout_p, rng)
    check(*tensors[:6])
    tensors = contiguous(*tensors)
    tokens, cols = input_ids.shape[0], word.shape[1]
    y = torch.empty((tokens, cols), dtype=word.dtype, device=word.device)
    mean = torch.empty(tokens, dtype=torch.float32, device=word.device)
    rstd = torch.empty_like(mean)
    tile = forward_tile(cols, tokens, word.device)
    dropout = rng is not None and dropout_p > 0.0
    launch(
        embedding_sum_norm_fwd_kernel,
        (cdiv(tokens, tile.rows),),
        (
            *(*tensors, rng if dropout else None, y, mean, rstd, mailbox.box(word.device)),
            *(tokens, eps, *numbers_rows(dropout_p)),
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
