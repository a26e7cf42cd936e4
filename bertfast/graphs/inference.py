"""Inference from ids to the rows that are read, as one replay of a captured call.

A call is rounded up to a bucket of sizes (`buckets`). The first call of a bucket runs eagerly on its own tensors, since most sizes
come once; the second captures, and every later one copies its tokens into the buffers of the graph (`inputs`) and replays it.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bertfast.graphs import backend as backends
from bertfast.graphs import buckets, cache, capturing
from bertfast.graphs.backend import Backend, Graph
from bertfast.graphs.cache import Cache, Captured, Due, Limits
from bertfast.graphs.capturing import ANOTHER_CAPTURES, CAPTURED, LET_GO, NO_MEMORY, REPLAYED, Failure
from bertfast.graphs.inputs import Inputs
from bertfast.nn.tokens import Tokens

Function = Callable[[Tokens, Tensor | None], Tensor]
Read = Tensor | Literal["first"] | None
_DEFAULT = Limits()


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
        with capturing.plain():
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
        reason = "gradients are enabled" if torch.is_grad_enabled() else capturing.reason(device, limits)
        if reason is not None:
            return call.eagerly(reason)
        bucket = buckets.bucket(
            call.tokens.rows,
            call.tokens.bounds.shape[0] - 1,
            call.tokens.max_seqlen,
            call.read.shape[0] if isinstance(call.read, Tensor) else call.read,
            positions,
        )
        autocast = capturing.autocast(at.type)
        place = (device, bucket, tokens.token_type_ids is not None, key, device.settings(), autocast)
        owned = cache.of(owner)
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


def _replay(captured: Captured, call: _Call) -> Outcome:
    device = captured.backend
    if not device.begin():
        return call.eagerly(ANOTHER_CAPTURES)
    try:
        if captured.alive:
            device.check()
            call.fill(captured.inputs, device)
            captured.graph.replay(call.on(captured.inputs))
            return Outcome(call.finish(captured.graph.outputs[0][: call.own_rows()]), REPLAYED)
    finally:
        device.end()
    return call.eagerly(LET_GO)


def _capture(
    owned: Cache, place: Hashable, bucket: buckets.Bucket, due: Due, call: _Call, device: Backend, limits: Limits
) -> Outcome:
    if not device.begin_capture():
        return call.eagerly(ANOTHER_CAPTURES)
    reason, failed = CAPTURED, False
    try:
        try:
            with capturing.capturable():
                inputs = Inputs(bucket, device.device, call.tokens.token_type_ids is not None)
                call.fill(inputs, device)
                rows = device.warm_up(call.on(inputs))[0][: call.own_rows()]
        except torch.OutOfMemoryError:
            owned.evict_all()
            owned.refuse(place, NO_MEMORY)
            reason = NO_MEMORY
        else:
            device.wait()
            device.check()  # an id outside its table is the caller's fault, not the capture's
            owned.make_room(limits)
            device.collect()
            made = capturing.attempt(lambda: _graph(call, inputs, rows, device), owned, device)
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
    if reason == NO_MEMORY:
        owned.refuse(place, reason)
    else:
        owned.fail(place, reason)
    return outcome


def _graph(call: _Call, inputs: Inputs, rows: Tensor, device: Backend) -> Graph | Failure:
    """The call captured and replayed, its replay's bits compared with those of its `rows`; or how they differ."""
    function = call.on(inputs)
    graph = device.capture(function)
    graph.replay(function)
    difference = _difference(graph.outputs[0][: rows.shape[0]], rows)
    if difference is None:
        return graph
    graph.reset()
    return Failure(difference)


def _difference(replayed: Tensor, rows: Tensor) -> str | None:
    """How a replay's bits differ from the eager call's; None where they do not. Waits for the device."""
    if replayed.shape != rows.shape or replayed.dtype != rows.dtype:
        return f"its replay gives {replayed.dtype} {tuple(replayed.shape)}, eagerly {rows.dtype} {tuple(rows.shape)}"
    count = int((capturing.as_integers(replayed) != capturing.as_integers(rows)).any(-1).sum())
    return f"its replay differs from the eager call in {count} of {rows.shape[0]} rows" if count else None
