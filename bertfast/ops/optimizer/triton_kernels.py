"""The kernels of optimizer steps; `triton` says what they are for, `addresses` what their table holds."""

import triton
import triton.language as tl

from bertfast.ops.optimizer import addresses, reference

FACTORS = 8  # of a parameter
TAIL = 256  # numbers of the narrow end of a chunk that are read at once

_CHUNK, _FIELDS = tl.constexpr(addresses.CHUNK), tl.constexpr(addresses.FIELDS)
_WEIGHT, _GRADIENT = tl.constexpr(addresses.WEIGHT), tl.constexpr(addresses.GRADIENT)
_MEAN, _SQUARE = tl.constexpr(addresses.MEAN), tl.constexpr(addresses.SQUARE)
_STEP, _COPY = tl.constexpr(addresses.STEP), tl.constexpr(addresses.COPY)
_SIZE, _WIDE = tl.constexpr(addresses.SIZE), tl.constexpr(addresses.WIDE)
_GROUP, _FIRST = tl.constexpr(addresses.GROUP), tl.constexpr(addresses.FIRST)
_SETTINGS, _NUMBERS, _TAIL_BLOCK = tl.constexpr(reference.SETTINGS), tl.constexpr(FACTORS), tl.constexpr(TAIL)


@triton.jit
def is_withheld(withheld_ptr):
    withheld = False
    if withheld_ptr is not None:
        withheld = tl.load(withheld_ptr) != 0
    return withheld


@triton.jit
def power(base, exponent):
    """base ** exponent in float64; base in [0, 1], exponent from 1 on."""
    return tl.exp(exponent * tl.log(tl.maximum(base, 1e-300)))


@triton.jit(do_not_specialize=["parameters"])
def factors_kernel(
    table_ptr,
    rates_ptr,
    norm_ptr,
    sums_ptr,
    withheld_ptr,
    factors_ptr,
    parameters,
    max_norm,
    PER_GROUP: tl.constexpr,
    ADVANCE: tl.constexpr,
    LANES: tl.constexpr,
):
    """What the update of each parameter multiplies by, factors [parameters, 8]; a lane has a parameter, which counts its step.

    With r = sqrt(1 - beta2^t): beta1, 1 - beta1, beta2, 1 - beta2, eps r, rate trust r / (1 - beta1^t), rate trust decay, clipping.
    """
    number = tl.program_id(0) * LANES + tl.arange(0, LANES)  # [LANES]
    mask = number < parameters
    row_ptr = table_ptr + number * _FIELDS
    group = tl.load(row_ptr + _GROUP, mask=mask, other=0)  # [LANES] int64
    settings_ptr = table_ptr + parameters * _FIELDS + group * _SETTINGS
    beta1 = tl.load(settings_ptr).to(tl.float64, bitcast=True)  # [LANES], as the next three
    beta2 = tl.load(settings_ptr + 1).to(tl.float64, bitcast=True)
    eps = tl.load(settings_ptr + 2).to(tl.float64, bitcast=True)
    decay = tl.load(settings_ptr + 3).to(tl.float64, bitcast=True)
    step_ptr = tl.load(row_ptr + _STEP, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    done = tl.load(step_ptr, mask=mask, other=1.0)  # [LANES] steps of each parameter
    if ADVANCE:
        tl.store(step_ptr, done + 1, mask=mask & (is_withheld(withheld_ptr) == 0))
        done += 1
    root = tl.sqrt(1 - power(beta2, done.to(tl.float64)))
    scale = root / (1 - power(beta1, done.to(tl.float64)))
    rate = tl.full((LANES,), 1.0, tl.float64)
    if rates_ptr is not None:
        rate = tl.load(rates_ptr + (group if PER_GROUP else 0 * group)).to(tl.float64)  # [LANES]
    if sums_ptr is not None:
        size = tl.load(sums_ptr + 2 * number, mask=mask, other=0.0).to(
            tl.float64
        )  # [LANES] sum of squares of the weight
        length = tl.load(sums_ptr + 2 * number + 1, mask=mask, other=0.0).to(tl.float64)  # [LANES] and of the direction
        trusted = (decay != 0) & (size > 0) & (length > 0)
        rate *= tl.where(trusted, tl.sqrt(size / tl.where(trusted, length, 1.0)), 1.0)
    clip = 1.0
    if norm_ptr is not None:
        clip = max_norm / (tl.load(norm_ptr).to(tl.float32) + 1e-6)
        clip = tl.where(clip > 1.0, 1.0, clip)  # NaN stays NaN
    factors_ptr += number * _NUMBERS
    tl.store(factors_ptr, beta1.to(tl.float32), mask=mask)
    tl.store(factors_ptr + 1, (1 - beta1).to(tl.float32), mask=mask)
    tl.store(factors_ptr + 2, beta2.to(tl.float32), mask=mask)
    tl.store(factors_ptr + 3, (1 - beta2).to(tl.float32), mask=mask)
    tl.store(factors_ptr + 4, (eps * root).to(tl.float32), mask=mask)
    tl.store(factors_ptr + 5, (rate * scale).to(tl.float32), mask=mask)
    tl.store(factors_ptr + 6, (rate * decay).to(tl.float32), mask=mask)
    tl.store(factors_ptr + 7, clip + tl.zeros((LANES,), tl.float32), mask=mask)


@triton.jit
def pointer(address, dtype: tl.constexpr, ALIGNMENT: tl.constexpr):
    """The address of a table as a pointer; ALIGNMENT in bytes, 0 where nothing is known."""
    made = address.to(tl.pointer_type(dtype))
    if ALIGNMENT:
        made = tl.multiple_of(made, ALIGNMENT)
    return made


@triton.jit
def load(address, dtype: tl.constexpr, ALIGNMENT: tl.constexpr, place, mask):
    pointers = pointer(address, dtype, ALIGNMENT) + place
    if mask is None:
        numbers = tl.load(pointers)
    else:
        numbers = tl.load(pointers, mask=mask, other=0.0)
    return numbers.to(tl.float32)


@triton.jit
def update(
    row,
    factors,
    place,
    mask,
    TYPES: tl.constexpr,
    ALIGNMENTS: tl.constexpr,
    MOMENTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    COPIES: tl.constexpr,
):
    """The numbers of a parameter at `place` [BLOCK]; their old weight and their direction with decay."""
    weight_address, gradient_address, mean_address, square_address, copy_address = row
    keep1, add1, keep2, add2, eps, scale, decay, clip = factors
    weight = load(weight_address, TYPES[0], ALIGNMENTS[0], place, mask)  # [BLOCK], as are all others
    mean = load(mean_address, TYPES[2], ALIGNMENTS[0], place, mask)
    square = load(square_address, TYPES[2], ALIGNMENTS[0], place, mask)
    if MOMENTS:
        gradient = load(gradient_address, TYPES[1], ALIGNMENTS[0], place, mask) * clip
        mean = keep1 * mean + add1 * gradient
        square = keep2 * square + add2 * (gradient * gradient)
        mean_rounded, square_rounded = mean.to(TYPES[2]), square.to(TYPES[2])
        tl.store(pointer(mean_address, TYPES[2], ALIGNMENTS[0]) + place, mean_rounded, mask=mask)
        tl.store(pointer(square_address, TYPES[2], ALIGNMENTS[0]) + place, square_rounded, mask=mask)
        if not WEIGHTS:  # the second half of the step reads them as they are stored
            mean, square = mean_rounded.to(tl.float32), square_rounded.to(tl.float32)
    direction = scale * tl.div_rn(mean, tl.sqrt_rn(square) + eps) + decay * weight
    if WEIGHTS:
        updated = weight - direction
        tl.store(pointer(weight_address, TYPES[0], ALIGNMENTS[0]) + place, updated.to(TYPES[0]), mask=mask)
        if COPIES and copy_address != 0:
            copy_ptr = pointer(copy_address, TYPES[3], ALIGNMENTS[1])
            tl.store(copy_ptr + place, updated.to(TYPES[3]), mask=mask)
    if mask is not None:  # 0 / 0 where eps is 0
        direction = tl.where(mask, direction, 0.0)
    return weight, direction


@triton.jit(do_not_specialize=["first"])
def step_kernel(
    table_ptr,
    chunks_ptr,
    factors_ptr,
    withheld_ptr,
    partial_ptr,
    first,
    TYPES: tl.constexpr,
    ALIGNMENTS: tl.constexpr,
    MOMENTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk of a parameter: its moments from the gradient where MOMENTS, its weight and the copy of it where WEIGHTS.

    Without WEIGHTS the sums of squares of the chunk's weights and directions go to partial [chunks, 2].

    Args:
        TYPES: of weight, gradient, moments and copy.
        ALIGNMENTS: in bytes, of these and of the copy. A copy of fewer bytes is written by threads that have as many numbers of
            it as of the weight, in accesses of 8: with 16 Triton would exchange all numbers through shared memory.
    """
    if is_withheld(withheld_ptr):
        return
    program = first + tl.program_id(0)
    parameter = tl.load(chunks_ptr + 2 * program).to(tl.int64)
    begin = tl.load(chunks_ptr + 2 * program + 1).to(tl.int64) * _CHUNK
    row_ptr = table_ptr + parameter * _FIELDS
    row = (
        tl.load(row_ptr + _WEIGHT),
        tl.load(row_ptr + _GRADIENT),
        tl.load(row_ptr + _MEAN),
        tl.load(row_ptr + _SQUARE),
        tl.load(row_ptr + _COPY),
    )
    factors_ptr += parameter * _NUMBERS
    factors = (
        tl.load(factors_ptr),
        tl.load(factors_ptr + 1),
        tl.load(factors_ptr + 2),
        tl.load(factors_ptr + 3),
        tl.load(factors_ptr + 4),
        tl.load(factors_ptr + 5),
        tl.load(factors_ptr + 6),
        tl.load(factors_ptr + 7),
    )
    stop = tl.minimum(begin + _CHUNK, tl.load(row_ptr + _SIZE))
    wide_stop = begin
    if tl.load(row_ptr + _WIDE) != 0:
        wide_stop = begin + (stop - begin) // BLOCK * BLOCK
    weights, directions = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, wide_stop, BLOCK):
        place = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)  # [BLOCK]
        weight, direction = update(row, factors, place, None, TYPES, ALIGNMENTS, MOMENTS, WEIGHTS, COPIES)
        if not WEIGHTS:
            weights += weight * weight
            directions += direction * direction
    size, length = tl.sum(weights, 0), tl.sum(directions, 0)
    # What is no whole block, or not aligned: a number at a time. Blocks of another size, whose layout does not meet the other's.
    for start in range(wide_stop, stop, _TAIL_BLOCK):
        place = start + tl.arange(0, _TAIL_BLOCK)  # [_TAIL_BLOCK]
        mask = place < stop
        weight, direction = update(row, factors, place, mask, TYPES, (0, 0), MOMENTS, WEIGHTS, COPIES)
        if not WEIGHTS:
            size += tl.sum(weight * weight, 0)
            length += tl.sum(direction * direction, 0)
    if not WEIGHTS:
        tl.store(partial_ptr + 2 * program, size)
        tl.store(partial_ptr + 2 * program + 1, length)


@triton.jit
def sums_kernel(table_ptr, partial_ptr, withheld_ptr, sums_ptr, BLOCK: tl.constexpr):
    """sums [parameters, 2] of the chunks' partial [chunks, 2]; zeros of a withheld step."""
    parameter = tl.program_id(0)
    row_ptr = table_ptr + parameter.to(tl.int64) * _FIELDS
    first = tl.load(row_ptr + _FIRST)
    stop = first + tl.cdiv(tl.load(row_ptr + _SIZE), _CHUNK)
    if is_withheld(withheld_ptr):
        stop = first
    sizes, lengths = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(first, stop, BLOCK):
        chunk = start + tl.arange(0, BLOCK)  # [BLOCK]
        sizes += tl.load(partial_ptr + 2 * chunk, mask=chunk < stop, other=0.0)
        lengths += tl.load(partial_ptr + 2 * chunk + 1, mask=chunk < stop, other=0.0)
    tl.store(sums_ptr + 2 * parameter, tl.sum(sizes, 0))
    tl.store(sums_ptr + 2 * parameter + 1, tl.sum(lengths, 0))


@triton.jit(do_not_specialize=["first"])
def norm_kernel(table_ptr, chunks_ptr, partial_ptr, first, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of squares of a chunk of a gradient, into partial [chunks]."""
    program = first + tl.program_id(0)
    begin = tl.load(chunks_ptr + 2 * program + 1).to(tl.int64) * _CHUNK
    row_ptr = table_ptr + tl.load(chunks_ptr + 2 * program).to(tl.int64) * _FIELDS
    address = tl.load(row_ptr + _GRADIENT)
    stop = tl.minimum(begin + _CHUNK, tl.load(row_ptr + _SIZE))
    wide_stop = begin
    if tl.load(row_ptr + _WIDE) != 0:
        wide_stop = begin + (stop - begin) // BLOCK * BLOCK
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, wide_stop, BLOCK):
        gradient = load(address, TYPE, 16, tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK), None)  # [BLOCK]
        squares += gradient * gradient
    total = tl.sum(squares, 0)
    for start in range(wide_stop, stop, _TAIL_BLOCK):
        place = start + tl.arange(0, _TAIL_BLOCK)
        gradient = load(address, TYPE, 0, place, place < stop)  # [_TAIL_BLOCK]
        total += tl.sum(gradient * gradient, 0)
    tl.store(partial_ptr + program, total)


@triton.jit(do_not_specialize=["chunks"])
def norm_end_kernel(partial_ptr, norm_ptr, chunks, BLOCK: tl.constexpr):
    """The root of the sum of partial [chunks]: one program."""
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)  # [BLOCK]
        squares += tl.load(partial_ptr + chunk, mask=chunk < chunks, other=0.0)
    tl.store(norm_ptr, tl.sqrt_rn(tl.sum(squares, 0)))
