"""embedding_sum_norm backward on GPUs: dz = the gradient of the sum that the norm got, then table[id] += dz in a fixed order.

First launch: some programs walk over tiles of tokens, gather the sum again, write dz [T, E] and keep what all tokens add to (norm
parameters, a segment table of up to two rows) in registers; others put ids in order (`segments`); others clear the tables'
gradients. Last launch: programs walk the runs of equal ids, others add up the first launch's partial sums. Many tokens have
`segments.shorten` in between. dz is in the tables' dtype: half of float32's bytes for bfloat16, and one rounding, which torch's
own backward makes there too.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, empty_like

from bertfast.ops.embedding_sum_norm import reference, segments
from bertfast.ops.embedding_sum_norm.triton import check, gather, load_ids, takes_sizes
from bertfast.triton import sums
from bertfast.triton.launch import cdiv, launch, multiprocessors
from bertfast.triton.rows import (
    DTYPES,
    RowTile,
    backward_programs,
    backward_tile,
    contiguous,
    drop,
    dropout_numbers,
    load_columns,
    normalise_backward,
)

MOST_TOKENS = (2**31 - 1) // 3  # places are 32-bit numbers
# Tokens that one program puts in order, and keys it compares them with at once for each of its warps: 16 counts a thread, as
# twice as many take 179 registers. Programs that only write keys, for torch.sort, take more rows. Predicted, never measured.
RANK_ROWS, RANK_COLS, KEY_ROWS = 64, 8, 1024
# Programs for each multiprocessor that clear tables; 4 KB a step at four warps. Predicted, never measured.
CLEARING, CLEAR_STEP = 2, 512


@triton.jit
def places_of(workspace_ptr, programs, E: tl.constexpr, OUTS: tl.constexpr):
    """Where the workspace, programs * OUTS rows of partial sums in float32, goes on with places in int64."""
    return workspace_ptr.to(tl.pointer_type(tl.int64)) + (programs.to(tl.int64) * (OUTS * E) + 1) // 2


@triton.jit
def clear(table_ptr, program, programs, SIZE: tl.constexpr, STEP: tl.constexpr):
    """Zeros in the pieces of a table that are this program's."""
    for start in range(program.to(tl.int64) * STEP, SIZE, programs.to(tl.int64) * STEP):
        place = start + tl.arange(0, STEP)
        tl.store(table_ptr + place, tl.zeros((STEP,), table_ptr.dtype.element_ty), mask=place < SIZE)


@triton.jit
def write_places(
    ids_ptr,
    places_ptr,
    number: tl.constexpr,
    tile,
    tokens,
    padding_idx,
    BASE: tl.constexpr,
    TABLE: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """A tile of the places of table `number`: in order, or for torch.sort only keys in int32."""
    first = number * tokens.to(tl.int64)
    if RANK:
        segments.rank_places(ids_ptr, places_ptr + first, tile, tokens, padding_idx, BASE, TABLE, ROWS, COLS)
    else:
        row = tile * ROWS + tl.arange(0, ROWS)
        key = segments.load_keys(ids_ptr, row, tokens, padding_idx, BASE, TABLE)
        tl.store(places_ptr.to(tl.pointer_type(tl.int32)) + first + row, key, mask=row < tokens)


@triton.jit
def token_gradients(
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
    partial_ptr,
    tokens,
    program,
    programs,
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
    """dz of every programs-th tile of tokens, and this program's sums over them."""
    col = tl.arange(0, BLOCK)[None, :]
    weight = load_columns(weight_ptr, col, E)
    dweight = tl.zeros((1, BLOCK), tl.float32)
    dbias = tl.zeros((1, BLOCK), tl.float32)
    dfirst = tl.zeros((1, BLOCK), tl.float32)  # segment 0; two sums, as the total less segment 1 would cancel
    dsecond = tl.zeros((1, BLOCK), tl.float32)
    for start in range(program * ROWS, tokens, programs * ROWS):
        row = tl.arange(0, ROWS)[:, None].to(tl.int64) + start
        mask = (row < tokens) & (col < E)
        word, _ = load_ids(input_ids_ptr, row, tokens, WORDS)
        position, _ = load_ids(position_ids_ptr, row, tokens, POSITIONS)
        segment, _ = load_ids(segment_ids_ptr, row, tokens, SEGMENTS)
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
        if OUTS == 3:
            dfirst += tl.sum(dz, 0)[None, :]
        if OUTS == 4:
            dfirst += tl.sum(tl.where(segment == 0, dz, 0.0), 0)[None, :]
            dsecond += tl.sum(tl.where(segment == 1, dz, 0.0), 0)[None, :]
    partial_ptr += program.to(tl.int64) * (OUTS * E)
    tl.store(partial_ptr + col, dweight, mask=col < E)
    tl.store(partial_ptr + E + col, dbias, mask=col < E)
    if OUTS > 2:
        tl.store(partial_ptr + 2 * E + col, dfirst, mask=col < E)
    if OUTS > 3:
        tl.store(partial_ptr + 3 * E + col, dsecond, mask=col < E)


@triton.jit(do_not_specialize=["tokens", "programs", "threshold"])
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
    workspace_ptr,
    dword_ptr,
    dposition_ptr,
    tokens,
    programs,
    threshold,
    scale,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PADDING: tl.constexpr,
    OUTS: tl.constexpr,
    DROPOUT: tl.constexpr,
    RANK: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACE_ROWS: tl.constexpr,
    PLACE_COLS: tl.constexpr,
    STEP: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = (tokens + PLACE_ROWS - 1) // PLACE_ROWS
    tables: tl.constexpr = 2 if OUTS > 2 else 3
    if program < programs:
        token_gradients(
            dy_ptr, input_ids_ptr, position_ids_ptr, segment_ids_ptr, word_ptr, position_ptr, segment_ptr, weight_ptr,
            mean_ptr, rstd_ptr, rng_ptr, dz_ptr, workspace_ptr, tokens, program, programs, threshold, scale,
            E, WORDS, POSITIONS, SEGMENTS, OUTS, DROPOUT, ROWS, BLOCK,
        )  # fmt: skip
    elif program < programs + tables * tiles:
        places_ptr = places_of(workspace_ptr, programs, E, OUTS)
        tile = (program - programs) % tiles
        table = (program - programs) // tiles
        if table == 0:
            write_places(
                input_ids_ptr, places_ptr, 0, tile, tokens, PADDING, 0, WORDS, RANK, PLACE_ROWS, PLACE_COLS
            )  # fmt: skip
        elif table == 1:
            write_places(
                position_ids_ptr, places_ptr, 1, tile, tokens, -1, WORDS, POSITIONS, RANK, PLACE_ROWS, PLACE_COLS
            )  # fmt: skip
        elif OUTS == 2:
            write_places(
                segment_ids_ptr, places_ptr, 2, tile, tokens, -1, WORDS + POSITIONS, SEGMENTS, RANK, PLACE_ROWS, PLACE_COLS
            )  # fmt: skip
    else:
        number = program - programs - tables * tiles
        clearing = tl.num_programs(0) - programs - tables * tiles
        if not ADD:
            clear(dword_ptr, number, clearing, WORDS * E, STEP)
        clear(dposition_ptr, number, clearing, POSITIONS * E, STEP)


@triton.jit(do_not_specialize=["count", "programs"])
def embedding_sum_norm_bwd_tables_kernel(
    rows_ptr,
    places_ptr,
    workspace_ptr,
    dword_ptr,
    dposition_ptr,
    dsegment_ptr,
    dweight_ptr,
    dbias_ptr,
    count,
    programs,
    E: tl.constexpr,
    WORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
    OUTS: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    COLS: tl.constexpr,
):
    blocks: tl.constexpr = (E + COLS - 1) // COLS
    program = tl.program_id(0)
    if program < OUTS * blocks:
        out = program % OUTS
        col = program // OUTS * COLS + tl.arange(0, COLS)
        total = sums.column_total(workspace_ptr, out, col, programs, E, E, OUTS, PARTS)
        sums.store_total(dweight_ptr, dbias_ptr, dsegment_ptr, out, col, total, E, OUTS)
    else:
        sorted_ptr = places_of(workspace_ptr, programs, E, OUTS) if places_ptr is None else places_ptr
        start = program - OUTS * blocks
        segments.walk_run(
            rows_ptr, sorted_ptr, dword_ptr, dposition_ptr, dsegment_ptr, start, count,
            E, WORDS, POSITIONS, ADD, 1 if places_ptr is None else 2, ROWS, BLOCK,
        )  # fmt: skip


class Plan(NamedTuple):
    """What a launch needs that only shapes decide, made once for each of them: an eager call has no time to spare."""

    tile: RowTile
    outs: int
    tables: int  # whose ids are put in order
    place_rows: int
    clearing: int
    first: dict[str, Any]  # constants of the two kernels
    last: dict[str, Any]
    numbers: tuple[int, float]
    last_blocks: int
    multiprocessors: int


@lru_cache(maxsize=64)
def _plan(
    words: int,
    positions: int,
    segments_: int,
    cols: int,
    padding_idx: int,
    dropout_p: float,
    rank: bool,
    add: bool,
    sms: int,
) -> Plan | None:
    """None for sizes that the kernels do not take; keys, rows of all tables in one numbering, are 32-bit numbers."""
    if not takes_sizes(words, positions, segments_, cols):
        return None
    outs = 2 + segments_ if segments_ <= 2 else 2
    tile = backward_tile(cols)
    place_rows = RANK_ROWS if rank else KEY_ROWS
    step = CLEAR_STEP * tile.warps
    shared = {"E": cols, "WORDS": words, "POSITIONS": positions}
    first = {
        **shared,
        "SEGMENTS": segments_,
        "PADDING": padding_idx,
        "OUTS": outs,
        "DROPOUT": dropout_p > 0.0,
        "RANK": rank,
        "ADD": add,
        "ROWS": tile.rows,
        "BLOCK": tile.block,
        "PLACE_ROWS": place_rows,
        "PLACE_COLS": RANK_COLS * tile.warps,
        "STEP": step,
    }
    last = {
        **shared,
        "OUTS": outs,
        "ADD": add,
        "ROWS": 8 if tile.block <= 2048 else 4,  # 64 elements a thread in flight
        "BLOCK": tile.block,
        "PARTS": 32 * tile.warps,
        "COLS": sums.COLS,
    }
    clearing = min(CLEARING * sms, cdiv(max(0 if add else words, positions) * cols, step))
    return Plan(
        tile,
        outs,
        2 if outs > 2 else 3,
        place_rows,
        clearing,
        first,
        last,
        dropout_numbers(dropout_p),
        outs * cdiv(cols, sums.COLS),
        sms,
    )


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
    plan = _plan_for(tensors, padding_idx, 0.0 if rng is None else dropout_p, False)
    if plan is None:
        return reference.backward(*tensors, padding_idx, dropout_p, rng)
    check(*tensors[1:7])
    tensors = contiguous(*tensors)
    dword, dposition, dsegment = (empty_like(tensors[4]), empty_like(tensors[5]), empty_like(tensors[6]))
    gradients = dword, dposition, dsegment, empty_like(weight), empty_like(weight)
    _launch(plan, gradients, tensors, rng)
    return gradients


def _plan_for(tensors: tuple, padding_idx: int, dropout_p: float, add: bool) -> Plan | None:
    dy, _, _, _, word, position, segment, weight, _, _ = tensors
    dtype = word.dtype
    if dtype not in DTYPES or weight.dtype not in DTYPES or not dy.dtype == dtype == position.dtype == segment.dtype:
        return None
    tokens, cols = dy.shape
    if tokens > MOST_TOKENS:
        return None
    sizes = word.shape[0], position.shape[0], segment.shape[0], cols
    return _plan(*sizes, padding_idx, dropout_p, tokens <= segments.RANKED_TOKENS, add, multiprocessors(dy.device))


def _launch(plan: Plan, gradients: tuple, tensors: tuple, rng: Tensor | None) -> None:
    dword, dposition, dsegment, _, _ = gradients
    dy, first, last = tensors[0], plan.first, plan.last
    tokens, cols = dy.shape
    tile, outs = plan.tile, plan.outs
    count = tokens * plan.tables
    programs = backward_programs(tokens, tile, plan.multiprocessors)
    # Partial sums, then places: one allocation and one argument for both.
    partial = (programs * outs * cols + 1) // 2 * 2
    dz = empty_like(dy)
    workspace = torch.empty(partial + 2 * count, dtype=torch.float32, device=dy.device)
    if outs == 2:
        dsegment.zero_()
    launch(
        embedding_sum_norm_bwd_kernel,
        (programs + plan.tables * cdiv(tokens, plan.place_rows) + plan.clearing,),
        (
            *(*tensors, rng if first["DROPOUT"] else None, dz, workspace, dword, dposition),
            *(tokens, programs, *plan.numbers),
        ),
        first,
        warps=tile.warps,
    )
    rows, places = dz, None
    if tokens > segments.DIRECT_TOKENS:
        found, order = workspace[partial:].view(torch.int64), None
        if not first["RANK"]:
            found, order = torch.sort(workspace[partial : partial + count].view(torch.int32), stable=True)
        tables = dword, dposition, dsegment if outs == 2 else None
        rows, places = segments.shorten(dz, found, order, tables, tokens, last["ADD"])
        count = places.shape[0]
    launch(
        embedding_sum_norm_bwd_tables_kernel,
        (plan.last_blocks + count,),
        (rows, places, workspace, *gradients, count, programs),
        last,
        warps=tile.warps,
    )
