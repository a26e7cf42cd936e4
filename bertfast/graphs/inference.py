"""Inference from ids to the rows that are read, as one replay of a captured call.

A call is rounded up to a bucket of sizes (`buckets`). The first call of a bucket runs eagerly on its own tensors, since most sizes
come once; the second captures, and every later one copies its tokens into the buffers of the graph (`inputs`) and replays it.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bertfast import _torch
from bertfast.graphs import backend as backends
from bertfast.graphs import buckets, cache
from bertfast.graphs.backend import Backend, Graph
from bertfast.graphs.cache import Cache, Captured, Due, Limits
from bertfast.graphs.inputs import Inputs
from bertfast.nn.tokens import Tokens

REPLAYED, CAPTURED = "replayed", "captured"
Function = Callable[[Tokens, Tensor | None], Tensor]
Read = Tensor | Literal["first"] | None
_DEFAULT = Limits()
_NO_MEMORY = "there is no memory for its graph"


class Outcome(NamedTuple):
    """What `finish` returned, and how its rows came about: "replayed", "captured" or "eager: REASON"."""

    result: Any
    how: str


class _Call(NamedTuple):
    """One call of `run`."""

    function: Function
    tokens: Tokens
    read: Read
    finish: Callable[[Tensor], Any]

    def compute(self) -> Tensor:
        """The rows, on the call's own tensors."""
        return self.function(self.tokens, self.tokens.first if isinstance(self.read, str) else self.read)

    def eagerly(self, reason: str) -> Outcome:
        with _plain():
            rows = self.compute()
        return Outcome(self.finish(rows), f"eager: {reason}")

    def own_rows(self) -> int:
        """How many of a captured call's rows are this call's own."""
        if isinstance(self.read, str):
            return self.tokens.sequences
        return self.tokens.rows if self.read is None else self.read.shape[0]

    def fill(self, inputs: Inputs, device: Backend) -> None:
        inputs.fill(self.tokens, self.read if isinstance(self.read, Tensor) else None, device.staged)

    def on(self, inputs: Inputs) -> backends.Function:
        """The function on the buffers of a graph."""
        return lambda: (self.function(inputs.tokens, inputs.read()),)


def run(
    owner: nn.Module,
    function: Function,
    tokens: Tokens,
    read: Read,
    *,
    weights: Callable[[], Sequence[Tensor | None]],
    key: Hashable,
    finish: Callable[[Tensor], Any],
    limits: Limits = _DEFAULT,
    positions: int | None = None,
) -> Outcome:
    """finish(function(tokens, read)), the function from a captured graph where there is one.

    Args:
        owner: what the graphs belong to; they go when it goes.
        function: takes tokens and the rows to be read, int64 [R], or None for all; returns them, [R, E] or [N, E]. It depends on
            its arguments, on `weights` and on what `key` tells, and each row of its result on the row's own sequence alone. Rows
            may be named twice and in any order. In a graph it gets the buffers: more rows, in sequences of their own, and more
            sequences, empty ones. It is run without gradients, outside inference mode.
        tokens: N rows, in sequences from bound 0 to bound N. Where they lie on a CPU and the weights on a GPU, they are copied
            there through pinned memory.
        read: [R] int64 rows; "first" for the first of each sequence, [B]; None for all.
        weights: every tensor that the function reads by address besides its arguments: parameters, buffers, and copies made of
            them that it refreshes itself. Called once; None stands for an absent one.
        key: whatever else the function's code depends on: options, heads, the dtype of products. (Settings of torch that choose
            kernels, and autocast, are seen to.)
        finish: takes the rows, while they are this call's own and no longer: it returns what lies elsewhere, such as [B, S, E] with
            the padding put back, or a clone.
        limits: of the owner's graphs.
        positions: of the model, beyond which no bound on the longest sequence needs to be rounded.

    Raises:
        Whatever the function raises on these tokens; where a captured kernel found an id outside its table, the IndexError comes at
        the owner's next call on that device, as it does eagerly.
    """
    call = _Call(function, tokens, read, finish)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return Outcome(finish(call.compute()), "eager: it is traced")
    tensors = weights()
    at = next((t.device for t in tensors if t is not None), tokens.input_ids.device)
    device = backends.of(at)
    if device is None:
        return call.eagerly(f"nothing is captured on {at.type}")
    with device.active():
        if tokens.input_ids.device != at:
            call = call._replace(tokens=_moved(tokens, device), read=_placed(read, device))
        reason = _reason(device, limits)
        if reason is not None:
            return call.eagerly(reason)
        bucket = buckets.bucket(
            call.tokens.rows,
            call.tokens.bounds.shape[0] - 1,
            call.tokens.max_seqlen,
            call.read.shape[0] if isinstance(call.read, Tensor) else call.read,
            positions,
        )
        autocast = _autocast(at.type)
        place = (device, bucket, tokens.token_type_ids is not None, key, device.settings(), autocast)
        owned = cache.of(owner, "inference")
        state = owned.find(place, tensors, limits, autocast)
        if isinstance(state, Captured):
            if owned.is_new(device.stream(), autocast):
                device.keep(tensors)  # a replay tells the allocator nothing
            return _replay(state, call)
        if isinstance(state, Due):
            return _capture(owned, place, bucket, state, call, device, limits)
        outcome = call.eagerly(state)
        if state is cache.FIRST:
            owned.came(place)
        return outcome


def _reason(device: Backend, limits: Limits) -> str | None:
    """Why no call is captured or replayed now."""
    if limits.max_graphs < 1:
        return "max_graphs is 0"
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if _torch.is_transformed() or _torch.is_watched():
        return "a transform or a dispatch mode is active"
    if device.in_turn():
        return "it is called inside another captured call"
    return "its stream is being captured by its caller" if device.is_capturing() else None


def _autocast(kind: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _placed(read: Read, device: Backend) -> Read:
    return device.staged(read).to(device.device, non_blocking=True) if isinstance(read, Tensor) else read


def _moved(tokens: Tokens, device: Backend) -> Tokens:
    """The tokens on the device, without the host waiting."""

    def place(t: Tensor) -> Tensor:
        return device.staged(t).to(device.device, non_blocking=True)

    types = tokens.token_type_ids
    bounds = place(tokens.bounds)
    return replace(
        tokens,
        input_ids=place(tokens.input_ids),
        position_ids=place(tokens.position_ids),
        token_type_ids=None if types is None else place(types),
        cu_seqlens=bounds[: tokens.cu_seqlens.shape[0]],
        bounds=bounds,
    )


@contextmanager
def _plain() -> Iterator[None]:
    """Outside inference mode, without gradients: what is made here, such as joined weights, later calls write to again."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def _capturable() -> Iterator[None]:
    """As `_plain`, and reading weights where they are: autocast's cached copies of them are gone after its context."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with _plain():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _replay(captured: Captured, call: _Call) -> Outcome:
    device = captured.backend
    if not device.begin():
        return call.eagerly("another thread captures")
    try:
        if captured.alive:
            device.check()
            call.fill(captured.inputs, device)
            captured.graph.replay(call.on(captured.inputs))
            return Outcome(call.finish(captured.graph.outputs[0][: call.own_rows()]), REPLAYED)
    finally:
        device.end()
    return call.eagerly("its graph was let go meanwhile")


def _capture(
    owned: Cache, place: Hashable, bucket: buckets.Bucket, due: Due, call: _Call, device: Backend, limits: Limits
) -> Outcome:
    if not device.begin_capture():
        return call.eagerly("another thread captures")
    reason, failed = CAPTURED, False
    try:
        try:
            with _capturable():
                inputs = Inputs(bucket, device.device, call.tokens.token_type_ids is not None)
                call.fill(inputs, device)
                rows = device.warm_up(call.on(inputs))[0][: call.own_rows()]
        except torch.OutOfMemoryError:
            owned.evict_all()
            owned.refuse(place, _NO_MEMORY)
            reason = _NO_MEMORY
        else:
            device.wait()
            device.check()  # an id outside its table is the caller's fault, not the capture's
            owned.make_room(limits)
            device.collect()
            made = _graph(call, inputs, rows, device, owned)
            if isinstance(made, Graph):
                rows = made.outputs[0][: call.own_rows()]
                captured = Captured(made, inputs, inputs.nbytes + made.nbytes, device)
                refusal = owned.keep(place, captured, due, limits)
                return Outcome(call.finish(rows), CAPTURED if refusal is None else f"eager: {refusal}")
            reason, failed = made.reason, True
            outcome = Outcome(call.finish(rows), f"eager: {reason}")
    finally:
        device.end()
    if not failed:  # there was no memory for rows rounded up
        return call.eagerly(reason)
    if reason == _NO_MEMORY:
        owned.refuse(place, reason)
    else:
        owned.fail(place, reason)
    return outcome


class _Failure(NamedTuple):
    reason: str


def _graph(call: _Call, inputs: Inputs, rows: Tensor, device: Backend, owned: Cache) -> Graph | _Failure:
    """The call captured and replayed, its replay's bits compared with those of its `rows`; or why not."""
    function = call.on(inputs)
    for more_memory in (True, False):
        try:
            with _capturable():
                graph = device.capture(function)
                graph.replay(function)
        except IndexError:  # of another thread's call: a launcher looks for what an earlier kernel reported
            raise
        except Exception as error:
            if not _is_out_of_memory(error):
                return _Failure(f"capturing it raised {type(error).__name__}: {error}")
            if not more_memory:
                return _Failure(_NO_MEMORY)
        else:
            difference = _difference(graph.outputs[0][: rows.shape[0]], rows)
            if difference is None:
                return graph
            graph.reset()
            return _Failure(difference)
        owned.evict_all()
        device.collect()
    raise AssertionError("the second try returns")


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or one that it came after, is the device's: ending a capture that broke off may raise another."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _difference(replayed: Tensor, rows: Tensor) -> str | None:
    """How a replay's bits differ from the eager call's; None where they do not. Waits for the device."""
    if replayed.shape != rows.shape or replayed.dtype != rows.dtype:
        return f"its replay gives {replayed.dtype} {tuple(replayed.shape)}, eagerly {rows.dtype} {tuple(rows.shape)}"
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    other = (replayed.contiguous().view(integer) != rows.contiguous().view(integer)).any(-1)
    count = int(other.sum())
    return f"its replay differs from the eager call in {count} of {rows.shape[0]} rows" if count else None
