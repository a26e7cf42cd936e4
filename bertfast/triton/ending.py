"""Last sums that end in the kernel which made the partial ones: column sums of partial [parts, F] without a second launch.

Programs of a group own the same columns, and each leaves a row of partial sums. They count themselves done by sets of SET rows: the
last of a set (`is_last`) adds up the set's rows, and the last set of a group the rows of the sets. So no program ever reads
many rows, the order of the additions is decided by the sizes alone, and no program waits for another. Who is the last sets the
counter back to zero. What it reads is complete:

    every thread of a program stores its sums      st.global
    all threads of the program have stored         bar.sync, by `tl.debug_barrier`
    one thread counts the program as done          atom.acq_rel.gpu: it releases what the barrier ordered before it
    one thread of the last program sees the count  the same instruction, which acquires what all counts before it released
    all threads of the last program read           behind a bar.sync, through which the count reaches them

That is the order by which CUDA's grid barrier is built (PTX: release and acquire patterns are cumulative over barriers). Sums
are read past the first-level cache (.cg), as nobody reads them twice.

What it is to save: in a graph on an H200 a launch of `sums_kernel` takes 1.2 us to start and 3.8 to run, as measured. Counting
takes about 1 us (a fence and an atomic) and a set's rows 0.7 (one round to L2, with SET x 256 float32, 16 KB, in flight), both
twice after the last program: 3.4 us, which is predicted. One level alone would need 0.7 us for each 16 rows. So this is for
programs that own some columns; those of a norm own whole rows, and their last set would have to add them all.
Where a launch gets no counters (`counters`), `add_up` does the same sums in the same order in launches of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertfast.triton import counters
from bertfast.triton.launch import cdiv, launch

SET = 16
_PARTS, _STEPS = tl.constexpr(8), tl.constexpr(2)  # rows of a tile, and tiles that are asked for at once: SET together
_SET = tl.constexpr(SET)


@triton.jit
def is_last(counter_ptr, programs):
    """Whether this program is the last of `programs` that count themselves here; what all have stored is then there to be read."""
    tl.debug_barrier()
    return tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1


@triton.jit
def store_sums(partial_ptr, out_ptr, first, begin, stop, F: tl.constexpr, COLS: tl.constexpr):
    """Columns first to first + COLS of rows begin to stop of partial [.., F] float32, added, into out [F]."""
    col = first + tl.arange(0, COLS)[None, :]  # [1, COLS]
    total = tl.zeros((_PARTS, COLS), tl.float32)
    for start in range(begin, stop, _SET):
        for step in tl.static_range(_STEPS):
            part = start + step * _PARTS + tl.arange(0, _PARTS)[:, None]  # [_PARTS, 1]
            place = part.to(tl.int64) * F + col
            total += tl.load(partial_ptr + place, mask=(part < stop) & (col < F), other=0.0, cache_modifier=".cg")
    out = first + tl.arange(0, COLS)
    tl.store(out_ptr + out, tl.sum(total, 0).to(out_ptr.dtype.element_ty), mask=out < F)


@triton.jit
def end(partial_ptr, counter_ptr, out_ptr, group, part, parts, F: tl.constexpr, COLS: tl.constexpr, DEEP: tl.constexpr):
    """The end of a program that left row `part` of the partial sums of a group's columns, [group COLS, (group + 1) COLS).

    Args:
        partial_ptr: [parts, F] float32, with a row for each set behind it where it is DEEP, parts > SET (`partials`).
        counter_ptr: as `counter_of` gives it.
    """
    first = group * COLS
    if DEEP:
        sets = tl.cdiv(parts, _SET)
        number = part // _SET
        set_counter = counter_ptr + group * (sets + 1) + number
        begin = number * _SET
        stop = min(begin + _SET, parts)
        if is_last(set_counter, stop - begin):
            sets_ptr = partial_ptr + parts.to(tl.int64) * F
            store_sums(partial_ptr, sets_ptr + number.to(tl.int64) * F, first, begin, stop, F, COLS)
            tl.store(set_counter, 0)
            group_counter = counter_ptr + group * (sets + 1) + sets
            if is_last(group_counter, sets):
                store_sums(sets_ptr, out_ptr, first, 0, sets, F, COLS)
                tl.store(group_counter, 0)
    else:
        if is_last(counter_ptr + group, parts):
            store_sums(partial_ptr, out_ptr, first, 0, parts, F, COLS)
            tl.store(counter_ptr + group, 0)


@triton.jit(do_not_specialize=["parts"])
def last_sums_kernel(partial_ptr, out_ptr, parts, F: tl.constexpr, LENGTH: tl.constexpr, COLS: tl.constexpr):
    """A row of out [.., F] for each LENGTH rows of partial [parts, F]; one row for all where LENGTH is 0."""
    begin = tl.program_id(1) * LENGTH
    stop = min(begin + LENGTH, parts) if LENGTH else parts
    store_sums(partial_ptr, out_ptr + tl.program_id(1).to(tl.int64) * F, tl.program_id(0) * COLS, begin, stop, F, COLS)


def is_deep(parts: int) -> bool:
    """Whether these rows are added by sets."""
    return parts > SET


def partials(parts: int, size: int, device: torch.device) -> Tensor:
    """Memory for partial sums [parts, size], float32, and those of the sets behind them."""
    rows = parts + cdiv(parts, SET) if is_deep(parts) else parts
    return torch.empty(rows, size, dtype=torch.float32, device=device)


def counter_of(x: Tensor, groups: int, parts: int) -> Tensor | None:
    """What programs of a launch on x's device count in, `groups` times `parts` of them; None where they cannot."""
    return counters.of(x, groups * (cdiv(parts, SET) + 1) if is_deep(parts) else groups)


def add_up(partial: Tensor, parts: int, out: Tensor, cols: int, warps: int) -> None:
    """The sums over the first `parts` rows of partial, made by `partials`, into out [F]: by launches, with the bits of `end`.

    cols, warps: COLS and warps of the kernel that left the partial sums.
    """
    size, blocks = out.shape[0], cdiv(out.shape[0], cols)
    if is_deep(parts):
        sets = partial[parts:]
        constants = {"F": size, "LENGTH": SET, "COLS": cols}
        launch(last_sums_kernel, (blocks, sets.shape[0]), (partial, sets, parts), constants, warps=warps)
        partial, parts = sets, sets.shape[0]
    launch(last_sums_kernel, (blocks, 1), (partial, out, parts), {"F": size, "LENGTH": 0, "COLS": cols}, warps=warps)
