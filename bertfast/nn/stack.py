"""Inference of a whole stack of layers by one C++ call (csrc/cpu/encoder.cpp), and the cache of what it holds.

The call keeps its own reordered copy of every weight. As with `prepack`, a cache entry belongs to a module by identity
and is used only while every parameter it was made of is unchanged: storage, layout, version, a few dozen elements each.
"""

import threading
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertfast import _ext
from bertfast.ops import packed_linear

_FORMS = {"none": 1, "tanh": 2}  # GELU's `approximate` to the activation's number
_cache: "WeakKeyDictionary[nn.Module, dict[Any, Any]]" = WeakKeyDictionary()
_lock = threading.Lock()


def _parts(layer: nn.Module) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """The eight modules with parameters, in the order of csrc/cpu/encoder.h, and the dropouts. None where one was replaced.

    Read through `_modules`: nn.Module's own lookup is ten times slower, and a query of 16 tokens takes 3 ms.
    """
    children = layer._modules
    attention = children["attention"]._modules
    projections, projected = attention["self"]._modules, attention["output"]._modules
    up, output = children["intermediate"]._modules["dense"], children["output"]._modules
    linears = (projections["query"], projections["key"], projections["value"], projected["dense"], up, output["dense"])
    if any(type(linear) is not nn.Linear for linear in linears):
        return None
    norms = projected["LayerNorm"], output["LayerNorm"]
    parts = (*linears[:4], norms[0], *linears[4:], norms[1])
    return parts, (projections["dropout"], projected["dropout"], output["dropout"])


def _collect(layers: Iterable[nn.Module]) -> tuple[list[Tensor | None], list[tuple[float, float]]] | None:
    """Parameters of all layers, weight and bias in turn, and the norms' eps; None where this is no plain inference."""
    parameters: list[Tensor | None] = []
    eps = []
    for layer in layers:
        found = _parts(layer)
        if found is None or layer.training or any(d.training and d.p > 0.0 for d in found[1]):
            return None
        for part in found[0]:
            own = part._parameters
            parameters += own["weight"], own["bias"]
        eps.append((found[0][4].eps, found[0][7].eps))
    return parameters, eps


def _takes(x: Tensor, parameters: list[Tensor | None], int8: bool) -> bool:
    """Whether the kernels multiply these: dtype and sizes, and nothing needs a gradient."""
    weights = [p for p in parameters if p is not None]
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in weights)):
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != x.dtype:
        return False
    width, inner = x.shape[-1], weights[10].shape[0]
    return (
        type(x) is Tensor
        and all(p.dtype == x.dtype and p.device.type == "cpu" for p in weights)
        and weights[0].shape == (width, width)
        and all(packed_linear.available(x.dtype, size, int8=int8) for size in (width, inner))
    )


def run(
    owner: nn.Module,
    layers: Iterable[nn.Module],
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    heads: int,
    scale: float,
    approximate: str,
    int8: bool = False,
) -> Tensor | None:
    """The layers on packed tokens in inference, or None where they need the way layer by layer.

    Args:
        owner: the module that the copies of weights belong to; they go when it goes.
        layers: modules with BERT's names inside, all of `heads`, `scale` and `approximate` ("none" or "tanh").
        x: [T, E], float32 or bfloat16 on a CPU, of the parameters' dtype.
        cu_seqlens, max_seqlen: [B + 1] int32, and a bound on the longest.
        int8: products of 8-bit integers, rounded anew for each token and each output.

    Returns:
        [T, E]; or None: gradients or dropout are wanted, autocast changes the dtype, a module was replaced, or this processor
        has no kernels for dtype or sizes (`packed_linear.available`).
    """
    if _ext.load() is None or x.device.type != "cpu":
        return None
    found = _collect(layers)
    if found is None or not _takes(x, found[0], int8):
        return None
    key = (x.dtype, int8, heads, scale, approximate, tuple(found[1]))
    return _encoder(owner, key, found[0]).forward(x, cu_seqlens, max_seqlen)


def _encoder(owner: nn.Module, key: tuple[Any, ...], parameters: list[Tensor | None]) -> Any:
    entries = _cache.get(owner)
    entry = None if entries is None else entries.get(key)
    if entry is not None and entry.is_current(parameters):
        return entry
    with _lock:
        entries = _cache.setdefault(owner, {})
        # Entries under other keys go too when the parameters changed: they would keep the old storage alive for nothing.
        for other in [k for k, e in entries.items() if not e.is_current(parameters)]:
            del entries[other]
        if key not in entries:
            dtype, int8, heads, scale, approximate, eps = key
            layers = [parameters[i : i + 16] for i in range(0, len(parameters), 16)]
            extension: Any = _ext.load()
            entries[key] = extension.Encoder(dtype, int8, heads, scale, _FORMS[approximate], layers, list(eps))
        return entries[key]


def clear(module: nn.Module) -> None:
    """Forget the copies that belong to `module` or anything inside it."""
    with _lock:
        for child in module.modules():
            _cache.pop(child, None)


def memory(module: nn.Module) -> int:
    """Bytes that the copies hold now."""
    with _lock:
        return sum(entry.nbytes() for child in module.modules() for entry in _cache.get(child, {}).values())
