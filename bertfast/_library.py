"""The one torch library object and the verbs that every op is built from: define, reference, fake, differentiate, and
implement and candidate for its kernels; and opaque, for a call that a compiled graph is to hold as it is.

Each op is defined twice: `bertfast::NAME`, whose owner the dispatcher chooses by device, and `bertfast_reference::NAME`,
which is always the eager reference. The second is what C++ kernels fall back to for a dtype they do not take, and what
tests compare against; it is no switch that user code turns.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

NAMESPACE = "bertfast"
REFERENCE_NAMESPACE = "bertfast_reference"

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_REFERENCE_LIBRARY = torch.library.Library(REFERENCE_NAMESPACE, "FRAGMENT")
_OVERLOADS: dict[str, Callable[..., Any]] = {}
_OWNERS: dict[tuple[str, str], str] = {}
_CANDIDATES: dict[str, tuple[str, ...]] = {}
_FUSED: set[str] = set()  # paths of candidates that multiply by themselves
_ABSENCES: dict[
    str, Callable[[], str | None]
] = {}  # by candidate: why what it is made of is not here, None where it is
_REFERENCES: dict[str, Callable[..., Any]] = {}
_RESOLVED: dict[tuple[str, str], Callable[..., Any]] = {}  # what runs now, by op and dispatch key
_RUNNING: dict[str, Callable[..., Any] | None] = {}  # what `fused` found
_dispatched = 0

# Every op is a pure function of its tensors, or its schema says what it writes to, so opcheck, functionalisation and CUDA graphs
# may treat it as one.
_TAGS = (torch.Tag.pt2_compliant_tag,)


def define(schema: str) -> None:
    """Define `bertfast::NAME` and its reference twin from one schema string such as `"f(Tensor x) -> Tensor"`."""
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=_TAGS)
    _REFERENCE_LIBRARY.define(schema, tags=_TAGS)
    _OVERLOADS[name] = getattr(getattr(torch.ops, NAMESPACE), name).default


def reference(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated eager function as what `name` means, on every device that nobody claimed."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        _REFERENCE_LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        _REFERENCES[name] = function
        return function

    return register


def meaning(name: str) -> Callable[..., Any]:
    """The eager function that `reference` registered for `name`."""
    return _REFERENCES[name]


def implement(name: str, key: str, path: str) -> None:
    """Make the function at `path`, "module:function", the owner of `bertfast::name` for one dispatch key, such as "CUDA".

    The module is imported at the first call: kernels are compiled by Triton, which `import bertfast` does not load. On a GPU
    the reference runs instead where the owner is not verified; that is decided at the first call too (`triton.verified`).
    """
    place = name, key
    _OWNERS[place] = path

    def call(*args: Any) -> Any:
        return (_RESOLVED.get(place) or resolved(name, key))(*args)

    _LIBRARY.impl(name, call, key)


def resolved(name: str, key: str) -> Callable[..., Any]:
    """What the dispatcher runs for `bertfast::name` at one dispatch key, as a function: no dispatcher, no autograd around it.

    For "CUDA" that is the launcher, or the reference where the kernels are not verified. Decided at the first call and kept
    until `forget`, so ask for it on every use.
    """
    function = _RESOLVED.get((name, key))
    if function is None:
        function = _RESOLVED[name, key] = _resolve(name, key)
    return function


def candidate(name: str, path: str, *, fused: bool = False, absence: Callable[[], str | None] | None = None) -> None:
    """Name the function at `path`, "module:function", as one that may take the place of CUDA's owner of `bertfast::name`.

    An op may have several. Which of them runs, if any, is decided by committed results (`triton.verified`); elsewhere the owner
    stays, and a candidate runs where a test or a measurement asks for it.

    fused: whether it does all of an op with a product in kernels of its own, where the owner is torch's product and a pass.
    absence: says why what the candidate needs is not here, such as a library that was not built; None where it is. Without it the
        function at `path` does what the owner does.
    """
    _CANDIDATES[name] = (*_CANDIDATES.get(name, ()), path)
    if absence is not None:
        _ABSENCES[candidate_of(path)] = absence
    if fused:
        _FUSED.add(path)


def fused(name: str) -> Callable[..., Any] | None:
    """What runs `bertfast::name` on a GPU now, where that is a candidate with a product of its own; None elsewhere."""
    if name in _RUNNING:  # a layer asks ten times
        return _RUNNING[name]
    function = resolved(name, "CUDA")
    _RUNNING[name] = running = function if _is_fused(function) else None
    return running


@cache
def _is_fused(function: Callable[..., Any]) -> bool:
    return f"{function.__module__}:{function.__qualname__}" in _FUSED


@contextmanager
def dispatched() -> Iterator[None]:
    """What `resolved` gives for CUDA is the op through the dispatcher, for tensors of a CPU: a GPU's path there.

    It holds for the whole process, because backward runs on threads of its own.
    """
    global _dispatched
    _dispatched += 1
    forget("CUDA")
    try:
        yield
    finally:
        _dispatched -= 1
        forget("CUDA")


def _resolve(name: str, key: str) -> Callable[..., Any]:
    if key != "CUDA":
        return owner(name, key)
    if _dispatched:
        overload = op(name)
        return lambda *args: overload(*args)
    from bertfast.triton import verified

    return verified.resolve(name)


def forget(key: str) -> None:
    """Decide again, at the next call of each op, what runs for one dispatch key."""
    for place in [place for place in _RESOLVED if place[1] == key]:
        _RESOLVED.pop(place, None)
    _RUNNING.clear()


def owner(name: str, key: str) -> Callable[..., Any]:
    """The function that `implement` made the owner of `name` for `key`, imported."""
    return _imported(_OWNERS[name, key])


def candidate_of(path: str) -> str:
    """The name of the candidate with a function at `path`: its module below bertfast/ops, such as "linear_gelu.cheap_erf"."""
    return ".".join(path.split(":")[0].split(".")[2:])


def absence_of(candidate: str) -> str | None:
    """Why a candidate, such as "linear_gelu.cutlass", cannot run in this installation; None where it can."""
    absence = _ABSENCES.get(candidate)
    return None if absence is None else absence()


def candidate_function(name: str, candidate: str) -> Callable[..., Any]:
    """The function that `candidate`, such as "linear_gelu.cheap_erf", has for `bertfast::name`, imported.

    Raises:
        KeyError: where it has none.
    """
    for path in _CANDIDATES.get(name, ()):
        if candidate_of(path) == candidate:
            return _imported(path)
    raise KeyError(f"{candidate} is no candidate for {name}")


def _imported(path: str) -> Callable[..., Any]:
    module, function = path.split(":")
    return getattr(importlib.import_module(module), function)


def owners(key: str) -> dict[str, str]:
    """Op to "module:function", for one dispatch key."""
    return {name: path for (name, owner_key), path in _OWNERS.items() if owner_key == key}


def candidates() -> dict[str, tuple[str, ...]]:
    """Op to "module:function" of each of its candidates on CUDA, where it has any."""
    return dict(_CANDIDATES)


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the shape and dtype rule of `name`, used by compile and export."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(f"{NAMESPACE}::{name}", function, lib=_LIBRARY)
        torch.library.register_fake(f"{REFERENCE_NAMESPACE}::{name}", function, lib=_REFERENCE_LIBRARY)
        return function

    return register


def opaque(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define `bertfast::NAME` for compiled graphs alone: one node to the compiler, and `function` where the graph runs.

    It is no op in the sense of the others (`names`): nothing outside a graph calls it, so it has no twin, owner or gradient.

    Args:
        schema: such as `"f(Tensor x) -> Tensor"`, which says all that the function reads.
        function: what runs, outside the compiler, on tensors alone. Nothing that it returns may share memory with an argument.
        fake: the shapes and dtypes of what it returns.

    Returns:
        What a traced function calls.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Register the backward formula of `bertfast::name`; outputs that are statistics are marked in `setup_context`."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


class _NotTwice(torch.autograd.Function):
    """Passes gradients through; differentiating what comes out is an error."""

    @staticmethod
    def forward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError(
            "bertfast's ops have no second derivative: bertfast.restore(model) first, or use torch's own functions"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a second derivative through `backward` an error. Without it torch would warn and leave terms out.

    torch's own decorator of this name lets the error pass where the incoming gradient is a constant, as after `sum()`.
    """

    def once(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if not torch.is_grad_enabled():  # the usual case: no create_graph
            return backward(ctx, *gradients)
        with torch.no_grad():
            found = backward(ctx, *gradients)
        given = [gradient.requires_grad_() for gradient in found if gradient is not None]
        marked = iter(_NotTwice.apply(*given) if given else ())
        return tuple(None if gradient is None else next(marked) for gradient in found)

    return once


def op(name: str) -> Callable[..., Any]:
    """The `.default` overload of `bertfast::name`, resolved once: that saves a microsecond on every call."""
    return _OVERLOADS[name]


def names() -> tuple[str, ...]:
    """Every op defined so far, in order of definition."""
    return tuple(_OVERLOADS)
