"""The two kernels of embedding_sum_norm's backward; what they do and why is said in `triton_backward`, which launches them."""

import triton
import triton.language as tl

from bertfast.ops.embedding_sum_norm import segments
from bertfast.ops.embedding_sum_norm.triton import gather, load_ids
from bertfast.triton import sums
from bertfast.triton.rows import drop, load_columns, normalise_backward


@triton.jit
def divide(workspace_ptr, programs, count, dtype: tl.constexpr, E: tl.constexpr, OUTS: tl.constexpr):
    """Where places, int64 [count], and dz, [T, E] of dtype, stand behind the partial sums; each at 16 bytes."""
    places = (programs.to(tl.int64) * (OUTS * E) + 3) // 4 * 4
    dz = places + (2 * count.to(tl.int64) + 3) // 4 * 4
    dz_ptr = (workspace_ptr + dz).to(tl.pointer_type(dtype))
    return (workspace_ptr + places).to(tl.pointer_type(tl.int64)), tl.multiple_of(dz_ptr, 16)


@triton.jit
def clear(table_ptr, program, PROGRAMS: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr):
    """Zeros in the pieces of a table that are this program's."""
    for start in range(program.to(tl.int64) * STEP, SIZE, PROGRAMS * STEP):
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


@triton.jit(do_not_specialize=["tokens", "threshold"])
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
    workspace_ptr,
    dword_ptr,
    dposition_ptr,
    tokens,
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
    CLEARING: tl.constexpr,
    STEP: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = (tokens + PLACE_ROWS - 1) // PLACE_ROWS
    tables: tl.constexpr = 2 if OUTS > 2 else 3
    programs = tl.num_programs(0) - CLEARING - tables * tiles
    places_ptr, dz_ptr = divide(workspace_ptr, programs, tables * tokens, dword_ptr.dtype.element_ty, E, OUTS)
    if program < programs:
        token_gradients(
            dy_ptr, input_ids_ptr, position_ids_ptr, segment_ids_ptr, word_ptr, position_ptr, segment_ptr, weight_ptr,
            mean_ptr, rstd_ptr, rng_ptr, dz_ptr, workspace_ptr, tokens, program, programs, threshold, scale,
            E, WORDS, POSITIONS, SEGMENTS, OUTS, DROPOUT, ROWS, BLOCK,
        )  # fmt: skip
    elif program < programs + tables * tiles:
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
        if not ADD:
            clear(dword_ptr, number, CLEARING, WORDS * E, STEP)
        clear(dposition_ptr, number, CLEARING, POSITIONS * E, STEP)


@triton.jit(do_not_specialize=["count", "programs"])
def embedding_sum_norm_bwd_tables_kernel(
    workspace_ptr,
    rows_ptr,
    places_ptr,
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
        total = sums.column_total(workspace_ptr, out, col, programs, E, OUTS, PARTS)
        sums.store_total(dweight_ptr, dbias_ptr, dsegment_ptr, out, col, total, E, OUTS)
    else:
        start = program - OUTS * blocks
        if places_ptr is None:
            all_ptr, dz_ptr = divide(workspace_ptr, programs, count, dword_ptr.dtype.element_ty, E, OUTS)
            segments.walk_run(
                dz_ptr, all_ptr, dword_ptr, dposition_ptr, dsegment_ptr, start, count,
                E, WORDS, POSITIONS, ADD, 1, ROWS, BLOCK,
            )  # fmt: skip
        else:
            segments.walk_run(
                rows_ptr, places_ptr, dword_ptr, dposition_ptr, dsegment_ptr, start, count,
                E, WORDS, POSITIONS, ADD, 2, ROWS, BLOCK,
            )  # fmt: skip
