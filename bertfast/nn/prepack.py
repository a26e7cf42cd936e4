"""Inference products from prepacked weights, and the cache that holds them.

A cache entry belongs to a module by identity (a weak dictionary, never an attribute), so deepcopy, pickle and state_dict know
nothing of it and it goes when the module goes. An entry is used only while every weight and bias it was made of is unchanged:
same storage, same version counter, same few dozen elements. The last guards against writes through `.data`, which
do not count as a version.
"""

import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertfast.ops import onednn

_SAMPLES = 32
_cache: "WeakKeyDictionary[nn.Module, dict[Any, _Entry]]" = WeakKeyDictionary()
_lock = threading.Lock()


class _Entry:
    """Prepacked weights of one or several Linears, and what they were made from."""

    __slots__ = ("bias", "packed", "samples", "stamp", "views", "weight")

    def __init__(self, linears: tuple[nn.Linear, ...], dtype: torch.dtype):
        tensors = _parameters(linears)
        self.stamp = _stamp(tensors)
        # A strided view of each parameter reads the parameter's own memory: one comparison notices an edit in place.
        self.views = [t.detach().reshape(-1)[:: max(1, t.numel() // _SAMPLES)] for t in tensors]
        self.samples = torch.cat(self.views).clone()
        weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
        biases = [linear.bias for linear in linears]
        self.bias = None if biases[0] is None else torch.cat([b.detach() for b in biases]).to(dtype)
        self.packed = onednn.prepack(weight)

    def is_current(self, tensors: list[Tensor]) -> bool:
        return self.stamp == _stamp(tensors) and torch.equal(torch.cat(self.views), self.samples)

    def nbytes(self) -> int:
        numel = self.packed.numel() + (0 if self.bias is None else self.bias.numel())
        return numel * self.packed.element_size()


def _parameters(linears: tuple[nn.Linear, ...]) -> list[Tensor]:
    return [t for linear in linears for t in (linear.weight, linear.bias) if t is not None]


def _stamp(tensors: list[Tensor]) -> list[tuple[int, int]]:
    # Tensors made under inference mode have no version counter; the samples still watch them.
    return [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors]


def can_fuse(linears: tuple[nn.Linear, ...]) -> bool:
    """Whether `fused_linear` takes these Linears: oneDNN has the entry points and the weights are dense fp32 or bf16 on a CPU."""
    return all(onednn.can_prepack(linear.weight) for linear in linears)


def fused_linear(x: Tensor, linears: tuple[nn.Linear, ...], activation: str = "none") -> Tensor:
    """activation(x W^T + b) with the Linears' rows one after another, from weights reordered once. No gradient.

    Args:
        x: [T, K] float32 or bfloat16; weights are converted to its dtype in the cached copy (autocast).
        linears: Linears of K inputs, all with or all without a bias.
        activation: "none", "gelu" (exact erf) or "gelu_tanh".

    Returns:
        [T, sum of N] in x's dtype. The copy takes as much memory as the weights; see `memory`.
    """
    entry = _entry(linears, x.dtype)
    return onednn.linear_packed(x, entry.packed, entry.bias, activation)


def _entry(linears: tuple[nn.Linear, ...], dtype: torch.dtype) -> _Entry:
    owner = linears[0]
    key = (dtype, len(linears))
    entries = _cache.get(owner)
    entry = None if entries is None else entries.get(key)
    if entry is not None and entry.is_current(_parameters(linears)):
        return entry
    with _lock:
        entries = _cache.setdefault(owner, {})
        entry = entries.get(key)
        if entry is None or not entry.is_current(_parameters(linears)):
            entry = entries[key] = _Entry(linears, dtype)
        return entry


def clear(module: nn.Module) -> None:
    """Forget the prepacked weights of every Linear inside `module`."""
    with _lock:
        for child in module.modules():
            _cache.pop(child, None)


def memory(module: nn.Module) -> int:
    """Bytes that prepacked copies of weights inside `module` hold now."""
    return sum(entry.nbytes() for child in module.modules() for entry in _cache.get(child, {}).values())
