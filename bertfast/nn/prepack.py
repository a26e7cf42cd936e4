"""Inference products from prepacked weights, and the cache that holds them.

A cache entry belongs to a module by identity (a weak dictionary, never an attribute), so deepcopy, pickle and
state_dict know nothing of it and it goes when the module goes. An entry is used only while every weight and bias it was
made of is unchanged: same storage and layout, same version counter, same few dozen elements. The last guards against
writes through `.data`, which do not count as a version; one that touches none of the sampled elements (a single row,
say) needs `clear`, or `bertfast.optimize` again.
"""

import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from bertfast.nn import joined, stack
from bertfast.ops import onednn, packed_linear, products

_SAMPLES = 32
_DTYPES = (torch.float32, torch.bfloat16)
_cache: "WeakKeyDictionary[nn.Module | Owner, dict[Any, _Entry]]" = WeakKeyDictionary()
_owners: Any = WeakTensorKeyDictionary()  # first parameter of all layers -> the owners of their products' copies
_lock = threading.Lock()


class Owner:
    """Whose copies they are, where whoever multiplies holds parameters alone, as a compiled graph does."""

    __slots__ = ("__weakref__",)


def owners_of(first: Tensor, count: int) -> list[Owner]:
    """As many owners as there are products in the layers whose first parameter this is; they go when it goes."""
    owners = _owners.get(first)
    if owners is None or len(owners) != count:
        with _lock:
            owners = _owners[first] = [Owner() for _ in range(count)]
    return owners


class _Entry:
    """Prepacked weights of one or several Linears, and what they were made from."""

    __slots__ = ("bias", "packed", "samples", "stamp", "views")

    def __init__(self, linears: tuple[nn.Linear, ...], dtype: torch.dtype, int8: bool):
        tensors = _parameters(linears)
        self.stamp = _stamp(tensors)
        # A strided view of each parameter reads the parameter's own memory: one comparison notices an edit in place.
        # They also keep its storage, so no new parameter can have an old one's address while the entry lives.
        self.views = [_sample(t.detach()) for t in tensors]
        self.samples = torch.cat(self.views)
        weight, self.bias = _concatenated(linears, dtype)
        self.packed: Tensor | packed_linear.PackedWeight
        if packed_linear.available(dtype, weight.shape[1], int8=int8):
            self.packed = packed_linear.pack(weight, dtype, int8=int8)
        else:
            self.packed = onednn.prepack(weight)

    def is_current(self, tensors: list[Tensor]) -> bool:
        return self.stamp == _stamp(tensors) and torch.equal(torch.cat(self.views), self.samples)

    def nbytes(self) -> int:
        # oneDNN's opaque tensors do not tell their bytes.
        packed = (
            self.packed.numel() * self.packed.element_size() if isinstance(self.packed, Tensor) else self.packed.nbytes
        )
        return packed + (0 if self.bias is None else self.bias.nbytes)

    def product(self, x: Tensor, activation: str) -> Tensor:
        if isinstance(self.packed, Tensor):
            return onednn.linear_packed(x, self.packed, self.bias, activation)
        return packed_linear.linear(x, self.packed, self.bias, activation)


def _concatenated(linears: tuple[nn.Linear, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weights and biases one after another. Always copies, so that a cached bias is nobody's parameter."""
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if len(biases) not in (0, len(linears)):
        raise ValueError("fused_linear: either all of the Linears have a bias or none has one")
    weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
    return weight, torch.cat(biases).to(dtype) if biases else None


def _parameters(linears: tuple[nn.Linear, ...]) -> list[Tensor]:
    return [t for linear in linears for t in (linear.weight, linear.bias) if t is not None]


def _sample(t: Tensor) -> Tensor:
    """A view of about 32 elements of t, however it is laid out."""
    if t.is_contiguous():
        # An odd step walks through the columns; an even one would stay in column 0 of most weights.
        return t.view(-1)[:: max(1, t.numel() // _SAMPLES) | 1]
    return t.diagonal()[:: max(1, min(t.shape) // _SAMPLES)] if t.dim() == 2 else t


def _stamp(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    # Tensors made under inference mode have no version counter; the samples still watch them.
    return [(t.data_ptr(), -1 if t.is_inference() else t._version, t.shape, t.stride()) for t in tensors]


def can_fuse(linears: tuple[nn.Linear, ...], dtype: torch.dtype | None = None, int8: bool = False) -> bool:
    """Whether `fused_linear` can prepack these for x of `dtype`, their own by default: weights are fp32 or bf16 on a CPU,
    and there is a product of ours or an entry point of oneDNN."""
    return all(
        linear.weight.device.type == "cpu"
        and linear.weight.dim() == 2
        and linear.weight.dtype in _DTYPES
        and (
            packed_linear.available(dtype or linear.weight.dtype, linear.weight.shape[1], int8=int8)
            or onednn.can_prepack(linear.weight)
        )
        for linear in linears
    )


def fused_linear(x: Tensor, linears: tuple[nn.Linear, ...], activation: str = "none", *, int8: bool = False) -> Tensor:
    """activation(x W^T + b) with the Linears' rows one after another, from weights reordered once. No gradient.

    Args:
        x: [T, K]; weights are converted to its dtype (autocast) in the cached copy.
        linears: Linears of K inputs, all with or all without a bias; or what has a weight, a bias and, as `owner`, an `Owner`.
        activation: "none", "gelu" (exact erf) or "gelu_tanh".
        int8: multiply 8-bit integers where this processor can (`packed_linear.available`).

    Returns:
        [T, sum of N] in x's dtype. The copy takes as much memory as the weights in that dtype; see `memory`. What neither
        our products nor oneDNN's take (another device or dtype) is computed from the plain weights, and nothing is kept.

    Raises:
        ValueError: where only some of the Linears have a bias, or on another activation.
    """
    if activation not in onednn.ACTIVATIONS:
        raise ValueError(f"fused_linear: activation must be one of {onednn.ACTIVATIONS}, got {activation!r}")
    entry = _entry(linears, x.dtype, int8) if x.dtype in _DTYPES else None
    if entry is None:
        y = products.linear(x, *_concatenated(linears, x.dtype))
        return y if activation == "none" else F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
    return entry.product(x, activation)


def _entry(linears: tuple[nn.Linear, ...], dtype: torch.dtype, int8: bool = False) -> _Entry | None:
    owner: Any = linears[0]
    if not isinstance(owner, nn.Module):
        owner = owner.owner
    key = (dtype, len(linears), int8)
    entries = _cache.get(owner)
    entry = None if entries is None else entries.get(key)
    tensors = _parameters(linears)
    if entry is not None and entry.is_current(tensors):
        return entry
    with _lock:
        entries = _cache.setdefault(owner, {})
        # Entries of other dtypes go too when the parameters changed: they would keep the old storage alive for nothing.
        for other in [k for k, e in entries.items() if k[1] == len(linears) and not e.is_current(tensors)]:
            del entries[other]
        if key not in entries and can_fuse(linears, dtype, int8):
            entries[key] = _Entry(linears, dtype, int8)
        return entries.get(key)


def clear(module: nn.Module) -> None:
    """Forget the prepacked weights of every Linear inside `module`."""
    stack.clear(module)
    joined.clear(module)
    with _lock:
        for child in module.modules():
            _cache.pop(child, None)
        for parameter in module.parameters():
            _owners.pop(parameter, None)


def memory(module: nn.Module) -> int:
    """Bytes that copies of weights inside `module` hold now: reordered ones on a CPU, joined ones on a GPU."""
    with _lock:
        owners = [*module.modules(), *(owner for p in module.parameters() for owner in _owners.get(p, ()))]
        own = sum(entry.nbytes() for owner in owners for entry in _cache.get(owner, {}).values())
    return own + stack.memory(module) + joined.memory(module)
