"""One product kernel for sm_90, in Gluon: out [M, N] = a [M, K] b [N, K]^T of 16-bit types or FP8, with what follows it.

Persistent programs, each of four warpgroups that hand tiles to one another through shared memory and barriers:

    loads      asks TMA for blocks of a and b, STAGES ahead
    two        multiply 64 rows of the tile each (wgmma, accumulators in registers), leave the finished tile in shared memory
               and go on with the next one
    epilogue   applies bias and GELU or its gradient, sums columns, and has TMA store the results meanwhile

    barrier     completed by                                        waited for by
    full[s]     the bytes of a and b of stage s                      both multiplying warpgroups (and the epilogue, SUMS)
    empty[s]    both multiplying warpgroups (and the epilogue)       loads
    left[j]     both multiplying warpgroups: slice j is written      epilogue
    free[j]     epilogue: slice j is stored (ADD: filled with c)     both multiplying warpgroups
    side_full   the bytes of a slice of pre (DGELU)                  epilogue

Every barrier is waited for with the parity of how often it was waited for before, `(count // stages) & 1`; who waits for memory to
be free begins with the parity of the phase before the first, which has always passed.

An operand lies as [rows, K] (K-major) or as [K, rows] (A_ROWS, B_ROWS: rows-major, as the transposed operands of backward are).
Sizes need not be multiples of a tile: TMA reads zeros outside and does not store there. Row pitches must be multiples of 16 bytes.

EPILOGUE    stores
PLAIN       out = a b, plus bias where there is one
GELU        out = gelu(a b + bias), and pre = a b where there is pre
DGELU       out = (a b) gelu'(pre + bias), and its column sums over each tile's rows, float32
ADD         out += a b, in one rounding: slices of out are read to where the sums are then left
WEIGHT      out = a b where K is many tokens, with STREAM in parts (`part_of`), stored from registers; and sums of a's rows over K

With PLAIN, GELU, DGELU and ADD the number of rows M is `tokens`, with WEIGHT it is K; the other sizes are constants. Functions
take TILE = (BN, BK, STAGES, tiles in a row, GROUP), FORM = (EPILOGUE, A_ROWS, B_ROWS, STREAM, FULL) and sizes = (tile rows, tiles,
steps). FP8 operands are K-major both, and have scales.
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

from bertfast.ops.linear.gluon_epilogues import finish
from bertfast.ops.linear.gluon_tiles import BM, HALF, IS_ADD, IS_PLAIN, IS_WEIGHT, cdiv, corner, part_of, parts_of


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
    BYTES: gl.constexpr = (BM + BN) * BK * a_desc.dtype.primitive_bitwidth // 8
    count = 0
    for i in range(parts_of(tiles, steps, STREAM)):
        tile, begin, end = part_of(i, tiles, steps, STREAM)
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
    bias_ptr, partial_ptr, _, scale_ptr, scale_b_ptr = pointers
    tiles_m, tiles, steps = sizes
    BN: gl.constexpr = TILE[0]
    STAGES: gl.constexpr = TILE[2]
    EPILOGUE: gl.constexpr = FORM[0]
    STREAM: gl.constexpr = FORM[3]
    # Of wgmmas 256 wide ptxas wants 154 registers at entry. 32 bytes of a row each.
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 256 // a_buffers.dtype.primitive_bitwidth])
    if scale_ptr is not None:
        scale = gl.load(scale_ptr) * gl.load(scale_b_ptr)
    count = 0
    for i in range(parts_of(tiles, steps, STREAM)):
        tile, begin, end = part_of(i, tiles, steps, STREAM)
        row, col = corner(tile, tiles_m, TILE[3], TILE[4], BN)
        sums = gl.zeros([HALF, BN], gl.float32, L)
        if EPILOGUE == IS_PLAIN and bias_ptr is not None:
            # The sums begin with the bias: at the end every slice would wait for its part of it.
            c = col + gl.arange(0, BN, layout=gl.SliceLayout(0, L))  # [BN]
            bias = gl.load(bias_ptr + c, mask=c < N, other=0.0).to(gl.float32)  # [BN]
            if scale_ptr is not None:
                bias = bias / scale
            sums += gl.expand_dims(bias, 0)
        for step in range(begin, end):
            s = count % STAGES
            mbarrier.wait(full.index(s), (count // STAGES) & 1)
            if FORM[1]:
                a = a_buffers.index(s).slice(C * HALF, HALF, dim=1).permute((1, 0))  # [HALF, BK]
            else:
                a = a_buffers.index(s).slice(C * HALF, HALF, dim=0)  # [HALF, BK]
            b = b_buffers.index(s) if FORM[2] else b_buffers.index(s).permute((1, 0))  # [BK, BN]
            if FORM[4]:  # tensor cores sum FP8 in fewer bits than float32: no more than BK at a time
                part = gl.zeros([HALF, BN], gl.float32, L)
                part = warpgroup_mma(a, b, part, use_acc=False, is_async=True)
                part = warpgroup_mma_wait(0, deps=[part])
                mbarrier.arrive(empty.index(s), count=1)
                sums += part
            else:
                sums = warpgroup_mma(a, b, sums, is_async=True)
                sums = warpgroup_mma_wait(1, deps=[sums])
                mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), count=1, pred=step > begin)
            count += 1
        if not FORM[4]:
            sums = warpgroup_mma_wait(0, deps=[sums])
            mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), count=1)
        if scale_ptr is not None:
            sums *= scale
        if EPILOGUE == IS_WEIGHT:
            if partial_ptr is None or end - begin == steps:
                _store_rows(sums, out, row + C * HALF, col, M, N, N, L)
            else:
                place = (2 * gl.program_id(0) + gl.where(begin == 0, 1, 0)) * BM
                _store_rows(sums, partial_ptr, place + C * HALF, 0, place + BM, BN, BN, L)
        else:
            memory = (left, free, slices)
            first, second = _columns(sums, BN)
            if slices.shape[0] == 2:
                _leave(first, memory, i, 0, EPILOGUE, C)
                _leave(second, memory, i, 1, EPILOGUE, C)
            else:
                x0, x1 = _columns(first, BN // 2)
                _leave(x0, memory, i, 0, EPILOGUE, C)
                _leave(x1, memory, i, 1, EPILOGUE, C)
                x2, x3 = _columns(second, BN // 2)
                _leave(x2, memory, i, 2, EPILOGUE, C)
                _leave(x3, memory, i, 3, EPILOGUE, C)


@gluon.jit
def _columns(x, WIDTH: gl.constexpr):
    """The left and the right half of the columns of x [HALF, WIDTH]."""
    return gl.split(gl.permute(gl.reshape(x, [HALF, 2, WIDTH // 2]), (0, 2, 1)))


@gluon.jit
def _store_rows(x, ptr, row, col, rows, cols, PITCH: gl.constexpr, L: gl.constexpr):
    """x [HALF, BN] from registers to (row, col) of a matrix [rows, cols]."""
    r = row + gl.arange(0, x.shape[0], layout=gl.SliceLayout(1, L))  # [HALF]
    c = col + gl.arange(0, x.shape[1], layout=gl.SliceLayout(0, L))  # [BN]
    place = gl.expand_dims(r.to(gl.int64) * PITCH, 1) + gl.expand_dims(c, 0)  # [HALF, BN]
    inside = gl.expand_dims(r < rows, 1) & gl.expand_dims(c < cols, 0)
    gl.store(ptr + place, x.to(ptr.dtype.element_ty), mask=inside)


@gluon.jit
def _leave(x, memory, i, J: gl.constexpr, EPILOGUE: gl.constexpr, C: gl.constexpr):
    """Round slice J of a tile [HALF, SLICE] and leave it where the epilogue's warpgroup finds it."""
    left, free, slices = memory
    W: gl.constexpr = x.shape[1]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W, 16])
    x = gl.convert_layout(x, S, assert_trivial=True)
    here = slices.index(J).slice(C * HALF, HALF, dim=0)  # [HALF, SLICE]
    if EPILOGUE == IS_ADD:
        mbarrier.wait(free.index(J), i & 1)
        x += here.load(S).to(gl.float32)
    else:
        mbarrier.wait(free.index(J), (i & 1) ^ 1)
    here.store(x.to(slices.dtype))
    fence_async_shared()
    mbarrier.arrive(left.index(J), count=1)


@gluon.jit
def _barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit(do_not_specialize=["tokens"])
def product_kernel(
    a_desc, b_desc, out, pre_desc, bias_ptr, partial_ptr, sums_ptr, scale_ptr, scale_b_ptr, tokens,
    M: gl.constexpr, N: gl.constexpr, K: gl.constexpr,
    BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
    A_ROWS: gl.constexpr, B_ROWS: gl.constexpr, EPILOGUE: gl.constexpr, STREAM: gl.constexpr, FULL: gl.constexpr,
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
        scale_ptr, scale_b_ptr: float32 [], of a and b in FP8; else None.
        tokens: M, or with WEIGHT K, whose constant is 0 then.
        FULL: of FP8, add up in float32 what each BLOCK_K gives.
    """
    NT: gl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    TILE: gl.constexpr = (BLOCK_N, BLOCK_K, STAGES, NT, GROUP)
    A: gl.constexpr = [STAGES, BLOCK_K, BM] if A_ROWS else [STAGES, BM, BLOCK_K]
    B: gl.constexpr = [STAGES, BLOCK_K, BLOCK_N] if B_ROWS else [STAGES, BLOCK_N, BLOCK_K]
    READERS: gl.constexpr = 3 if EPILOGUE == IS_WEIGHT and sums_ptr is not None else 2
    a_buffers = gl.allocate_shared_memory(a_desc.dtype, A, a_desc.layout)
    b_buffers = gl.allocate_shared_memory(b_desc.dtype, B, b_desc.layout)
    full = _barriers(STAGES, 1)
    empty = _barriers(STAGES, READERS)
    if EPILOGUE == IS_WEIGHT:
        slices, side, left, free, side_full = a_buffers, a_buffers, full, empty, full  # none of them is used
        tiles_m = (M + BM - 1) // BM
        steps = cdiv(tokens, BLOCK_K)
    else:
        SLICE: gl.constexpr = out.block_shape[1]
        slices = gl.allocate_shared_memory(out.dtype, [BLOCK_N // SLICE, BM, SLICE], out.layout)
        left = _barriers(BLOCK_N // SLICE, 2)
        free = _barriers(BLOCK_N // SLICE, 1)
        if pre_desc is not None:
            side = gl.allocate_shared_memory(out.dtype, [BM, SLICE], out.layout)
            side_full = _barriers(1, 1).index(0)
        else:
            side, side_full = slices, left
        tiles_m = cdiv(tokens, BM)
        steps = (K + BLOCK_K - 1) // BLOCK_K
    fence_async_shared()
    sizes = (tiles_m, tiles_m * NT, steps)
    FORM: gl.constexpr = (EPILOGUE, A_ROWS, B_ROWS, STREAM, FULL)
    operands = (a_buffers, b_buffers)
    barriers = (full, empty, left, free, side_full)
    results = (out, pre_desc, slices, side)
    pointers = (bias_ptr, partial_ptr, sums_ptr, scale_ptr, scale_b_ptr)
    gl.warp_specialize(
        [
            (_loads, ((a_desc, b_desc), operands, barriers, sizes, TILE, FORM)),
            (_multiply, (operands, barriers, results, pointers, sizes, TILE, FORM, M, N, 0)),
            (_multiply, (operands, barriers, results, pointers, sizes, TILE, FORM, M, N, 1)),
            (finish, (operands, barriers, results, pointers, sizes, TILE, FORM, N, TANH)),
        ],
        [4, 4, 4], [REGISTERS, REGISTERS, EPILOGUE_REGISTERS],
    )  # fmt: skip
