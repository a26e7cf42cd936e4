"""One product kernel for sm_90, in Gluon: out [M, N] = a [M, K] b [N, K]^T in 16-bit types, with what follows it in its epilogue.

Persistent programs, each of four warpgroups that hand tiles to one another through shared memory and barriers:

    loads      asks TMA for blocks of a and b, STAGES ahead
    two        multiply 64 rows of the tile each (wgmma, accumulators in registers), leave the finished tile in shared memory
               and go on with the next one
    epilogue   adds the bias, applies GELU or its gradient, sums columns, and has TMA store the results meanwhile

    barrier     completed by                                        waited for by
    full[s]     the bytes of a and b of stage s                      both multiplying warpgroups (and the epilogue, SUMS)
    empty[s]    both multiplying warpgroups (and the epilogue)       loads
    left[j]     both multiplying warpgroups: slice j is written      epilogue
    free[j]     epilogue: slice j is stored (ADD: filled with c)     both multiplying warpgroups
    side_full   the bytes of a slice of pre (DGELU)                  epilogue

Every barrier is waited for with the parity of how often it was waited for before, `(count // stages) & 1`; who waits for memory to
be free begins with the parity of the phase before the first, which has always passed.

An operand lies as [rows, K] (K-major) or as [K, rows] (A_ROWS, B_ROWS: rows-major, as the transposed operands of backward are). Sizes
need not be multiples of a tile: TMA reads zeros outside and does not store there. Row pitches must be multiples of 16 bytes.

EPILOGUE                        stores
PLAIN                           out = a b (+ bias)
GELU                            out = gelu(a b + bias), and pre = a b where PRE
DGELU                           out = (a b) gelu'(pre + bias), and its column sums over each tile's rows, float32
ADD                             out += a b, in one rounding: slices of out are read to where the sums are then left
WEIGHT                          out = a b where K is many tokens, in STREAM by `_part`; from registers. Its sums are of a's rows

With PLAIN, GELU, DGELU and ADD the number of rows M is `tokens`, with WEIGHT it is K; the other sizes are constants.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from bertfast.ops.linear_gelu.gluon_gelu import gelu, gelu_gradient

PLAIN, GELU, DGELU, ADD, WEIGHT = range(5)
BLOCK_M = 128  # two warpgroups of 64 rows
SLICE_BYTES = 128  # of a row of a slice of the result: what TMA swizzles

_PLAIN, _GELU, _DGELU, _ADD, _WEIGHT = (gl.constexpr(epilogue) for epilogue in range(5))
_BM, _HALF = gl.constexpr(BLOCK_M), gl.constexpr(BLOCK_M // 2)


@gluon.jit
def cdiv(a, b):
    return (a + b - 1) // b


@gluon.jit
def corner(tile, tiles_m, TILES_N: gl.constexpr, GROUP: gl.constexpr, BN: gl.constexpr):
    """(row, column) of a tile: GROUP tile rows are done column by column before the next GROUP. Row by row where GROUP is 1."""
    group = tile // (GROUP * TILES_N)
    size = gl.minimum(tiles_m - group * GROUP, GROUP)
    inside = tile % (GROUP * TILES_N)
    return (group * GROUP + inside % size) * _BM, inside // size * BN


@gluon.jit
def _share(tiles, steps):
    """(waves, share): whole tiles that each program makes, and its steps of the tiles that are left, together `steps` each."""
    waves = tiles // gl.num_programs(0)
    return waves, cdiv((tiles - waves * gl.num_programs(0)) * steps, gl.num_programs(0))


@gluon.jit
def _parts(tiles, steps, STREAM: gl.constexpr):
    """How many tiles, or parts of tiles, this program makes."""
    if STREAM:
        waves, share = _share(tiles, steps)
        first = gl.program_id(0) * share
        last = gl.minimum(first + share, (tiles - waves * gl.num_programs(0)) * steps)
        parts = waves + gl.maximum(cdiv(last, steps) - first // steps, 0)
    else:
        parts = cdiv(tiles - gl.program_id(0), gl.num_programs(0))
    return parts


@gluon.jit
def _part(i, tiles, steps, STREAM: gl.constexpr):
    """(tile, first step, last step) of this program's part i.

    Without STREAM: whole tiles, in turn. With it, for results of few tiles and a long K: as many rounds of whole tiles as there are,
    and the steps of the tiles that are left in equal shares, so that every program works to the end. A share is the end of a tile,
    whole tiles and the beginning of one, or the middle of one: so a program leaves at most two parts, one that does not begin
    with its tile (place 2 p of the partial sums of program p) and one that does not end with it (2 p + 1).
    """
    if STREAM:
        waves, share = _share(tiles, steps)
        first = gl.program_id(0) * share
        last = gl.minimum(first + share, (tiles - waves * gl.num_programs(0)) * steps)
        left = first // steps + i - waves
        whole = i < waves
        tile = gl.where(whole, i * gl.num_programs(0) + gl.program_id(0), waves * gl.num_programs(0) + left)
        begin = gl.where(whole, 0, gl.maximum(first - left * steps, 0))
        end = gl.where(whole, steps, gl.minimum(last - left * steps, steps))
    else:
        tile = i * gl.num_programs(0) + gl.program_id(0)
        begin = 0
        end = steps
    return tile, begin, end


@gluon.jit
def _corner_of(i, tiles_m, TILE: gl.constexpr):
    """(row, column) of this program's tile i, where tiles are made in turn."""
    return corner(i * gl.num_programs(0) + gl.program_id(0), tiles_m, TILE[3], TILE[4], TILE[0])


@gluon.jit
def _loads(descriptors, operands, barriers, sizes, TILE: gl.constexpr, FORM: gl.constexpr):
    a_desc, b_desc = descriptors
    a_buffers, b_buffers = operands
    full, empty, _, _, _ = barriers
    tiles_m, tiles, steps = sizes
    BN: gl.constexpr = TILE[0]
    BK: gl.constexpr = TILE[1]
    STAGES: gl.constexpr = TILE[2]
    STREAM: gl.constexpr = FORM[3]
    BYTES: gl.constexpr = (_BM + BN) * BK * a_desc.dtype.primitive_bitwidth // 8
    count = 0
    for i in range(_parts(tiles, steps, STREAM)):
        tile, begin, end = _part(i, tiles, steps, STREAM)
        row, col = corner(tile, tiles_m, TILE[3], TILE[4], BN)
        for step in range(begin, end):
            s = count % STAGES
            k = step * BK
            mbarrier.wait(empty.index(s), ((count // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(s), BYTES)
            if FORM[1]:
                tma.async_copy_global_to_shared(a_desc, [k, row], full.index(s), a_buffers.index(s))  # [BK, BM]
            else:
                tma.async_copy_global_to_shared(a_desc, [row, k], full.index(s), a_buffers.index(s))  # [BM, BK]
            if FORM[2]:
                tma.async_copy_global_to_shared(b_desc, [k, col], full.index(s), b_buffers.index(s))  # [BK, BN]
            else:
                tma.async_copy_global_to_shared(b_desc, [col, k], full.index(s), b_buffers.index(s))  # [BN, BK]
            count += 1


@gluon.jit
def _multiply(operands, barriers, results, pointers, sizes, TILE: gl.constexpr, FORM: gl.constexpr, M: gl.constexpr,
              N: gl.constexpr, C: gl.constexpr):  # fmt: skip
    """Rows 64 C to 64 C + 64 of every tile."""
    a_buffers, b_buffers = operands
    full, empty, left, free, _ = barriers
    out, _, slices, _ = results
    bias_ptr, partial_ptr, _ = pointers
    tiles_m, tiles, steps = sizes
    BN: gl.constexpr = TILE[0]
    STAGES: gl.constexpr = TILE[2]
    EPILOGUE: gl.constexpr = FORM[0]
    STREAM: gl.constexpr = FORM[3]
    # Of wgmmas 256 wide ptxas wants 154 registers at entry.
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    count = 0
    for i in range(_parts(tiles, steps, STREAM)):
        tile, begin, end = _part(i, tiles, steps, STREAM)
        sums = gl.zeros([_HALF, BN], gl.float32, L)
        for step in range(begin, end):
            s = count % STAGES
            mbarrier.wait(full.index(s), (count // STAGES) & 1)
            if FORM[1]:
                a = a_buffers.index(s).slice(C * _HALF, _HALF, dim=1).permute((1, 0))  # [HALF, BK]
            else:
                a = a_buffers.index(s).slice(C * _HALF, _HALF, dim=0)  # [HALF, BK]
            if FORM[2]:
                b = b_buffers.index(s)  # [BK, BN]
            else:
                b = b_buffers.index(s).permute((1, 0))  # [BK, BN]
            sums = warpgroup_mma(a, b, sums, is_async=True)
            sums = warpgroup_mma_wait(1, deps=[sums])
            mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), count=1, pred=step > begin)
            count += 1
        sums = warpgroup_mma_wait(0, deps=[sums])
        mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), count=1)
        row, col = corner(tile, tiles_m, TILE[3], TILE[4], BN)
        if EPILOGUE == _WEIGHT:
            if partial_ptr is None:
                _store_rows(sums, out, row + C * _HALF, col, M, N, N, L)
            elif end - begin == steps:
                _store_rows(sums, out, row + C * _HALF, col, M, N, N, L)
            else:
                place = (2 * gl.program_id(0) + gl.where(begin == 0, 1, 0)) * _BM
                _store_rows(sums, partial_ptr, place + C * _HALF, 0, place + _BM, BN, BN, L)
        else:
            shape = (left, free, slices, bias_ptr)
            first, second = _columns(sums, BN)
            if slices.shape[0] == 2:
                _leave(first, shape, i, col, 0, EPILOGUE, N, C)
                _leave(second, shape, i, col, 1, EPILOGUE, N, C)
            else:
                x0, x1 = _columns(first, BN // 2)
                _leave(x0, shape, i, col, 0, EPILOGUE, N, C)
                _leave(x1, shape, i, col, 1, EPILOGUE, N, C)
                x2, x3 = _columns(second, BN // 2)
                _leave(x2, shape, i, col, 2, EPILOGUE, N, C)
                _leave(x3, shape, i, col, 3, EPILOGUE, N, C)


@gluon.jit
def _columns(x, WIDTH: gl.constexpr):
    """The left and the right half of the columns of x [HALF, WIDTH]."""
    return gl.split(gl.permute(gl.reshape(x, [_HALF, 2, WIDTH // 2]), (0, 2, 1)))


@gluon.jit
def _store_rows(x, ptr, row, col, rows, cols, PITCH: gl.constexpr, L: gl.constexpr):
    """x [HALF, BN] from registers to (row, col) of a matrix [rows, cols]."""
    r = row + gl.arange(0, x.shape[0], layout=gl.SliceLayout(1, L))  # [HALF]
    c = col + gl.arange(0, x.shape[1], layout=gl.SliceLayout(0, L))  # [BN]
    place = gl.expand_dims(r.to(gl.int64) * PITCH, 1) + gl.expand_dims(c, 0)  # [HALF, BN]
    inside = gl.expand_dims(r < rows, 1) & gl.expand_dims(c < cols, 0)
    gl.store(ptr + place, x.to(ptr.dtype.element_ty), mask=inside)


@gluon.jit
def _leave(x, shape, i, col, J: gl.constexpr, EPILOGUE: gl.constexpr, N: gl.constexpr, C: gl.constexpr):
    """Round slice J of a tile [HALF, SLICE] and leave it where the epilogue's warpgroup finds it."""
    left, free, slices, bias_ptr = shape
    W: gl.constexpr = x.shape[1]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W, 16])
    x = gl.convert_layout(x, S, assert_trivial=True)
    here = slices.index(J).slice(C * _HALF, _HALF, dim=0)  # [HALF, SLICE]
    if EPILOGUE == _PLAIN:
        if bias_ptr is not None:
            c = col + J * W + gl.arange(0, W, layout=gl.SliceLayout(0, S))  # [SLICE]
            x += gl.expand_dims(gl.load(bias_ptr + c, mask=c < N, other=0.0).to(gl.float32), 0)
    if EPILOGUE == _ADD:
        mbarrier.wait(free.index(J), i & 1)
        x += here.load(S).to(gl.float32)
    else:
        mbarrier.wait(free.index(J), (i & 1) ^ 1)
    here.store(x.to(slices.dtype))
    fence_async_shared()
    mbarrier.arrive(left.index(J), count=1)


@gluon.jit
def _bias(bias_ptr, col, N: gl.constexpr, W: gl.constexpr, L: gl.constexpr):
    c = col + gl.arange(0, W, layout=gl.SliceLayout(0, L))  # [SLICE]
    return gl.expand_dims(gl.load(bias_ptr + c, mask=c < N, other=0.0).to(gl.float32), 0)


@gluon.jit
def _read_slice(desc, buffer, barrier, i, j, tiles_m, TILE: gl.constexpr, pred):
    """Ask TMA for slice j of this program's tile i."""
    row, col = _corner_of(i, tiles_m, TILE)
    W: gl.constexpr = buffer.shape[1]
    mbarrier.expect(barrier, _BM * W * desc.dtype.primitive_bitwidth // 8, pred=pred)
    tma.async_copy_global_to_shared(desc, [row, col + j * W], barrier, buffer, pred=pred)  # [BM, SLICE]


@gluon.jit
def _store_slices(results, barriers, sizes, TILE: gl.constexpr, EPILOGUE: gl.constexpr):
    """PLAIN and ADD: slices are stored as they are left."""
    out_desc, _, slices, _ = results
    _, _, left, free, _ = barriers
    tiles_m, tiles, steps = sizes
    SLICES: gl.constexpr = slices.shape[0]
    W: gl.constexpr = slices.shape[2]
    parts = _parts(tiles, steps, False)
    if EPILOGUE == _ADD:
        for j in range(SLICES):
            _read_slice(out_desc, slices.index(j), free.index(j), 0, j, tiles_m, TILE, parts > 0)
    for i in range(parts):
        row, col = _corner_of(i, tiles_m, TILE)
        for j in range(SLICES):
            mbarrier.wait(left.index(j), i & 1)
            tma.async_copy_shared_to_global(out_desc, [row, col + j * W], slices.index(j))  # [BM, SLICE]
            tma.store_wait(0)
            if EPILOGUE == _ADD:
                _read_slice(out_desc, slices.index(j), free.index(j), i + 1, j, tiles_m, TILE, i + 1 < parts)
            else:
                mbarrier.arrive(free.index(j), count=1)


@gluon.jit
def _apply_gelu(results, barriers, pointers, sizes, TILE: gl.constexpr, N: gl.constexpr, TANH: gl.constexpr):
    """GELU: pre is stored from where it was left and the result from `side`; without pre the result takes its place."""
    out_desc, pre_desc, slices, side = results
    _, _, left, free, _ = barriers
    bias_ptr, _, _ = pointers
    tiles_m, tiles, steps = sizes
    SLICES: gl.constexpr = slices.shape[0]
    W: gl.constexpr = slices.shape[2]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    for i in range(_parts(tiles, steps, False)):
        row, col = _corner_of(i, tiles_m, TILE)
        for j in range(SLICES):
            c = col + j * W
            here = slices.index(j)
            bias = _bias(bias_ptr, c, N, W, L)
            mbarrier.wait(left.index(j), i & 1)
            if pre_desc is not None:
                tma.async_copy_shared_to_global(pre_desc, [row, c], here)  # [BM, SLICE]
            x = here.load(L).to(gl.float32)  # [BM, SLICE]
            y = gelu(x + bias, TANH).to(slices.dtype)
            if pre_desc is not None:
                tma.store_wait(1)  # the result before this one is out of `side`
                side.store(y)
                fence_async_shared()
                tma.async_copy_shared_to_global(out_desc, [row, c], side)  # [BM, SLICE]
                tma.store_wait(1)  # pre is stored
                mbarrier.arrive(free.index(j), count=1)
            else:
                here.store(y)
                fence_async_shared()
                tma.async_copy_shared_to_global(out_desc, [row, c], here)  # [BM, SLICE]
                tma.store_wait(1)  # the slice before this one is stored
                mbarrier.arrive(free.index((j + SLICES - 1) % SLICES), count=1, pred=i + j > 0)
    tma.store_wait(0)


@gluon.jit
def _apply_dgelu(results, barriers, pointers, sizes, TILE: gl.constexpr, N: gl.constexpr, TANH: gl.constexpr):
    """DGELU: pre comes into `side` a slice ahead; the result takes the place of what was left."""
    out_desc, pre_desc, slices, side = results
    _, _, left, free, side_full = barriers
    bias_ptr, _, sums_ptr = pointers
    tiles_m, tiles, steps = sizes
    SLICES: gl.constexpr = slices.shape[0]
    W: gl.constexpr = slices.shape[2]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    parts = _parts(tiles, steps, False)
    _read_slice(pre_desc, side, side_full, 0, 0, tiles_m, TILE, parts > 0)
    for i in range(parts):
        row, col = _corner_of(i, tiles_m, TILE)
        for j in range(SLICES):
            c = col + j * W
            here = slices.index(j)
            n = i * SLICES + j
            bias = _bias(bias_ptr, c, N, W, L)
            mbarrier.wait(side_full, n & 1)
            pre = side.load(L)  # [BM, SLICE]
            gl.thread_barrier()  # all have read it before the next slice comes to its place
            _read_slice(
                pre_desc, side, side_full, (n + 1) // SLICES, (n + 1) % SLICES, tiles_m, TILE, n + 1 < parts * SLICES
            )
            slope = gelu_gradient(pre.to(gl.float32) + bias, TANH)
            mbarrier.wait(left.index(j), i & 1)
            d = here.load(L).to(gl.float32) * slope  # [BM, SLICE]; 0 past the last row, where a was read as zeros
            here.store(d.to(slices.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(out_desc, [row, c], here)  # [BM, SLICE]
            total = gl.sum(d, 0)  # [SLICE]
            out = c + gl.arange(0, W, layout=gl.SliceLayout(0, L))
            gl.store(sums_ptr + (row // _BM).to(gl.int64) * N + out, total, mask=out < N)
            tma.store_wait(1)  # the slice before this one is stored
            mbarrier.arrive(free.index((j + SLICES - 1) % SLICES), count=1, pred=n > 0)
    tma.store_wait(0)


@gluon.jit
def _sum_rows(operands, barriers, sums_ptr, sizes, TILE: gl.constexpr, STREAM: gl.constexpr):
    """WEIGHT: sums of a's rows over k, from the stages that pass. The tiles of one row share the work: each takes its steps in turn.

    They are left [2 programs + tiles, BM]: those of parts at the places of the partial sums, those of whole tiles behind them.
    """
    a_buffers, _ = operands
    full, empty, _, _, _ = barriers
    tiles_m, tiles, steps = sizes
    STAGES: gl.constexpr = TILE[2]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    count = 0
    for i in range(_parts(tiles, steps, STREAM)):
        tile, begin, end = _part(i, tiles, steps, STREAM)
        turn = tile % TILE[3]
        total = gl.zeros([TILE[1], _BM], gl.float32, L)
        for step in range(begin, end):
            s = count % STAGES
            mbarrier.wait(full.index(s), (count // STAGES) & 1)
            if step % TILE[3] == turn:
                total += a_buffers.index(s).load(L).to(gl.float32)  # [BK, BM]
            mbarrier.arrive(empty.index(s), count=1)
            count += 1
        part = 2 * gl.program_id(0) + gl.where(begin == 0, 1, 0)
        place = gl.where(end - begin == steps, 2 * gl.num_programs(0) + tile, part)
        gl.store(sums_ptr + place * _BM + gl.arange(0, _BM, layout=gl.SliceLayout(0, L)), gl.sum(total, 0))


@gluon.jit
def _epilogue(operands, barriers, results, pointers, sizes, TILE: gl.constexpr, FORM: gl.constexpr, N: gl.constexpr,
              TANH: gl.constexpr):  # fmt: skip
    EPILOGUE: gl.constexpr = FORM[0]
    _, _, sums_ptr = pointers
    if EPILOGUE == _WEIGHT:
        if sums_ptr is not None:
            _sum_rows(operands, barriers, sums_ptr, sizes, TILE, FORM[3])
    elif EPILOGUE == _GELU:
        _apply_gelu(results, barriers, pointers, sizes, TILE, N, TANH)
    elif EPILOGUE == _DGELU:
        _apply_dgelu(results, barriers, pointers, sizes, TILE, N, TANH)
    else:
        _store_slices(results, barriers, sizes, TILE, EPILOGUE)


@gluon.jit
def _barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit(do_not_specialize=["tokens"])
def product_kernel(
    a_desc, b_desc, out, pre_desc, bias_ptr, partial_ptr, sums_ptr, tokens,
    M: gl.constexpr, N: gl.constexpr, K: gl.constexpr,
    BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
    A_ROWS: gl.constexpr, B_ROWS: gl.constexpr, EPILOGUE: gl.constexpr, STREAM: gl.constexpr,
    TANH: gl.constexpr, REGISTERS: gl.constexpr, EPILOGUE_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See above.

    Args:
        a_desc: blocks [BM, BK] of [M, K], with A_ROWS [BK, BM] of [K, M].
        b_desc: blocks [BN, BK] of [N, K], with B_ROWS [BK, BN] of [K, N].
        out: slices [BM, SLICE] of [M, N]; WEIGHT: a pointer to [M, N] of any floating dtype.
        pre_desc: slices of [M, N], written by GELU, read by DGELU; None.
        bias_ptr: [N] or None.
        partial_ptr: STREAM: [2 programs, BM, BN] float32; else None.
        sums_ptr: DGELU: [tile rows, N] float32, WEIGHT: [2 programs + tiles, BM] float32 or None.
        tokens: M, or with WEIGHT K, whose constant is 0 then.
    """
    NT: gl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    TILE: gl.constexpr = (BLOCK_N, BLOCK_K, STAGES, NT, GROUP)
    A: gl.constexpr = [STAGES, BLOCK_K, _BM] if A_ROWS else [STAGES, _BM, BLOCK_K]
    B: gl.constexpr = [STAGES, BLOCK_K, BLOCK_N] if B_ROWS else [STAGES, BLOCK_N, BLOCK_K]
    READERS: gl.constexpr = 3 if EPILOGUE == _WEIGHT and sums_ptr is not None else 2
    a_buffers = gl.allocate_shared_memory(a_desc.dtype, A, a_desc.layout)
    b_buffers = gl.allocate_shared_memory(b_desc.dtype, B, b_desc.layout)
    full = _barriers(STAGES, 1)
    empty = _barriers(STAGES, READERS)
    if EPILOGUE == _WEIGHT:
        slices, side, left, free, side_full = a_buffers, a_buffers, full, empty, full  # none of them is used
        tiles_m = (M + _BM - 1) // _BM
        steps = cdiv(tokens, BLOCK_K)
    else:
        SLICE: gl.constexpr = out.block_shape[1]
        slices = gl.allocate_shared_memory(out.dtype, [BLOCK_N // SLICE, _BM, SLICE], out.layout)
        left = _barriers(BLOCK_N // SLICE, 2)
        free = _barriers(BLOCK_N // SLICE, 1)
        if pre_desc is not None:
            side = gl.allocate_shared_memory(out.dtype, [_BM, SLICE], out.layout)
            side_full = _barriers(1, 1).index(0)
        else:
            side, side_full = slices, left
        tiles_m = cdiv(tokens, _BM)
        steps = (K + BLOCK_K - 1) // BLOCK_K
    fence_async_shared()
    sizes = (tiles_m, tiles_m * NT, steps)
    FORM: gl.constexpr = (EPILOGUE, A_ROWS, B_ROWS, STREAM)
    operands = (a_buffers, b_buffers)
    barriers = (full, empty, left, free, side_full)
    results = (out, pre_desc, slices, side)
    pointers = (bias_ptr, partial_ptr, sums_ptr)
    gl.warp_specialize(
        [
            (_loads, ((a_desc, b_desc), operands, barriers, sizes, TILE, FORM)),
            (_multiply, (operands, barriers, results, pointers, sizes, TILE, FORM, M, N, 0)),
            (_multiply, (operands, barriers, results, pointers, sizes, TILE, FORM, M, N, 1)),
            (_epilogue, (operands, barriers, results, pointers, sizes, TILE, FORM, N, TANH)),
        ],
        [4, 4, 4], [REGISTERS, REGISTERS, EPILOGUE_REGISTERS],
    )  # fmt: skip
