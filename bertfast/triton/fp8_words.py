"""What passes that write FP8 share inside a kernel: the cast, the largest magnitude, the transposed copy by words of some rows.

A transposed copy through bytes is dear: Triton computes a tile once in the layout of each of its stores, or moves bytes
one by one through shared memory. So a program takes the rows of a *group* (4 or 8 neighbours) one after another, in one layout, and
shifts each result's byte into a word. A word is as many neighbouring places of the transposed copy, and [GROUPS, COLS] words
cross shared memory once, 4 or 8 bytes at a time. Where the number of rows is no multiple of 16, words would not be aligned:
bytes are stored then (WHOLE is false). FP8 products ask for that multiple as well.

Casts on a GPU round to nearest even and saturate (cvt.rn.satfinite), infinities too; NaN stays NaN.
"""

import triton
import triton.language as tl

HAS_FP8 = 90  # the least architecture that kernels are compiled for here and that casts to e4m3
MAX_COLS = 8192  # of a row in registers


def piece_of(cols: int) -> int:
    """Columns of a piece of a row, 8 a thread: as many as divide it, so that no lane is idle, up to four warps' worth."""
    return next((piece for piece in (1024, 512) if cols % piece == 0), 256 if cols <= 1024 else 1024)


@triton.jit
def place(quad, step: tl.constexpr, col, C: tl.constexpr):
    """Where row `step` of each quad, a group of four rows, lies in [T, C]."""
    return (quad.to(tl.int64) * 4 + step) * C + col


@triton.jit
def inverse_of(scale_ptr):
    """1 / scale, rounded as eager torch rounds it."""
    return tl.div_rn(1.0, tl.load(scale_ptr))


@triton.jit
def inside(group, step, rows, STEPS: tl.constexpr, WHOLE: tl.constexpr):
    """Which groups have a row `step`. group: [GROUPS, 1], of STEPS rows each."""
    if WHOLE:
        there = group < rows // 16 * (16 // STEPS)  # a multiple, said so, for wide accesses
    else:
        there = group * STEPS + step < rows
    return there


@triton.jit
def larger(largest, v):
    """The larger magnitude of two, NaN where one is."""
    return tl.maximum(largest, tl.abs(v), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def bits_of_largest(magnitude, axis: tl.constexpr):
    """The bits of the largest magnitude along `axis`, int32. They grow with the number; above all are infinity and, last, NaN."""
    return tl.max(magnitude.to(tl.int32, bitcast=True), axis)


@triton.jit
def raise_amax(amax_ptr, magnitude):
    """Raise the float32 at amax_ptr to the largest of a [R, C] tile of magnitudes."""
    bits_ptr = amax_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(bits_ptr, tl.max(bits_of_largest(magnitude, 1), 0), sem="relaxed")


@triton.jit
def largest_of_rows(largest, v):
    """`larger` of [1, C] and the rows of v [R, C]: registers for one row."""
    rows = bits_of_largest(tl.abs(v), 0)[None, :].to(tl.float32, bitcast=True)
    return larger(largest, rows)


@triton.jit
def push(word, stored):
    """word with its lowest byte gone and the FP8 number `stored` above the others: when it is full, the first lies lowest."""
    return (word >> 8) | (stored.to(tl.uint8, bitcast=True).to(word.dtype) << (word.dtype.primitive_bitwidth - 8))


@triton.jit
def store_words(transposed_ptr, word, group, col, rows, C: tl.constexpr):
    """All rows of each group into the transposed copy [C, rows]; rows is a multiple of 16. word: [GROUPS, COLS]."""
    groups = rows // 16 * (128 // word.dtype.primitive_bitwidth)
    place = tl.trans(col).to(tl.int64) * groups + tl.trans(group)  # [COLS, GROUPS]
    mask = tl.trans((group < groups) & (col < C))
    tl.store(transposed_ptr.to(tl.pointer_type(word.dtype), bitcast=True) + place, tl.trans(word), mask=mask)


@triton.jit
def store_bytes(transposed_ptr, stored, row, col, rows, mask):
    """Some rows into the transposed copy [C, rows] of any number of rows. row: [ROWS, 1]."""
    place = tl.trans(col).to(tl.int64) * rows + tl.trans(row)  # [COLS, ROWS]
    tl.store(transposed_ptr + place, tl.trans(stored), mask=tl.trans(mask))


@triton.jit
def row_scale(bits, LARGEST: tl.constexpr):
    """The scale of rows whose largest magnitude has these bits; 1 where that is 0, infinite or NaN."""
    amax = bits.to(tl.float32, bitcast=True)
    return tl.where((amax > 0.0) & (amax < float("inf")), tl.div_rn(amax, LARGEST), 1.0)


@triton.jit
def transpose_rows(
    stored_ptr,
    transposed_ptr,
    first,
    rows,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The transposed copy of ROWS rows from `first`, a multiple of 4, on, which this program has just stored.

    What its other threads stored is read back from L2, behind a barrier. Unrolled, the loop would take all its tiles' registers.
    """
    tl.debug_barrier()
    quad = first // 4 + tl.arange(0, ROWS // 4)[:, None]  # [ROWS / 4, 1]
    for start in tl.range(0, C, COLS, num_stages=1, disable_licm=True):
        col = start + tl.arange(0, COLS)[None, :]  # [1, COLS]
        word = tl.zeros((ROWS // 4, COLS), tl.uint32)
        for step in tl.static_range(4):
            row = quad.to(tl.int64) * 4 + step
            mask = inside(quad, step, rows, 4, WHOLE) & (col < C)
            stored = tl.load(stored_ptr + row * C + col, mask=mask, cache_modifier=".cg")  # [ROWS / 4, COLS]
            if WHOLE:
                word = push(word, stored)
            else:
                store_bytes(transposed_ptr, stored, row, col, rows, mask)
        if WHOLE:
            store_words(transposed_ptr, word, quad, col, rows, C)
