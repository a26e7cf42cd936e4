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
from torch import Tensor, empty_like

from bertfast.ops.embedding_sum_norm import reference, segments
from bertfast.ops.embedding_sum_norm.triton import check, takes_sizes
from bertfast.ops.embedding_sum_norm.triton_backward_kernels import (
    embedding_sum_norm_bwd_kernel,
    embedding_sum_norm_bwd_tables_kernel,
)
from bertfast.ops.rng import numbers_rows
from bertfast.triton import sums, tables
from bertfast.triton.launch import architecture, cdiv, launch, multiprocessors
from bertfast.triton.rows import (
    DTYPES,
    RowTile,
    backward_programs,
    backward_tile,
    contiguous,
)

MOST_TOKENS = (2**31 - 1) // 3  # places are 32-bit numbers


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


@lru_cache(maxsize=64)
def _plan(
    words: int,
    positions: int,
    segment_rows: int,
    cols: int,
    padding_idx: int,
    dropout_p: float,
    rank: bool,
    add: bool,
    device: torch.device,
    arch: int,
    processors: int,
) -> Plan | None:
    """None for sizes that the kernels do not take; keys, rows of all tables in one numbering, are 32-bit numbers."""
    if not takes_sizes(words, positions, segment_rows, cols):
        return None
    outs = 2 + segment_rows if segment_rows <= 2 else 2
    tile = backward_tile(cols, device)
    found = segments.TABLES.find("places", arch, order="ranked" if rank else "sorted")
    place_rows, place_cols, step = (
        found["rows"],
        found["cols_per_warp"] * tile.warps,
        found["clear_per_warp"] * tile.warps,
    )
    clearing = min(found["clearing"] * processors, cdiv(max(0 if add else words, positions) * cols, step))
    shared = {"E": cols, "WORDS": words, "POSITIONS": positions}
    first = {
        **shared,
        "SEGMENTS": segment_rows,
        "PADDING": padding_idx,
        "OUTS": outs,
        "DROPOUT": dropout_p > 0.0,
        "RANK": rank,
        "ADD": add,
        "ROWS": tile.rows,
        "BLOCK": tile.block,
        "PLACE_ROWS": place_rows,
        "PLACE_COLS": place_cols,
        "CLEARING": clearing,
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
    return Plan(
        tile,
        outs,
        2 if outs > 2 else 3,
        place_rows,
        clearing,
        first,
        last,
        numbers_rows(dropout_p),
        outs * cdiv(cols, sums.COLS),
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


def tied_backward(
    dword: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (dy, input_ids, position_ids, segment_ids, word, position, segment, weight, mean, rstd)
    plan = _plan_for(tensors, padding_idx, 0.0 if rng is None else dropout_p, True)
    if plan is None or dword.dtype != word.dtype or dword.shape != word.shape or not dword.is_contiguous():
        return reference.tied_backward(dword, *tensors, padding_idx, dropout_p, rng)
    check(*tensors[1:7])
    tensors = contiguous(*tensors)
    gradients = empty_like(tensors[5]), empty_like(tensors[6]), empty_like(weight), empty_like(weight)
    _launch(plan, (dword, *gradients), tensors, rng)
    return gradients


def _plan_for(tensors: tuple, padding_idx: int, dropout_p: float, add: bool) -> Plan | None:
    dy, _, _, _, word, position, segment, weight, mean, _ = tensors
    dtype = word.dtype
    if dtype not in DTYPES or weight.dtype not in DTYPES or mean.dtype != torch.float32:
        return None
    if not dy.dtype == dtype == position.dtype == segment.dtype:
        return None
    tokens, cols = dy.shape
    if tokens > MOST_TOKENS:
        return None
    device, rank = dy.device, tokens <= segments.RANKED_TOKENS
    sizes = word.shape[0], position.shape[0], segment.shape[0], cols
    plan = _plan.__wrapped__ if tables.watched() else _plan
    return plan(*sizes, padding_idx, dropout_p, rank, add, device, architecture(device), multiprocessors(device))


def _launch(plan: Plan, gradients: tuple, tensors: tuple, rng: Tensor | None) -> None:
    dword, dposition, dsegment, _, _ = gradients
    dy, first, last = tensors[0], plan.first, plan.last
    tokens, cols = dy.shape
    tile, outs = plan.tile, plan.outs
    count = tokens * plan.tables
    programs = backward_programs(tokens, tile, dy.device)
    # Partial sums, places and dz (see `divide`): one allocation and one argument for all three.
    at = (programs * outs * cols + 3) // 4 * 4
    behind = at + (2 * count + 3) // 4 * 4
    workspace = tensors[8].new_empty(behind + (tokens * cols * dy.element_size() + 3) // 4)  # float32, as mean is
    if outs == 2:
        dsegment.zero_()
    launch(
        embedding_sum_norm_bwd_kernel,
        (programs + plan.tables * cdiv(tokens, plan.place_rows) + plan.clearing,),
        (*tensors, rng if first["DROPOUT"] else None, workspace, dword, dposition, tokens, *plan.numbers),
        first,
        warps=tile.warps,
    )
    rows = places = None
    if tokens > segments.DIRECT_TOKENS:
        dz = workspace[behind:].view(dy.dtype)[: tokens * cols].view(tokens, cols)
        found, order = workspace[at : at + 2 * count].view(torch.int64), None
        if not first["RANK"]:
            found, order = torch.sort(workspace[at : at + count].view(torch.int32), stable=True)
        ending = dword, dposition, dsegment if outs == 2 else None
        rows, places = segments.shorten(dz, found, order, ending, tokens, last["ADD"])
        count = places.shape[0]
    launch(
        embedding_sum_norm_bwd_tables_kernel,
        (plan.last_blocks + count,),
        (workspace, rows, places, *gradients, count, programs),
        last,
        warps=tile.warps,
    )
