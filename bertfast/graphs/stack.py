"""All layers of a model in training, forward and backward from captured graphs, for a loop that is the user's own.

One autograd node stands for the whole stack: its forward copies the call's rows into the buffers of a bucket's graphs and replays
the first, its backward copies the incoming gradient there and replays the second. What lies around it (embeddings, head, loss,
optimizer, clipping, hooks of DDP) is torch's as ever, and gradients reach parameters through autograd.

The graphs of a device keep activations in memory that they share, so one call at a time may be between its forward and its
backward (`backend.Pending`); another one meanwhile runs eagerly. Seeds of dropout are an input of the graphs. So a backward that
finds the activations gone, as the second through one forward does, computes the forward again from the call's own tensors.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast import _library, _torch
from bertfast.graphs import backend as backends
from bertfast.graphs import buckets, cache, capturing
from bertfast.graphs.backend import TRAINING, Backend, Graph, Pending
from bertfast.graphs.cache import Cache, Captured, Due, Limits
from bertfast.graphs.capturing import ANOTHER_CAPTURES, CAPTURED, LET_GO, NO_MEMORY, REPLAYED, Failure
from bertfast.graphs.inputs import Bounds, copy_all
from bertfast.nn import seeds as dropout_seeds
from bertfast.nn.device import Launched
from bertfast.nn.layout import Packed
from bertfast.nn.parts import parts_of
from bertfast.nn.plain import is_unwatched
from bertfast.nn.stack import Native
from bertfast.nn.through import Layers, through
from bertfast.nn.training import Trained

PENDING = "another call is between its forward and its backward"
_DEFAULT = Limits()
_ALIGNMENT = 64  # elements between the beginnings of gradients that share memory: 128 bytes and more
_OPS = (
    "attention_fwd",
    "attention_bwd",
    "dropout_add_norm_fwd",
    "dropout_add_norm_bwd",
    "bias_gelu_fwd",
    "bias_gelu_bwd",
)
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
        reason = _reason(layers, x, device, limits)
        if reason is not None or not isinstance(layers.at_once, Trained):
            return Outcome(through(layers, x, layout), f"eager: {reason}")
        return _captured(_Call.of(layers, layers.at_once, x, layout), x, device, limits)


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
    if not is_unwatched():
        return "a trace, a transform or a dispatch mode is active"
    if _torch.saves_elsewhere():
        return "what is saved for backward goes elsewhere, as in checkpointing"
    if _torch.in_backward():
        return "it is called in a backward, as checkpointing does"
    if torch.is_anomaly_enabled():
        return "anomaly detection looks at every number"
    if any(_library.resolved(name, "CUDA") is _library.meaning(name) for name in _OPS):
        return "torch's own functions run for some ops"
    return capturing.reason(device, limits)


@dataclass(frozen=True)
class _Call:
    """One training call: what it computes, and its own tensors but for x and the parameters.

    Attributes:
        parameters: of all layers, each once.
        slots: which of `parameters` stands at each place of `trained.parameters`; None for an absent one.
        grads: whether x and each parameter need a gradient.
        kept: cu_seqlens, and the rows that are read and the seeds of dropout where there are any.
        sizes: N and E, x's shape.
    """

    layers: Layers
    trained: Trained
    parameters: tuple[Tensor, ...]
    slots: tuple[int | None, ...]
    grads: tuple[bool, ...]
    layout: Packed
    seeds: Tensor | None
    autocast: torch.dtype | None
    dtype: torch.dtype
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, layers: Layers, trained: Trained, x: Tensor, layout: Packed) -> "_Call":
        places: dict[int, int] = {}
        parameters: list[Tensor] = []
        slots: list[int | None] = []
        for parameter in trained.parameters:
            if parameter is None:
                slots.append(None)
                continue
            if id(parameter) not in places:
                places[id(parameter)] = len(parameters)
                parameters.append(parameter)
            slots.append(places[id(parameter)])
        grads = (x.requires_grad, *(parameter.requires_grad for parameter in parameters))
        seeds = dropout_seeds.draw(layers.seeds, x.device) if layers.seeds else None
        autocast = capturing.autocast(x.device.type)
        return cls(
            layers, trained, tuple(parameters), tuple(slots), grads, layout, seeds, autocast, x.dtype, tuple(x.shape)
        )

    @property
    def own_rows(self) -> int:
        """How many rows of the result are this call's."""
        return self.sizes[0] if self.layout.read is None else self.layout.read.shape[0]

    def bucket(self) -> buckets.Bucket:
        read = self.layout.read
        count = self.layout.cu_seqlens.shape[0] - 1
        return buckets.bucket(self.sizes[0], count, self.layout.max_seqlen, None if read is None else read.shape[0])

    def key(self) -> Hashable:
        """What the captured code depends on besides sizes, and what parameters and torch's settings tell."""
        parts = [parts_of(layer) for layer in self.layers.modules]
        eps = tuple(float(norm.eps) for part in parts for norm in part.norms)
        running = tuple(_library.resolved(name, "CUDA") for name in _OPS)
        trained = self.trained
        return (
            trained.kind,
            trained.rates,
            trained.dtype,
            self.dtype,
            self.sizes[1],
            self.grads,
            self.slots,
            eps,
            running,
        )

    def eagerly(self, x: Tensor, reason: str) -> Outcome:
        return Outcome(through(self.layers, x, self.layout, self.seeds), f"eager: {reason}")


def _captured(call: _Call, x: Tensor, device: Backend, limits: Limits) -> Outcome:
    group = TRAINING, call.autocast
    bucket = call.bucket()
    place = (TRAINING, device, bucket, call.key(), device.settings(), call.autocast)
    owned = cache.of(call.layers.owner)
    found = owned.find(place, call.parameters, limits, group, TRAINING)
    how = REPLAYED
    if isinstance(found, Due):
        found, how = _capture(owned, place, bucket, found, call, x, device, limits), CAPTURED
    elif isinstance(found, Captured) and owned.is_new(device.stream(), group):
        device.keep(call.parameters)  # a replay tells the allocator nothing
    if isinstance(found, str):
        outcome = call.eagerly(x, found)
        if found is cache.FIRST:
            owned.came(place)
        return outcome
    return _replay(found, call, x, how)


class _Inputs:
    """Buffers for any call of a bucket. Rows past a call's own are zeros, as are their gradients, so that they add nothing to those
    of the parameters.

    Attributes:
        x: [N, E]; cu_seqlens: [B + 1] int32; read: [R] int64 or None; seeds: int64 [n, 2] or None; dy: [R or N, E].
    """

    def __init__(self, bucket: buckets.Bucket, call: _Call, x: Tensor):
        self.x = x.detach().new_zeros(bucket.tokens, x.shape[1])
        self._bounds = Bounds(bucket, x.device)
        self.longest = bucket.longest
        self.read = None
        if type(bucket.read) is int:
            self.read = torch.zeros(bucket.read, dtype=torch.int64, device=x.device)
        self.seeds = None if call.seeds is None else torch.zeros_like(call.seeds)
        self.dy: Tensor | None = None
        self._rows = self._gradients = 0  # that the calls before wrote

    @property
    def layout(self) -> Packed:
        return Packed(self._bounds.tensor, self.longest, self.read)

    @property
    def nbytes(self) -> int:
        tensors = (self.x, self.read, self.seeds, self.dy)
        return self._bounds.nbytes + sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def fill(self, call: _Call, x: Tensor) -> None:
        """Put a call's own tensors into the buffers, without a wait."""
        count, bounds, read = x.shape[0], call.layout.cu_seqlens, call.layout.read
        if self._rows > count:
            self.x[count : self._rows].zero_()
        self._rows = count
        targets, sources = [self.x[:count], self._bounds.target(bounds)], [x.detach(), bounds]
        if self.read is not None and read is not None:
            targets.append(self.read[: read.shape[0]])
            sources.append(read)
        if self.seeds is not None and call.seeds is not None:
            targets.append(self.seeds)
            sources.append(call.seeds)
        copy_all(targets, sources)
        self._bounds.close(bounds, count)

    def fill_gradient(self, dy: Tensor) -> None:
        """Put the gradient of a call's own rows into its buffer."""
        assert self.dy is not None, "made when the graphs were"
        count = dy.shape[0]
        if self._gradients > count:
            self.dy[count : self._gradients].zero_()
        self._gradients = count
        self.dy[:count].copy_(dy)

    def pretend_gradient(self, rows: Tensor, own: int) -> None:
        """Make dy for such rows, and let it hold numbers none of which are alike."""
        self.dy = torch.zeros_like(rows)
        numbers = torch.arange(rows[:own].numel(), dtype=torch.float32, device=rows.device)
        self.fill_gradient(numbers.view(rows[:own].shape).cos_().to(rows.dtype))


class _Pass:
    """A forward and its backward: on the buffers of a bucket, or once more on a call's own tensors.

    Parameters take part as leaves of their own, which share their memory: autograd's node of a user's parameter remembers a stream
    and may have hooks, and neither is the graph's business.
    """

    def __init__(self, call: _Call, x: Tensor, layout: Packed, seeds: Tensor | None, dy: Callable[[], Tensor]):
        self._call, self._x, self._layout, self._seeds, self._dy = call, x, layout, seeds, dy
        self._rows: Tensor | None = None
        self._leaves: list[Tensor] = []

    @classmethod
    def on(cls, inputs: _Inputs, call: _Call) -> "_Pass":
        return cls(call, inputs.x, inputs.layout, inputs.seeds, lambda: inputs.dy)  # type: ignore[arg-type, return-value]

    @property
    def x_needs_gradient(self) -> bool:
        return self._call.grads[0]

    def forward(self) -> tuple[Tensor]:
        call = self._call
        with torch.enable_grad():
            leaves = [tensor.detach() for tensor in (self._x, *call.parameters)]
            for leaf, grad in zip(leaves, call.grads, strict=True):
                leaf.requires_grad_(grad)
            own = [None if slot is None else leaves[1 + slot] for slot in call.slots]
            trained = replace(call.trained, parameters=own)
            layout = self._layout
            rows = trained.forward(leaves[0], layout.cu_seqlens, layout.max_seqlen, layout.read, self._seeds)
        self._leaves = [leaf for leaf, grad in zip(leaves, call.grads, strict=True) if grad]
        self._rows = rows
        return (rows.detach(),)

    def backward(self) -> tuple[Tensor, ...]:
        """The gradients of x and of the parameters that need one, in their order."""
        assert self._rows is not None, "forward comes first"
        rows, leaves = self._rows, self._leaves
        self._rows, self._leaves = None, []
        with torch.autocast(rows.device.type, enabled=False):  # as where a loop calls backward
            return torch.autograd.grad(rows, leaves, self._dy())

    def both(self) -> tuple[Tensor, ...]:
        return (*self.forward(), *self.backward())


class _Pair(Graph):
    """The graphs of a forward and of its backward, which are captured one after the other into one pool."""

    def __init__(self, forward: Graph, backward: Graph):
        self.forward, self.backward = forward, backward
        self.nbytes = forward.nbytes + backward.nbytes

    def reset(self) -> None:
        self.backward.reset()
        self.forward.reset()


def _capture(
    owned: Cache,
    place: Hashable,
    bucket: buckets.Bucket,
    due: Due,
    call: _Call,
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
            with capturing.capturable():
                inputs = _Inputs(bucket, call, x)
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


def _warm_up(inputs: _Inputs, call: _Call) -> tuple[Tensor, ...]:
    """Rows and gradients on the buffers of a bucket, eagerly; the buffer for dy is made here, since rows tell of its form."""
    work = _Pass.on(inputs, call)
    (rows,) = work.forward()
    inputs.pretend_gradient(rows, call.own_rows)
    return rows, *work.backward()


def _graphs(inputs: _Inputs, call: _Call, eager: Sequence[Tensor], device: Backend) -> _Pair | Failure:
    """Both graphs, replayed, their bits compared with those of the eager call; or how they differ."""
    work = _Pass.on(inputs, call)
    forward = device.capture(work.forward, TRAINING)
    try:
        backward = device.capture(work.backward, TRAINING)
    except BaseException:
        forward.reset()
        raise
    pair = _Pair(forward, backward)
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


def _replay(captured: Captured, call: _Call, x: Tensor, how: str) -> Outcome:
    device = captured.backend
    if not device.begin():
        return call.eagerly(x, ANOTHER_CAPTURES)
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
    return call.eagerly(x, reason)


class _Stack(torch.autograd.Function):
    """The whole stack as one node."""

    @staticmethod
    def forward(ctx: Any, call: _Call, captured: Captured, x: Tensor, *parameters: Tensor) -> Tensor:
        """In a turn, x in its buffer."""
        work = _Pass.on(captured.inputs, call)
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
        call: _Call = ctx.call
        captured: Captured = ctx.captured
        with captured.backend.active():
            found = _replayed_gradients(captured, ctx.work, ctx.pending, dy, x.shape[0])
            if found is None:
                layout = replace(call.layout, cu_seqlens=cu_seqlens, read=read)
                with _autocast_as(call, x.device.type):
                    found = _Pass(call, x, layout, seeds, lambda: dy).both()[1:]
        rest = iter(found)
        return None, None, *(next(rest) if grad else None for grad in call.grads)


@contextmanager
def _autocast_as(call: _Call, kind: str) -> Iterator[None]:
    """Autocast as it was when the call was made."""
    with torch.autocast(kind, dtype=call.autocast, enabled=call.autocast is not None):
        yield


def _replayed_gradients(
    captured: Captured, work: _Pass, pending: Pending, dy: Tensor, own: int
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
