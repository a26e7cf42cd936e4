"""The softmax of linear_cross_entropy and its gradient over rows of logits that lack their bias.

Forward is bound by reading M V logits, if an element costs few instructions: lanes of as many columns as one 16-byte load have
keep a maximum, a sum and the step where the maximum was; its column is found at the end by a second look at that lane.
Backward needs no reduction over the row, since lse was saved: it reads and writes M V.
"""

import triton
import triton.language as tl

from bertfast.ops.masked_lm_loss.reference import IGNORED
from bertfast.triton.mailbox import report

_IGNORED = tl.constexpr(IGNORED)
_LOWEST = tl.constexpr(-3.0e38)  # below every logit, yet its difference to -inf is no NaN


@triton.jit
def biased_logits(
    row_ptr, bias_ptr, start, VOCABULARY: tl.constexpr, STRIDE: tl.constexpr, COLS: tl.constexpr, TAIL: tl.constexpr
):
    """COLS logits from `start` on, bias added; -inf beyond the vocabulary."""
    column = start + tl.arange(0, COLS)
    if TAIL:
        inside = column < VOCABULARY
        # Columns up to STRIDE exist: a mask that ends at a multiple of 64 keeps whole 16-byte loads.
        value = tl.load(row_ptr + column, mask=column < STRIDE, other=0.0).to(tl.float32)
        value += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value, float("-inf"))
    else:
        value = tl.load(row_ptr + column).to(tl.float32) + tl.load(bias_ptr + column).to(tl.float32)
    return value


@triton.jit
def add_columns(value, start, top, total, at, COLS: tl.constexpr, LANE: tl.constexpr):
    """Takes COLS more logits into each lane's maximum, sum of exp(logit - maximum), and step where the maximum first was."""
    lanes = tl.reshape(value, (COLS // LANE, LANE))
    high = tl.max(lanes, 1)
    raised = tl.maximum(top, high)
    total = total * tl.exp(top - raised) + tl.sum(tl.exp(lanes - raised[:, None]), 1)
    return raised, total, tl.where(high > top, start, at)


@triton.jit(do_not_specialize=["first"])
def cross_entropy_fwd_kernel(
    logits_ptr,
    bias_ptr,
    labels_ptr,
    loss_ptr,
    lse_ptr,
    argmax_ptr,
    box_ptr,
    first,
    VOCABULARY: tl.constexpr,
    STRIDE: tl.constexpr,
    COLS: tl.constexpr,
    LANE: tl.constexpr,
    SLOT: tl.constexpr,
):
    """One row. `first`: the row of labels that row 0 of the logits belongs to."""
    row = tl.program_id(0)
    place = row + first
    label = tl.load(labels_ptr + place)
    if label == _IGNORED:
        tl.store(loss_ptr + place, 0.0)
        tl.store(lse_ptr + place, 0.0)
        tl.store(argmax_ptr + place, tl.full((), -1, tl.int64))
    else:
        row_ptr = logits_ptr + row.to(tl.int64) * STRIDE
        top = tl.full((COLS // LANE,), _LOWEST, tl.float32)
        total = tl.zeros((COLS // LANE,), tl.float32)
        at = tl.zeros((COLS // LANE,), tl.int32)
        WHOLE: tl.constexpr = VOCABULARY // COLS * COLS
        for start in range(0, WHOLE, COLS):
            value = biased_logits(row_ptr, bias_ptr, start, VOCABULARY, STRIDE, COLS, False)
            top, total, at = add_columns(value, start, top, total, at, COLS, LANE)
        if WHOLE < VOCABULARY:
            value = biased_logits(row_ptr, bias_ptr, WHOLE, VOCABULARY, STRIDE, COLS, True)
            top, total, at = add_columns(value, WHOLE, top, total, at, COLS, LANE)
        best = tl.max(top, 0)
        total = tl.sum(total * tl.exp(top - best), 0)
        lane = at + tl.arange(0, COLS // LANE) * LANE  # the first column of each lane in the step of its maximum
        start = tl.min(tl.where(top == best, lane, VOCABULARY - 1), 0)
        value = biased_logits(row_ptr, bias_ptr, start, VOCABULARY, STRIDE, LANE, True)
        winner = tl.min(tl.where(value == best, start + tl.arange(0, LANE), VOCABULARY - 1), 0)
        bad = (label < 0) | (label >= VOCABULARY)
        known = tl.where(bad, 0, label)
        at_label = tl.load(row_ptr + known).to(tl.float32) + tl.load(bias_ptr + known).to(tl.float32)
        log_total = tl.log(total)
        nan = float("nan")
        tl.store(loss_ptr + place, tl.where(bad, nan, (best - at_label) + log_total))
        tl.store(lse_ptr + place, tl.where(bad, nan, best + log_total))  # poisons backward too
        tl.store(argmax_ptr + place, winner.to(tl.int64))
        report(box_ptr, SLOT, place, bad)


@triton.jit(do_not_specialize=["first", "rows"])
def cross_entropy_bwd_kernel(
    logits_ptr,
    dlogits_ptr,
    bias_ptr,
    labels_ptr,
    lse_ptr,
    dloss_ptr,
    dbias_ptr,
    first,
    rows,
    VOCABULARY: tl.constexpr,
    STRIDE: tl.constexpr,
    COLS: tl.constexpr,
):
    """COLS columns of every num_programs(1)-th row; dlogits may be the logits. dbias: a part [STRIDE] a program, or None."""
    program = tl.program_id(1)
    column = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside, exists = column < VOCABULARY, column < STRIDE
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dbias = tl.zeros((COLS,), tl.float32)
    start = program.to(tl.int64) * STRIDE
    for row in range(program, rows, tl.num_programs(1)):
        place = first + row
        label = tl.load(labels_ptr + place)
        lse = tl.load(lse_ptr + place)
        dloss = tl.load(dloss_ptr + place).to(tl.float32)
        value = tl.load(logits_ptr + start + column, mask=exists, other=0.0).to(tl.float32) + bias
        gradient = (tl.exp(value - lse) - tl.where(column == label, 1.0, 0.0)) * dloss
        # By choice and not by a factor of 0: a NaN in an ignored row or in the padding must not come out.
        gradient = tl.where(inside & (label != _IGNORED), gradient, 0.0)
        if dbias_ptr is not None:
            dbias += gradient
        tl.store(dlogits_ptr + start + column, gradient.to(dlogits_ptr.dtype.element_ty), mask=exists)
        start += tl.num_programs(1).to(tl.int64) * STRIDE
    if dbias_ptr is not None:
        tl.store(dbias_ptr + program * STRIDE + column, dbias, mask=exists)
