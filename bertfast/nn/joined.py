"""What inference on a GPU multiplies by: every layer's weights as its products take them, and the copies that this needs.

The query, key and value weights of a layer become one matrix, and weights of another dtype than the products' (autocast) are cast.
These copies are written anew at the beginning of every call, by one launch or a few for all layers, because no look at a weight
on a GPU could say without waiting whether it was edited in place. Whatever needs no copy is a view of the parameter.
"""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertfast import _torch
from bertfast.nn.parts import LayerParts
from bertfast.nn.stamps import stamp

_copy = _torch.foreach("copy_")
_cache: "WeakKeyDictionary[nn.Module, dict[torch.dtype, Joined]]" = WeakKeyDictionary()
_lock = threading.Lock()


class Weights(NamedTuple):
    """One layer's, none of which requires a gradient: matrices transposed and in the products' dtype, as are the biases that
    products and GELU add; the others have their parameters' dtype."""

    qkv: Tensor  # [E, 3 H D]
    qkv_bias: Tensor | None  # [3 H D]
    dense: Tensor  # [H D, E]
    dense_bias: Tensor | None  # [E], added by the norm's kernel
    attention_norm: Tensor  # [E]
    attention_norm_bias: Tensor
    up: Tensor  # [E, F]
    up_bias: Tensor  # [F]
    down: Tensor  # [F, E]
    down_bias: Tensor | None  # [E], added by the norm's kernel
    norm: Tensor  # [E]
    norm_bias: Tensor

    def traits(self) -> tuple[Any, ...]:
        """What decides how a layer with these weights is launched; layers that are equal in it differ in addresses alone."""
        return tuple(None if w is None else (w.dtype, w.shape, w.stride(), is_aligned(w)) for w in self)


def is_aligned(tensor: Tensor) -> bool:
    """Whether it begins on 16 bytes; a fake tensor, which has no address, as if it did."""
    return type(tensor) is not Tensor or tensor.data_ptr() & 15 == 0


class Joined:
    """The weights of a stack of layers, and how to bring the copies among them up to date.

    Attributes:
        layers: the weights of each layer.
        dtype: of the products.
        alike: whether all layers are launched the same way (`Weights.traits`).
        tensors: all that is read by address: the weights, and what the copies are made of.
    """

    def __init__(self, parts: Sequence[LayerParts], parameters: list[Tensor | None], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._stamp = stamp(parameters)
        self._copies: list[Tensor] = []
        self._sources: list[Tensor] = []
        # Copies outlive this call, and the next one may write to them in another mode.
        with torch.inference_mode(False), torch.no_grad():
            self.layers = [self._weights(part) for part in parts]
        first = self.layers[0].traits() if self.layers else None
        self.alike = all(weights.traits() == first for weights in self.layers)
        self.tensors = [w for weights in self.layers for w in weights if w is not None] + self._sources

    @classmethod
    def of(cls, owner: nn.Module, parts: Sequence[LayerParts], dtype: torch.dtype) -> "Joined | None":
        """The weights of `parts`, made anew where a parameter was replaced or its address, shape, dtype or device changed.

        Args:
            owner: the module that the copies belong to by its identity; they go when it goes.
            parts: of each layer, with Linears and LayerNorms in their places (not looked at here).
            dtype: of the products.

        Returns:
            None where a bias is missing that the kernels cannot do without, or parameters lie on several devices.
        """
        parameters = [parameter for part in parts for parameter in part.parameters()]
        entry = _cache.get(owner, {}).get(dtype)
        if entry is not None and entry._stamp.holds(parameters):
            return entry
        if not _takes(parts, parameters):
            return None
        with _lock:
            entries = _cache.setdefault(owner, {})
            entry = entries.get(dtype)
            if entry is None or not entry._stamp.holds(parameters):
                # Those of other dtypes are as stale: they would keep the old storage alive for nothing.
                for other in [key for key, made in entries.items() if not made._stamp.holds(parameters)]:
                    del entries[other]
                entry = entries[dtype] = cls(parts, parameters, dtype)
            return entry

    def refresh(self) -> None:
        """Write every copy anew. Waits for nothing, so a CUDA graph can hold it."""
        if self._copies:
            _copy(self._copies, self._sources)

    def nbytes(self) -> int:
        """Bytes of the copies, in which the joined matrices of layers count once."""
        return sum(copy.nbytes for copy in self._copies)

    def _weights(self, part: LayerParts) -> Weights:
        attention, mlp = part
        projections = [linear._parameters for linear in attention[:3]]
        dense, attention_norm = attention.dense._parameters, attention.norm._parameters
        up, down, norm = mlp.up._parameters, mlp.down._parameters, mlp.norm._parameters
        biases = [projection["bias"] for projection in projections]
        return Weights(
            self._join([projection["weight"] for projection in projections]).t(),
            None if biases[0] is None else self._join(biases),
            self._cast(dense["weight"]).t(),
            _detached(dense["bias"]),
            attention_norm["weight"].detach(),
            attention_norm["bias"].detach(),
            self._cast(up["weight"]).t(),
            self._cast(up["bias"]),
            self._cast(down["weight"]).t(),
            _detached(down["bias"]),
            norm["weight"].detach(),
            norm["bias"].detach(),
        )

    def _join(self, sources: list[Tensor]) -> Tensor:
        """A copy of the sources one below the other."""
        rows = [source.shape[0] for source in sources]
        whole = sources[0].new_empty((sum(rows), *sources[0].shape[1:]), dtype=self.dtype)
        self._copies += whole.split(rows)
        self._sources += [source.detach() for source in sources]
        return whole

    def _cast(self, source: Tensor) -> Tensor:
        """The source itself where it has the products' dtype, else a copy."""
        return source.detach() if source.dtype == self.dtype else self._join([source])


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _takes(parts: Sequence[LayerParts], parameters: Sequence[Tensor | None]) -> bool:
    if len({p.device for p in parameters if p is not None}) > 1:
        return False
    for part in parts:
        biases = [linear._parameters["bias"] is None for linear in part.attention[:3]]
        if any(biases) != all(biases) or part.mlp.up._parameters["bias"] is None:
            return False
        if any(norm._parameters[name] is None for norm in part.norms for name in ("weight", "bias")):
            return False
    return True


def clear(module: nn.Module) -> None:
    """Forget the copies that belong to `module` or anything inside it."""
    with _lock:
        for child in module.modules():
            _cache.pop(child, None)


def memory(module: nn.Module) -> int:
    """Bytes that the copies hold now."""
    with _lock:
        return sum(entry.nbytes() for child in module.modules() for entry in _cache.get(child, {}).values())
