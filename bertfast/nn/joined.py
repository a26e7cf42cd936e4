"""What a GPU multiplies by: every layer's weights as its products take them, and the copies that this needs.

The query, key and value weights of a layer become one matrix, and weights of another dtype than the products' (autocast) are cast.
These copies are kept for inference (`Joined`), made for each call in training (`fresh`), or held by a trainer (`held`). But for the
last they are written again at the beginning of every call, by one launch or a few for all layers, because no look at a weight on a
GPU could say without waiting whether it was edited in place. What needs no copy is the parameter itself, and only calls hold it: a
model that is moved or dropped takes its memory along, all but the copies.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertfast import _torch
from bertfast.nn.parts import PARAMETERS, LayerParts
from bertfast.ops.stamps import stamp

_copy = _torch.foreach("copy_")
_cache: "WeakKeyDictionary[nn.Module, dict[torch.dtype, _Kept]]" = WeakKeyDictionary()
_lock = threading.Lock()


class Weights(NamedTuple):
    """One layer's: matrices transposed and in the products' dtype, as are the biases that products and GELU add; the others
    are the parameters as they are."""

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
    return type(tensor) not in (Tensor, nn.Parameter) or tensor.data_ptr() & 15 == 0


class Copies(NamedTuple):
    """Of one layer's weights those that are copies, in the products' dtype, each as a Linear has it. None for a parameter that is
    multiplied by as it is, or is absent."""

    qkv: Tensor  # [3 H D, E]
    qkv_bias: Tensor | None
    dense: Tensor | None
    up: Tensor | None
    up_bias: Tensor | None
    down: Tensor | None


class _Pieces:
    """Memory for the copies of a stack's weights, and which parameter goes where."""

    def __init__(self, parameters: Sequence[Any], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.targets: list[Tensor] = []  # pieces of the copies, each of which one parameter is written to
        self.sources: list[int] = []  # its number
        with torch.inference_mode(False), torch.no_grad():  # the next call may write to them in another mode
            self.layers = [self._layer(parameters, first) for first in range(0, len(parameters), PARAMETERS)]

    def _layer(self, parameters: Sequence[Any], first: int) -> Copies:
        def join(*numbers: int) -> Tensor:
            """One copy of these parameters below each other."""
            sources = [parameters[first + number] for number in numbers]
            rows = [source.shape[0] for source in sources]
            whole = sources[0].new_empty((sum(rows), *sources[0].shape[1:]), dtype=self.dtype)
            self.targets += torch.split_with_sizes(whole, rows)
            self.sources += [first + number for number in numbers]
            return whole

        def cast(number: int) -> Tensor | None:
            return None if parameters[first + number].dtype == self.dtype else join(number)

        return Copies(
            join(0, 2, 4),
            None if parameters[first + 1] is None else join(1, 3, 5),
            cast(6),
            cast(10),
            cast(11),
            cast(12),
        )

    def write(self, parameters: Sequence[Any]) -> None:
        """Copy every parameter: one launch, or one for each pair of dtypes. Waits for nothing."""
        if self.targets:
            _copy(self.targets, [parameters[number] for number in self.sources])


class _Kept(_Pieces):
    """The copies of a stack's weights. They outlive calls, and hold no parameter."""

    def __init__(self, parameters: Sequence[Any], dtype: torch.dtype) -> None:
        super().__init__(parameters, dtype)
        self.stamp = stamp(parameters)
        self._streams: set[int] = set()
        self._made = _now(self.targets)
        weights = self.weights(parameters)
        self.alike = len({layer.traits() for layer in weights}) < 2

    def weights(self, parameters: Sequence[Any]) -> list[Weights]:
        """Those of each layer, of parameters for which the stamp holds."""
        made = []
        for number, own in enumerate(self.layers):
            _, _, _, _, _, _, dense, *others = parameters[number * PARAMETERS : (number + 1) * PARAMETERS]
            dense_bias, first, first_bias, up, up_bias, down, down_bias, norm, norm_bias = others
            made.append(
                Weights(
                    own.qkv.t(),
                    own.qkv_bias,
                    (dense if own.dense is None else own.dense).t(),
                    dense_bias,
                    first,
                    first_bias,
                    (up if own.up is None else own.up).t(),
                    up_bias if own.up_bias is None else own.up_bias,
                    (down if own.down is None else own.down).t(),
                    down_bias,
                    norm,
                    norm_bias,
                )
            )
        return made

    def refresh(self, parameters: Sequence[Any]) -> None:
        if not self.targets:
            return
        device = self.targets[0].device
        if device.type == "cuda" and torch.cuda.is_initialized():
            self._keep_for_stream(device)
        self.write(parameters)

    def _keep_for_stream(self, device: torch.device) -> None:
        """On a stream that comes for the first time: what was done with the memory before it was theirs is over then, and it is not
        given to others while this stream may still read it."""
        handle = _torch.current_stream(device.index)
        if (
            handle in self._streams or torch.cuda.is_current_stream_capturing()
        ):  # nothing runs on a stream that is captured
            return
        self._streams.add(handle)
        stream = torch.cuda.current_stream(device)
        if self._made is not None:
            stream.wait_event(self._made)
        for target in self.targets:
            target.record_stream(stream)

    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)


def _now(tensors: Sequence[Tensor]) -> Any:
    """An event after what was launched until now on these tensors' GPU; None on a CPU, and in a capture, where events are nodes."""
    if not tensors or tensors[0].device.type != "cuda" or not torch.cuda.is_initialized():
        return None
    with torch.cuda.device(tensors[0].device):
        return None if torch.cuda.is_current_stream_capturing() else torch.cuda.current_stream().record_event()


class Joined:
    """The weights of a stack of layers for one call, and how to bring the copies among them up to date.

    Attributes:
        layers: the weights of each layer.
        dtype: of the products.
        alike: whether all layers are launched the same way (`Weights.traits`).
    """

    def __init__(self, copies: _Kept, parameters: list[Tensor | None]) -> None:
        self._copies, self._parameters = copies, parameters
        self.dtype, self.alike = copies.dtype, copies.alike
        self.layers = copies.weights(parameters)

    @classmethod
    def of(cls, owner: nn.Module, parts: Sequence[LayerParts], dtype: torch.dtype) -> "Joined | None":
        """The weights of `parts`. Copies are made again where a parameter was replaced or moved: address, form, dtype, device.

        Args:
            owner: the module that the copies belong to by its identity; they go when it goes.
            parts: of each layer, with Linears and LayerNorms in their places (not looked at here).
            dtype: of the products.

        Returns:
            None where a bias is missing that the kernels cannot do without, or parameters lie on several devices.
        """
        parameters = [parameter for part in parts for parameter in part.parameters()]
        copies = _cache.get(owner, {}).get(dtype)
        if copies is None or not copies.stamp.holds(parameters):
            if not takes(parts, parameters):
                return None
            copies = _made(owner, parameters, dtype)
        return cls(copies, parameters)

    @property
    def parameters(self) -> list[Tensor | None]:
        """Of all layers, as `LayerParts.parameters` orders them."""
        return self._parameters

    @property
    def example(self) -> Tensor:
        """A weight, of the dtype and on the device of all."""
        return self._parameters[0]  # type: ignore[return-value]

    def holds(self) -> bool:
        """Whether every parameter lies where it lay."""
        return self._copies.stamp.holds(self._parameters)

    @property
    def tensors(self) -> list[Tensor | None]:
        """All that is read by address: parameters and copies. What was captured with them is good while they lie there."""
        return [*self._parameters, *self._copies.targets]

    def refresh(self) -> None:
        """Write every copy again, without gradients. Waits for nothing, so a CUDA graph can hold it."""
        self._copies.refresh(self._parameters)


def _made(owner: nn.Module, parameters: list[Tensor | None], dtype: torch.dtype) -> _Kept:
    with _lock:
        entries = _cache.setdefault(owner, {})
        copies = entries.get(dtype)
        if copies is None or not copies.stamp.holds(parameters):
            # Those of other dtypes are as stale.
            for other in [key for key, old in entries.items() if not old.stamp.holds(parameters)]:
                del entries[other]
            copies = entries[dtype] = _Kept(parameters, dtype)
        return copies


def takes(parts: Sequence[LayerParts], parameters: Sequence[Tensor | None]) -> bool:
    """Whether the parameters lie on one device, and no bias is missing that the kernels cannot do without."""
    if len({p.device for p in parameters if p is not None}) > 1:
        return False
    for part in parts:
        biases = [linear._parameters["bias"] is None for linear in part.attention[:3]]
        if any(biases) != all(biases) or part.mlp.up._parameters["bias"] is None:
            return False
        if any(norm._parameters[name] is None for norm in part.norms for name in ("weight", "bias")):
            return False
    return True


def fresh(parameters: Sequence[Any], dtype: torch.dtype) -> list[Copies]:
    """The copies that a stack's products need in memory of this call's own, written by one launch or a few.

    parameters: of all layers, 16 each, as `LayerParts.parameters` orders them; see `takes`. Call it without gradients.
    """
    pieces = _Pieces(parameters, dtype)
    pieces.write(parameters)
    return pieces.layers


class Held:
    """Copies of a model's weights that calls in training read as they are, until whoever holds them writes them again."""

    def __init__(self) -> None:
        self._copies: dict[nn.Module, tuple[_Kept, list[Any]]] = {}
        self._others: dict[nn.Module, tuple[Sequence[Copies], Any]] = {}

    @torch.no_grad()
    def refresh(self) -> None:
        """Write every copy again, by one launch or a few for each stack: after weights changed. Waits for nothing."""
        for copies, parameters in self._copies.values():
            copies.write(parameters)
        self.refresh_others()

    def refresh_others(self) -> None:
        """`refresh` of what `also` gave alone: for who has written the copies already."""
        for _, other in self._others.values():
            other.refresh()

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter and the copy, or piece of one, that it is written to: of all stacks that were called."""
        for copies, parameters in self._copies.values():
            for number, target in zip(copies.sources, copies.targets, strict=True):
                yield parameters[number], target

    def copies(self, owner: nn.Module, parameters: list[Any], dtype: torch.dtype) -> list[Copies]:
        """Those of a stack, made and written at its first call, and again where a parameter was replaced or moved."""
        entry = self._copies.get(owner)
        if entry is None or entry[0].dtype is not dtype or not entry[0].stamp.holds(parameters):
            copies = _Kept(parameters, dtype)
            copies.write(parameters)
            entry = self._copies[owner] = copies, list(parameters)
        return entry[0].layers

    def also(self, owner: nn.Module, copies: Sequence[Copies], make: Callable[[], Any]) -> Any:
        """What else a stack's products read, made of `copies` at the first call, and again where these are others.

        make: gives it; it has `refresh()`, `nbytes()` and `amax`.
        """
        entry = self._others.get(owner)
        if entry is None or entry[0] is not copies:
            entry = self._others[owner] = copies, make()
        return entry[1]

    def amaxes(self) -> list[Tensor]:
        """What was met since the last `refresh` by tensors that are cast to FP8, float32 each."""
        return [other.amax for _, other in self._others.values()]

    def nbytes(self) -> int:
        """Bytes of all copies."""
        kept: list[Any] = [copies for copies, _ in self._copies.values()] + [
            other for _, other in self._others.values()
        ]
        return sum(copies.nbytes() for copies in kept)


_held: "WeakKeyDictionary[nn.Module, Held]" = WeakKeyDictionary()


@contextmanager
def held(model: nn.Module) -> Iterator[Held]:
    """Calls in training of stacks inside `model` multiply by copies that nobody but `Held.refresh` writes again.

    For a loop that knows when weights change. Not for several threads, nor for a backward after the weights of its forward changed.
    """
    copies, owners = Held(), list(model.modules())
    for owner in owners:
        _held[owner] = copies
    try:
        yield copies
    finally:
        for owner in owners:
            _held.pop(owner, None)


def is_held(owner: nn.Module) -> bool:
    """Whether somebody holds the copies of a stack's weights."""
    return owner in _held


def held_copies(owner: nn.Module, parameters: list[Any], dtype: torch.dtype) -> list[Copies] | None:
    """The copies of a stack's weights that somebody holds; None where nobody does."""
    holder = _held.get(owner)
    return None if holder is None else holder.copies(owner, parameters, dtype)


def held_also(owner: nn.Module, copies: Sequence[Copies], make: Callable[[], Any]) -> Any:
    """`Held.also` of whoever holds the copies of a stack's weights; None where nobody does."""
    holder = _held.get(owner)
    return None if holder is None else holder.also(owner, copies, make)


def clear(module: nn.Module) -> None:
    """Forget the copies that belong to `module` or anything inside it."""
    with _lock:
        for child in module.modules():
            _cache.pop(child, None)


def memory(module: nn.Module) -> int:
    """Bytes that the copies hold now."""
    with _lock:
        return sum(entry.nbytes() for child in module.modules() for entry in _cache.get(child, {}).values())
