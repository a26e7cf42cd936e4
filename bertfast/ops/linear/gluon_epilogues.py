"""What the epilogue's warpgroup of the product kernel (`gluon_product`) does with what the others have left in shared memory."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from bertfast.ops.linear.gluon_tiles import BM, IS_ADD, IS_DGELU, IS_GELU, IS_WEIGHT, corner_of, part_of, parts_of
from bertfast.ops.linear_gelu.gluon_gelu import gelu, gelu_gradient


@gluon.jit
def _bias(bias_ptr, col, N: gl.constexpr, W: gl.constexpr, L: gl.constexpr):
    c = col + gl.arange(0, W, layout=gl.SliceLayout(0, L))  # [SLICE]
    return gl.expand_dims(gl.load(bias_ptr + c, mask=c < N, other=0.0).to(gl.float32), 0)


@gluon.jit
def _read_slice(desc, buffer, barrier, i, j, parts, tiles_m, TILE: gl.constexpr):
    """Ask TMA for slice j of this program's tile i of `parts`, if there is one."""
    pred = i < parts
    row, col = corner_of(gl.minimum(i, parts - 1), tiles_m, TILE)
    W: gl.constexpr = buffer.shape[1]
    mbarrier.expect(barrier, BM * W * desc.dtype.primitive_bitwidth // 8, pred=pred)
    tma.async_copy_global_to_shared(desc, [row, col + j * W], barrier, buffer, pred=pred)  # [BM, SLICE]


@gluon.jit
def _store_slices(results, barriers, sizes, TILE: gl.constexpr, EPILOGUE: gl.constexpr):
    """PLAIN and ADD: slices are stored as they are left."""
    out_desc, _, slices, _ = results
    _, _, left, free, _ = barriers
    tiles_m, tiles, steps = sizes
    SLICES: gl.constexpr = slices.shape[0]
    W: gl.constexpr = slices.shape[2]
    parts = parts_of(tiles, steps, False)
    if EPILOGUE == IS_ADD:
        for j in range(SLICES):
            _read_slice(out_desc, slices.index(j), free.index(j), 0, j, parts, tiles_m, TILE)
    for i in range(parts):
        row, col = corner_of(i, tiles_m, TILE)
        for j in range(SLICES):
            mbarrier.wait(left.index(j), i & 1)
            tma.async_copy_shared_to_global(out_desc, [row, col + j * W], slices.index(j))  # [BM, SLICE]
            tma.store_wait(0)
            if EPILOGUE == IS_ADD:
                _read_slice(out_desc, slices.index(j), free.index(j), i + 1, j, parts, tiles_m, TILE)
            else:
                mbarrier.arrive(free.index(j), count=1)


@gluon.jit
def _apply_gelu(results, barriers, pointers, sizes, TILE: gl.constexpr, N: gl.constexpr, TANH: gl.constexpr):
    """GELU: pre is stored from where it was left and the result from `side`; without pre the result takes its place."""
    out_desc, pre_desc, slices, side = results
    _, _, left, free, _ = barriers
    bias_ptr, _, _, _, _ = pointers
    tiles_m, tiles, steps = sizes
    SLICES: gl.constexpr = slices.shape[0]
    W: gl.constexpr = slices.shape[2]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    for i in range(parts_of(tiles, steps, False)):
        row, col = corner_of(i, tiles_m, TILE)
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
    bias_ptr, _, sums_ptr, _, _ = pointers
    tiles_m, tiles, steps = sizes
    SLICES: gl.constexpr = slices.shape[0]
    W: gl.constexpr = slices.shape[2]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    parts = parts_of(tiles, steps, False)
    _read_slice(pre_desc, side, side_full, 0, 0, parts, tiles_m, TILE)
    for i in range(parts):
        row, col = corner_of(i, tiles_m, TILE)
        for j in range(SLICES):
            c = col + j * W
            here = slices.index(j)
            n = i * SLICES + j
            bias = _bias(bias_ptr, c, N, W, L)
            mbarrier.wait(side_full, n & 1)
            pre = side.load(L)  # [BM, SLICE]
            gl.thread_barrier()  # all have read it before the next slice comes to its place
            _read_slice(pre_desc, side, side_full, (n + 1) // SLICES, (n + 1) % SLICES, parts, tiles_m, TILE)
            slope = gelu_gradient(pre.to(gl.float32) + bias, TANH)
            mbarrier.wait(left.index(j), i & 1)
            d = here.load(L).to(gl.float32) * slope  # [BM, SLICE]; 0 past the last row, where a was read as zeros
            here.store(d.to(slices.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(out_desc, [row, c], here)  # [BM, SLICE]
            total = gl.sum(d, 0)  # [SLICE]
            out = c + gl.arange(0, W, layout=gl.SliceLayout(0, L))
            gl.store(sums_ptr + (row // BM).to(gl.int64) * N + out, total, mask=out < N)
            tma.store_wait(1)  # the slice before this one is stored
            mbarrier.arrive(free.index((j + SLICES - 1) % SLICES), count=1, pred=n > 0)
    tma.store_wait(0)


@gluon.jit
def _sum_rows(operands, barriers, sums_ptr, sizes, TILE: gl.constexpr, STREAM: gl.constexpr):
    """WEIGHT: sums of a's rows over K, from the stages that pass. The tiles of a row share the work: each takes its steps in turn.

    They are left [2 programs + tiles, BM]: those of parts at the places of the partial sums, those of whole tiles behind them.
    """
    a_buffers, _ = operands
    full, empty, _, _, _ = barriers
    _, tiles, steps = sizes
    STAGES: gl.constexpr = TILE[2]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    count = 0
    for i in range(parts_of(tiles, steps, STREAM)):
        tile, begin, end = part_of(i, tiles, steps, STREAM)
        turn = tile % TILE[3]
        total = gl.zeros([TILE[1], BM], gl.float32, L)
        for step in range(begin, end):
            s = count % STAGES
            mbarrier.wait(full.index(s), (count // STAGES) & 1)
            if step % TILE[3] == turn:
                total += a_buffers.index(s).load(L).to(gl.float32)  # [BK, BM]
            mbarrier.arrive(empty.index(s), count=1)
            count += 1
        part = 2 * gl.program_id(0) + gl.where(begin == 0, 1, 0)
        place = gl.where(end - begin == steps, 2 * gl.num_programs(0) + tile, part)
        gl.store(sums_ptr + place * BM + gl.arange(0, BM, layout=gl.SliceLayout(0, L)), gl.sum(total, 0))


@gluon.jit
def finish(operands, barriers, results, pointers, sizes, TILE: gl.constexpr, FORM: gl.constexpr, N: gl.constexpr,
              TANH: gl.constexpr):  # fmt: skip
    EPILOGUE: gl.constexpr = FORM[0]
    _, _, sums_ptr, _, _ = pointers
    if EPILOGUE == IS_WEIGHT:
        if sums_ptr is not None:
            _sum_rows(operands, barriers, sums_ptr, sizes, TILE, FORM[3])
    elif EPILOGUE == IS_GELU:
        _apply_gelu(results, barriers, pointers, sizes, TILE, N, TANH)
    elif EPILOGUE == IS_DGELU:
        _apply_dgelu(results, barriers, pointers, sizes, TILE, N, TANH)
    else:
        _store_slices(results, barriers, sizes, TILE, EPILOGUE)
