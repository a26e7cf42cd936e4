"""All layers of a model in training, forward and backward from captured graphs, for a loop that is the user's own.

One autograd node stands for the whole stack: its forward copies the call's rows into the buffers of a bucket's graphs and replays
the first, its backward copies the incoming gradient there and replays the second. What lies around it (embeddings, head, loss,
optimizer, clipping, hooks of DDP) is torch's as ever, and gradients reach parameters through autograd.

The graphs of a device keep activations in memory that they share, so one call at a time may be between its forward and its
backward (`backend.Pending`); another one meanwhile runs eagerly. Seeds of dropout are an input of the graphs. So a backward that
finds the activations gone, as the second through one forward does, computes the forward again from the call's own tensors.
"""

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast import _library, _torch
from bertfast.graphs import backend as backends
from bertfast.graphs import buckets, cache, capturing
from bertfast.graphs.backend import TRAINING, Backend, Pending
from bertfast.graphs.cache import Cache, Captured, Due, Limits
from bertfast.graphs.capturing import ANOTHER_CAPTURES, CAPTURED, LET_GO, NO_MEMORY, REPLAYED, Failure
from bertfast.graphs.inputs import copy_all
from bertfast.graphs.training_call import OPS, Call, Pair, Pass, Rows
from bertfast.nn import joined
from bertfast.nn.device import Launched
from bertfast.nn.layout import Packed
from bertfast.nn.plain import is_unwatched
from bertfast.nn.stack import Native
from bertfast.nn.through import Layers, through
from bertfast.nn.training import Trained

PENDING = "another call is between its forward and its backward"
_DEFAULT = Limits()
_ALIGNMENT = 64  # elements between the beginnings of gradients that share memory: 128 bytes and more
_here = threading.local()


class Outcome(NamedTuple):
    """Rows [N, E] or [R, E] of the last layer, and how they came about: "replayed", "captured", "eager: REASON", or None where it
    is no training call or nothing is captured on its device."""

    rows: Tensor
    how: str | None


@contextmanager
def suspended() -> Iterator[None]:
    """Training calls of this thread run eagerly inside: for who captures whole steps."""
    before = getattr(_here, "suspended", False)
    _here.suspended = True
    try:
        yield
    finally:
        _here.suspended = before


def run(layers: Layers, x: Tensor, layout: Packed, limits: Limits = _DEFAULT) -> Outcome:
    """x [N, E] through all layers, forward and backward from captured graphs where there are any.

    The first call of a bucket of sizes runs eagerly, the second captures, later ones replay. Under dropout a call drops the same
    elements whichever it does.

    Args:
        layers: made ready for x.
        layout: of x's rows; its bounds rise from 0 to N.
        limits: of the graphs of the layers' owner, those of inference included.

    Raises:
        Whatever the layers raise on these rows.
    """
    device = backends.of(x.device)
    if device is None or torch.compiler.is_compiling() or not _trains(layers, x):
        return Outcome(through(layers, x, layout), None)
    with device.active():
        if isinstance(layers.at_once, Trained):
            layers.at_once.begin()
        reason = _reason(layers, x, device, limits)
        if reason is not None or not isinstance(layers.at_once, Trained):
            return Outcome(through(layers, x, layout), f"eager: {reason}")
        return _captured(Call.of(layers, layers.at_once, x, layout), x, device, limits)


def _trains(layers: Layers, x: Tensor) -> bool:
    """Whether there will be a backward."""
    if not torch.is_grad_enabled() or isinstance(layers.at_once, Native | Launched):
        return False
    return x.requires_grad or any(p.requires_grad for layer in layers.modules for p in layer.parameters())


def _reason(layers: Layers, x: Tensor, device: Backend, limits: Limits) -> str | None:
    """Why a training call is neither captured nor replayed now, whatever its sizes."""
    if getattr(_here, "suspended", False):
        return "its caller captures whole steps"
    if not isinstance(layers.at_once, Trained) or type(x) is not Tensor:
        return "its layers do not run at once"
    if joined.is_held(layers.owner):
        return "its caller says when copies of the weights are written"
    if not is_unwatched():
        return "a trace, a transform or a dispatch mode is active"
    if _torch.saves_elsewhere():
        return "what is saved for backward goes elsewhere, as in checkpointing"
    if _torch.in_backward():
        return "it is called in a backward, as checkpointing does"
    if torch.is_anomaly_enabled():
        return "anomaly detection looks at every number"
    scales = layers.at_once.scales
    if scales is not None and not scales.knows_scales:
        return "its FP8 scales are known after the first backward"
    if any(_library.resolved(name, "CUDA") is _library.meaning(name) for name in OPS):
        return "torch's own functions run for some ops"
    return capturing.reason(device, limits)


def _eagerly(call: Call, x: Tensor, reason: str) -> Outcome:
    return Outcome(through(call.layers, x, call.layout, call.seeds), f"eager: {reason}")


def _captured(call: Call, x: Tensor, device: Backend, limits: Limits) -> Outcome:
    group = TRAINING, call.autocast
    bucket = call.bucket()
    place = (TRAINING, device, bucket, call.key(), device.settings(), call.autocast)
    owned = cache.of(call.layers.owner)
    state = owned.find(place, call.tensors, limits, group, TRAINING)
    how = REPLAYED
    if isinstance(state, Due):
        state, how = _capture(owned, place, bucket, state, call, x, device, limits), CAPTURED
    elif isinstance(state, Captured) and owned.is_new(device.stream(), group):
        device.keep(call.tensors)  # a replay tells the allocator nothing
    if isinstance(state, str):
        outcome = _eagerly(call, x, state)
        if state is cache.FIRST:
            owned.came(place)
        return outcome
    return _replay(state, call, x, how)


def _capture(
    owned: Cache,
    place: Hashable,
    bucket: buckets.Bucket,
    due: Due,
    call: Call,
    x: Tensor,
    device: Backend,
    limits: Limits,
) -> Captured | str:
    """The call's bucket captured; or why not."""
    if not device.begin_capture():
        return ANOTHER_CAPTURES
    try:
        if device.is_pending():
            return PENDING
        try:
            with capturing.capturable(), call.pretending():
                inputs = Rows(bucket, call, x)
                inputs.fill(call, x)
                eager = device.warm_up(lambda: _warm_up(inputs, call))
        except torch.OutOfMemoryError:
            owned.evict_all()
            owned.refuse(place, NO_MEMORY)
            return NO_MEMORY
        device.wait()
        device.check()  # bounds that do not rise are the caller's fault, not the capture's
        owned.make_room(limits)
        device.collect()
        with call.pretending():
            made = capturing.attempt(lambda: _graphs(inputs, call, eager, device), owned, device)
        if isinstance(made, Failure):
            if made.reason == NO_MEMORY:
                owned.refuse(place, NO_MEMORY)
            else:
                owned.fail(place, made.reason, TRAINING)
            return made.reason
        captured = Captured(made, inputs, inputs.nbytes + made.nbytes, device)
        return owned.keep(place, captured, due, limits) or captured
    finally:
        device.end()


def _warm_up(inputs: Rows, call: Call) -> tuple[Tensor, ...]:
    """Rows and gradients on the buffers of a bucket, eagerly; the buffer for dy is made here, since rows tell of its form."""
    work = Pass.on(inputs, call)
    (rows,) = work.forward()
    inputs.pretend_gradient(rows, call.own_rows)
    return rows, *work.backward()


def _graphs(inputs: Rows, call: Call, eager: Sequence[Tensor], device: Backend) -> Pair | Failure:
    """Both graphs, replayed, their bits compared with those of the eager call; or how they differ."""
    work = Pass.on(inputs, call)
    forward = device.capture(work.forward, TRAINING)
    try:
        backward = device.capture(work.backward, TRAINING)
    except BaseException:
        forward.reset()
        raise
    pair = Pair(forward, backward)
    forward.replay(work.forward)
    backward.replay(work.backward)
    difference = _difference((*forward.outputs, *backward.outputs), eager)
    if difference is None:
        return pair
    pair.reset()
    return Failure(difference)


def _difference(replayed: Sequence[Tensor], eager: Sequence[Tensor]) -> str | None:
    """How the bits of rows and gradients differ from the eager call's; None where they do not. Waits for the device."""
    forms = [[(tensor.dtype, tensor.shape) for tensor in tensors] for tensors in (replayed, eager)]
    if forms[0] != forms[1]:
        return "its replay gives rows or gradients of another form"
    pairs = zip(replayed, eager, strict=True)
    unequal = torch.stack([(capturing.as_integers(one) != capturing.as_integers(two)).any() for one, two in pairs])
    places = unequal.nonzero()[:, 0].tolist()
    if not places:
        return None
    what = "rows" if places[0] == 0 else f"gradient {places[0]}"
    return f"its replay differs from the eager call in {len(places)} of {len(unequal)} tensors, the first one {what}"


def _replay(captured: Captured, call: Call, x: Tensor, how: str) -> Outcome:
    device = captured.backend
    if not device.begin():
        return _eagerly(call, x, ANOTHER_CAPTURES)
    reason = LET_GO
    try:
        if captured.alive and not device.is_pending():
            device.check()
            captured.inputs.fill(call, x)
            return Outcome(_Stack.apply(call, captured, x, *call.parameters), how)
        if captured.alive:
            reason = PENDING
    finally:
        device.end()
    return _eagerly(call, x, reason)


class _Stack(torch.autograd.Function):
    """The whole stack as one node."""

    @staticmethod
    def forward(ctx: Any, call: Call, captured: Captured, x: Tensor, *parameters: Tensor) -> Tensor:
        """In a turn, x in its buffer."""
        work = Pass.on(captured.inputs, call)
        captured.graph.forward.replay(work.forward)  # type: ignore[attr-defined]
        layout = call.layout
        optional = [layout.read, call.seeds]
        ctx.save_for_backward(x, layout.cu_seqlens, *optional, *parameters)
        ctx.call, ctx.captured, ctx.work, ctx.pending = call, captured, work, captured.backend.pend()
        return captured.graph.forward.outputs[0][: call.own_rows].clone()  # type: ignore[attr-defined]

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # An error where one of them was written to since, or where they were let go after the first backward.
        x, cu_seqlens, read, seeds, *_ = ctx.saved_tensors
        call: Call = ctx.call
        captured: Captured = ctx.captured
        with captured.backend.active():
            gradients = _replayed_gradients(captured, ctx.work, ctx.pending, dy, x.shape[0])
            if gradients is None:
                layout = replace(call.layout, cu_seqlens=cu_seqlens, read=read)
                with _autocast_as(call, x.device.type):
                    gradients = Pass(call, x, layout, seeds, lambda: dy).both()[1:]
        rest = iter(gradients)
        return None, None, *(next(rest) if grad else None for grad in call.grads)


@contextmanager
def _autocast_as(call: Call, kind: str) -> Iterator[None]:
    """Autocast as it was when the call was made."""
    with torch.autocast(kind, dtype=call.autocast, enabled=call.autocast is not None):
        yield


def _replayed_gradients(
    captured: Captured, work: Pass, pending: Pending, dy: Tensor, own: int
) -> tuple[Tensor, ...] | None:
    """Gradients of x and of the parameters, in memory of their own, from the call's activations; None where these are gone."""
    device = captured.backend
    if pending.over or device.in_turn() or device.is_capturing() or not device.begin():
        return None
    try:
        if pending.over or not captured.alive:
            return None
        device.check()
        captured.inputs.fill_gradient(dy)
        graph: Any = captured.graph
        graph.backward.replay(work.backward)
        work.came_back()
        pending.over = True
        gradients = list(graph.backward.outputs)
        if work.x_needs_gradient:
            gradients[0] = gradients[0][:own]
        return _copies(gradients)
    finally:
        device.end()


def _copies(gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same numbers elsewhere: who accumulates gradients may keep them. One allocation and one copy for each dtype."""
    made: list[Tensor] = list(gradients)
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        numbers = [number for number, gradient in enumerate(gradients) if gradient.dtype is dtype]
        sizes = [-(-gradients[number].numel() // _ALIGNMENT) * _ALIGNMENT for number in numbers]
        flat = gradients[numbers[0]].new_empty(sum(sizes))
        for number, piece in zip(numbers, flat.split(sizes), strict=True):
            made[number] = piece[: gradients[number].numel()].view(gradients[number].shape)
    copy_all(made, list(gradients))
    return tuple(made)
