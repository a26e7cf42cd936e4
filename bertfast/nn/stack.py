"""Inference of a whole stack of layers by one C++ call (csrc/cpu/encoder.cpp), and the cache of what it holds.

The call keeps its own reordered copy of every weight. A cache entry belongs to the stack's first parameter by identity, so that
whoever holds the parameters alone, as a compiled graph does, finds it too. It is used only while every parameter it was made of is
unchanged: storage, layout, version, a few dozen elements each.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from bertfast import _ext, _torch
from bertfast.nn.parts import PARAMETERS, Kind
from bertfast.nn.plain import inference_parts, is_unwatched, needs_gradients
from bertfast.ops import packed_linear

_TYPES = (nn.Parameter, Tensor)
_LARGEST_HEAD = 256  # kLargestHead of csrc/cpu/attention.h
_FORMS = {"none": 1, "tanh": 2}  # GELU's `approximate` to the activation's number
_cache: Any = WeakTensorKeyDictionary()  # first parameter -> {what is computed: the C++ encoder}
_lock = threading.Lock()


def _plain_call(x: Tensor, parameters: list[Tensor | None]) -> bool:
    """Whether C++ may read these tensors behind torch's back: nothing records, transforms or differentiates this call."""
    if not is_unwatched() or needs_gradients(x, parameters):
        return False
    return not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") == x.dtype


def _takes(x: Tensor, parameters: list[Tensor | None], heads: int, int8: bool) -> bool:
    """Whether the kernels multiply these: types, dtypes and sizes. All of it holds as long as the parameters are current."""
    shapes = [None if p is None else p.shape for p in parameters]
    width, query, up = x.shape[-1], shapes[0], shapes[10]
    return (
        all(type(p) in _TYPES and p.dtype == x.dtype and p.device.type == "cpu" for p in parameters if p is not None)
        and shapes == shapes[:PARAMETERS] * (len(shapes) // PARAMETERS)
        and query == (width, width)
        and width <= heads * _LARGEST_HEAD
        and up is not None
        and all(packed_linear.available(x.dtype, size, int8=int8) for size in (width, up[0]))
    )


@dataclass(frozen=True)
class Native:
    """The C++ encoder, and the parameters that it was made of, all layers' one after another."""

    encoder: Any
    parameters: list[Tensor | None]

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, read: Tensor | None) -> Tensor:
        """x [T, E] with cu_seqlens [B + 1] int32 to [T, E], or to [R, E] of the rows `read`, [R] int64 rising.

        Raises:
            IndexError: where `read` names a row outside x.
            ValueError: where `read` does not rise, or cu_seqlens does not rise from 0 to T.
        """
        return self.encoder.forward(x, cu_seqlens, max_seqlen, read)

    def is_ready(self) -> bool:
        """Whether a call without gradients may go to the encoder: nothing records or transforms it, no parameter changed."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        if _torch.is_transformed() or _torch.is_watched():
            return False
        return self.encoder.is_current(self.parameters)


def find(layers: Iterable[nn.Module], x: Tensor, kind: Kind, *, int8: bool = False) -> Native | None:
    """What runs the layers on packed tokens in inference, made where there is none yet or its parameters changed.

    Args:
        layers: modules with a layer's parts inside, all of this kind.
        x: [T, E], float32 or bfloat16 on a CPU, of the parameters' dtype; `Native.forward` takes such tensors.
        int8: products of 8-bit integers, rounded with a range of its own for each token and each output.

    Returns:
        None where the layers must be called: where gradients or dropout are wanted, autocast changes the dtype, a
        module was replaced, or this processor has no kernels for dtype or sizes (`packed_linear.available`).
    """
    if not _may_take(x):
        return None
    parts = inference_parts(layers)
    if parts is None:
        return None
    parameters = [parameter for part in parts for parameter in part.parameters()]
    eps = tuple((part.attention.norm.eps, part.mlp.norm.eps) for part in parts)
    return of_parameters(parameters, eps, x, kind, int8=int8)


def of_parameters(
    parameters: list[Tensor | None], eps: tuple[tuple[float, float], ...], x: Tensor, kind: Kind, *, int8: bool = False
) -> Native | None:
    """`find` of layers without dropout of which there are the parameters alone.

    Args:
        parameters: of all layers one after another, as `LayerParts.parameters` orders them.
        eps: of each layer's two norms.
    """
    if not _may_take(x) or not parameters or parameters[0] is None or not _plain_call(x, parameters):
        return None
    key = (x.dtype, int8, kind, eps)
    entry = _cache.get(parameters[0], {}).get(key)
    if entry is None or not entry.is_current(parameters):
        _drop_stale(parameters)
        if not _takes(x, parameters, kind.heads, int8):
            return None
        entry = _build(key, parameters)
    return Native(entry, parameters)


def _may_take(x: Tensor) -> bool:
    return _ext.load() is not None and type(x) is Tensor and x.device.type == "cpu" and x.numel() > 0


def _drop_stale(parameters: list[Tensor | None]) -> None:
    """Entries of other dtypes go too when the parameters changed: they would keep the old storage alive for nothing."""
    with _lock:
        entries = _cache.get(parameters[0], {})
        for key in [k for k, e in entries.items() if not e.is_current(parameters)]:
            del entries[key]


def _build(key: tuple[Any, ...], parameters: list[Tensor | None]) -> Any:
    with _lock:
        entries = _cache.setdefault(parameters[0], {})
        if key not in entries or not entries[key].is_current(parameters):
            dtype, int8, (heads, scale, approximate), eps = key
            layers = [parameters[i : i + PARAMETERS] for i in range(0, len(parameters), PARAMETERS)]
            extension: Any = _ext.load()
            entries[key] = extension.Encoder(dtype, int8, heads, scale, _FORMS[approximate], layers, list(eps))
        return entries[key]


def clear(module: nn.Module) -> None:
    """Forget the copies made of the parameters of `module`."""
    with _lock:
        for parameter in module.parameters():
            _cache.pop(parameter, None)


def memory(module: nn.Module) -> int:
    """Bytes that the copies hold now."""
    with _lock:
        return sum(entry.nbytes() for p in module.parameters() for entry in _cache.get(p, {}).values())
