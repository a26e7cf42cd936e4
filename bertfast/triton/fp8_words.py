"""What passes that write FP8 share inside a kernel: the cast, the largest magnitude, and the transposed copy by words of four rows.

A transposed copy through bytes is dear: Triton computes a tile once in the layout of each of its stores, or moves bytes
one by one through shared memory. So a program takes rows 4 q to 4 q + 3 of a *quad* q one after another, in one layout, and shifts
each result's byte into a word. A word is four neighbouring places of the transposed copy, and [QUADS, COLS] words cross
shared memory once, four bytes at a time. Where the number of rows is no multiple of 16, words would not be aligned:
bytes are stored then (WHOLE is false). FP8 products ask for that multiple as well.

Casts on a GPU round to nearest even and saturate (cvt.rn.satfinite), infinities too; NaN stays NaN.
"""

import triton
import triton.language as tl


@triton.jit
def inverse_of(scale_ptr):
    """1 / scale, rounded as eager torch rounds it."""
    return tl.div_rn(1.0, tl.load(scale_ptr))


@triton.jit
def inside(quad, step: tl.constexpr, col, rows, C: tl.constexpr, WHOLE: tl.constexpr):
    """Which elements of row `step` of each quad are there. quad: [QUADS, 1]; col: [1, COLS]."""
    if WHOLE:
        mask = (quad < rows // 16 * 4) & (col < C)  # a multiple, said so, for wide accesses
    else:
        mask = (quad * 4 + step < rows) & (col < C)
    return mask


@triton.jit
def places(quad, step: tl.constexpr, col, C: tl.constexpr):
    """Where row `step` of each quad lies in a contiguous [T, C]."""
    return (quad.to(tl.int64) * 4 + step) * C + col


@triton.jit
def larger(largest, v, mask):
    """The larger magnitude of two, NaN where one is."""
    return tl.maximum(largest, tl.where(mask, tl.abs(v), 0.0), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def bits_of_largest(magnitude, axis: tl.constexpr):
    """The bits of the largest magnitude along `axis`, int32. They grow with the number; infinity is above all, and NaN above that."""
    return tl.max(magnitude.to(tl.int32, bitcast=True), axis)


@triton.jit
def raise_amax(amax_ptr, magnitude):
    """Raise the float32 at amax_ptr to the largest of a [R, C] tile of magnitudes."""
    place = amax_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(place, tl.max(bits_of_largest(magnitude, 1), 0), sem="relaxed")


@triton.jit
def push(word, stored):
    """word with its lowest byte gone and the FP8 number `stored` above the others: after four, the first lies lowest."""
    return (word >> 8) | (stored.to(tl.uint8, bitcast=True).to(tl.uint32) << 24)


@triton.jit
def store_words(transposed_ptr, word, quad, col, rows, C: tl.constexpr):
    """Four rows of each quad into the transposed copy [C, rows]; rows is a multiple of 16. word: [QUADS, COLS]."""
    quads = rows // 16 * 4
    place = tl.trans(col).to(tl.int64) * quads + tl.trans(quad)  # [COLS, QUADS]
    mask = tl.trans((quad < quads) & (col < C))
    tl.store(transposed_ptr.to(tl.pointer_type(tl.uint32), bitcast=True) + place, tl.trans(word), mask=mask)


@triton.jit
def store_bytes(transposed_ptr, stored, quad, step: tl.constexpr, col, rows, mask):
    """Row `step` of each quad into the transposed copy [C, rows] of any rows."""
    place = tl.trans(col).to(tl.int64) * rows + tl.trans(quad * 4 + step)  # [COLS, QUADS]
    tl.store(transposed_ptr + place, tl.trans(stored), mask=tl.trans(mask))


@triton.jit
def row_scale(bits, LARGEST: tl.constexpr):
    """The scale of rows whose largest magnitude has these bits; 1 where that is 0, infinite or NaN."""
    amax = bits.to(tl.float32, bitcast=True)
    return tl.where((amax > 0.0) & (amax < float("inf")), tl.div_rn(amax, LARGEST), 1.0)
