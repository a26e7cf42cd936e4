"""What training in FP8 keeps from step to step: the scales of every tensor that is cast, and the weights' casts.

    real = stored * scale,   scale = 2^margin * max(history of amax) / largest number of the format      (delayed scaling)

A pass that casts a tensor reads its scale and raises its amax; `State.update` turns the amaxes of a step into the next step's
scales: after the optimizer's step where somebody holds the weights' copies (`joined.held`), else before the first forward that
follows a backward, outside of what is captured. All of it are tensors that stay where they are, on the device, so that a graph can
hold a step. The first calls have no history: every pass runs twice then, the first time for its amax alone (`is_calibrating`).

Source: Micikevicius et al., "FP8 formats for deep learning", 2022 (arXiv:2209.05433); delayed scaling as in NVIDIA's Transformer
Engine.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bertfast import _library
from bertfast.nn import device as devices
from bertfast.nn.joined import Copies
from bertfast.nn.parts import PARAMETERS
from bertfast.ops import fp8

# The tensors of a layer that are cast: what its four products read, and the gradients of what they give.
FORWARD = ("x", "context", "rows", "hidden")
BACKWARD = ("dout", "dqkv", "dout_feed", "dpre")
TENSORS = (*FORWARD, *BACKWARD)
LEAST = (8, 9)  # of a GPU's capability
MULTIPLE = 16  # of a product's inner dimension and of its output's columns
_WEIGHTS = 4  # of a layer: query, key and value joined, the output product, both of the feed-forward half


@dataclass(frozen=True)
class Recipe:
    """How layers train in FP8: `model.set_precision("fp8", Recipe(...))` of `bertfast.models`.

    The trainer's options set `gradients`, `last` and `weight_gradients`; `optimize` takes the defaults.

    Attributes:
        gradients: format of gradients, torch.float8_e5m2 or float8_e4m3fn; what forward makes and weights are e4m3.
        history: steps, 1 or more, whose largest magnitude decides a scale; 1 is that of the last step alone.
        margin: powers of two that are left free above it.
        last: how many of the last layers, 0 or more, stay in 16 bits.
        current: scales from the very tensor that is cast, by a pass more; for comparison.
        weight_gradients: whether gradients of weights are products in FP8 too, of transposed copies. In 16 bits they need none, and
            a pass more for each gradient, which is then cast by itself.

    Raises:
        ValueError: for another format, a history below 1 or a negative number of layers.
    """

    gradients: torch.dtype = torch.float8_e5m2
    history: int = 16
    margin: float = 0.0
    last: int = 1
    current: bool = False
    weight_gradients: bool = True

    def __post_init__(self) -> None:
        if self.gradients not in fp8.LARGEST:
            raise ValueError(
                f"Recipe: gradients must be torch.float8_e5m2 or torch.float8_e4m3fn, got {self.gradients!r}"
            )
        if self.history < 1:
            raise ValueError(f"Recipe: history must be 1 step or more, got {self.history}")
        if self.last < 0:
            raise ValueError(f"Recipe: last must be 0 layers or more, got {self.last}")

    def layers(self, depth: int) -> int:
        """How many of `depth` layers are in FP8: the first ones."""
        return max(depth - self.last, 0)

    def format(self, tensor: int) -> torch.dtype:
        """Of the tensor with this number among TENSORS."""
        return torch.float8_e4m3fn if tensor < len(FORWARD) else self.gradients


class Scaling(NamedTuple):
    """What a pass needs to cast one tensor: scale and amax, float32 [], the format, and whether a transposed copy is read."""

    scale: Tensor
    amax: Tensor
    dtype: torch.dtype
    transposed: bool


class State:
    """The scales of a stack's FP8 layers.

    Attributes:
        scale, amax: float32 [layers, 8], by layer and TENSORS.
        history: float32 [H, layers * 8], newest first.
    """

    def __init__(self, recipe: Recipe, layers: int, device: torch.device) -> None:
        self.recipe, self.layers = recipe, layers
        with torch.inference_mode(False):
            self.scale = torch.ones(layers, len(TENSORS), device=device)
            self.amax = torch.zeros(layers, len(TENSORS), device=device)
            self.history = torch.zeros(recipe.history, layers * len(TENSORS), device=device)
            formats = [fp8.LARGEST[recipe.format(tensor)] for tensor in range(len(TENSORS))]
            self._largest = torch.tensor(formats * layers, device=device)
        self._amaxes = [list(row.unbind()) for row in self.amax.unbind()]
        self._differentiated = False  # since the last update; without a backward gradients have no amax
        self._calibrating = True

    def of_call(self) -> list[list[Scaling]]:
        """By layer and TENSORS: scales as they are now, which a call's backward still has after an update."""
        scales = self.scale.clone()
        formats = [self.recipe.format(tensor) for tensor in range(len(TENSORS))]
        copied = self.recipe.weight_gradients
        return [
            [Scaling(*each, copied) for each in zip(row.unbind(), amaxes, formats, strict=True)]
            for row, amaxes in zip(scales.unbind(), self._amaxes, strict=True)
        ]

    def is_calibrating(self) -> bool:
        """Whether no step with a backward has given scales yet: passes find out their own then. No look at the device."""
        return self._calibrating or self.recipe.current

    @property
    def was_used(self) -> bool:
        """Whether a step with a backward came through here, or scales of one were loaded."""
        return not self._calibrating

    @property
    def knows_scales(self) -> bool:
        """Whether a call is what all later ones will be, so that it may be captured."""
        return not self._calibrating or self.recipe.current

    def watch(self, x: Tensor) -> Tensor:
        """x, whose gradient tells that there is a backward."""
        if x.requires_grad:
            x.register_hook(lambda _: self.came_back())
        return x

    def came_back(self) -> None:
        """There was a backward."""
        self._differentiated = True

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """What is met inside counts for nothing: numbers that no step has."""
        amax, differentiated = self.amax.clone(), self._differentiated
        try:
            yield
        finally:
            with torch.no_grad():
                self.amax.copy_(amax)
            self._differentiated = differentiated

    def begin(self) -> None:
        """Before a forward of a loop that tells nothing of its steps: `update`, where a backward came since the last one."""
        if self._differentiated:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """The next step's scales from what was met since the last update. Waits for nothing."""
        if self._differentiated:
            self._calibrating = False
        self._differentiated = False
        args = self.history, self.amax.view(-1), self.scale.view(-1), self._largest, self.recipe.margin
        _library.resolved("fp8_update_scales", "CUDA")(*args)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "amax": self.amax, "history": self.history}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave.

        Raises:
            ValueError: where a tensor is missing or of another shape.
        """
        for name, own in self.tensors().items():
            given = tensors.get(name)
            if given is None or given.shape != own.shape:
                shape = None if given is None else tuple(given.shape)
                raise ValueError(
                    f"FP8 scales: {name} must be {tuple(own.shape)}, found {shape}: of another model or recipe"
                )
            own.copy_(given)
        self._calibrating = False


class Weight(NamedTuple):
    """A weight [N, K] in e4m3, its transposed copy [K, N], and the scale [] of both."""

    cast: Tensor
    transposed: Tensor
    scale: Tensor


class Weights:
    """The FP8 copies of a stack's weights, four a layer, and when its scales move on.

    Attributes:
        layers: the weights of each.
    """

    def __init__(self, state: State, parameters: Sequence[Any], copies: Sequence[Copies]) -> None:
        """
        Args:
            parameters: of all layers, 16 each.
            copies: of each layer; the joined one is cast. Others are cast from the parameters, whatever their dtype.
        """
        self._state = state
        sources: list[Tensor] = []
        for number in range(state.layers):
            first = number * PARAMETERS
            sources += [copies[number].qkv, parameters[first + 6], parameters[first + 10], parameters[first + 12]]
        self._sources, device = sources, sources[0].device
        with torch.inference_mode(False), torch.no_grad():
            self._scales = torch.ones(len(sources), device=device)
            self._casts = [torch.empty(w.shape, dtype=torch.float8_e4m3fn, device=device) for w in sources]
            self._transposed = [torch.empty(w.shape[::-1], dtype=torch.float8_e4m3fn, device=device) for w in sources]
        every = [Weight(*each) for each in zip(self._casts, self._transposed, self._scales.unbind(), strict=True)]
        self.layers = [every[first : first + _WEIGHTS] for first in range(0, len(every), _WEIGHTS)]

    @torch.no_grad()
    def write(self) -> None:
        """Cast every weight. Waits for nothing."""
        args = self._sources, self._scales, self._casts, self._transposed
        _library.resolved("fp8_cast_weights", "CUDA")(*args)

    def refresh(self) -> None:
        """After a step: the next one's casts and scales."""
        self.write()
        self._state.update()

    @property
    def amax(self) -> Tensor:
        """What was met in this step by the tensors of all layers; several ranks take the largest before `refresh`."""
        return self._state.amax

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._casts, *self._transposed))


def why_not(device: torch.device, dtype: torch.dtype, *columns: int) -> str | None:
    """Why a stack on a device cannot multiply in FP8 rows of so many columns, where products are in `dtype`; None where it can."""
    if dtype is not torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        return f"products are in {name}: FP8 takes the place of bfloat16, that of the model or of autocast"
    for width in columns:
        if width % MULTIPLE:
            return f"the model's rows have {width} columns: FP8 products take multiples of {MULTIPLE}"
    return unsupported(device)


def unavailable() -> str | None:
    """Why no device of this process has FP8 products; None where one has."""
    if "cpu" in devices.KINDS:
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    reasons = [unsupported(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    return None if None in reasons else "; ".join(filter(None, reasons))


def unsupported(device: torch.device) -> str | None:
    """Why a device has no FP8 products; None where it has, as have all that compute as a GPU would."""
    if device.type not in devices.KINDS:
        return f"a {device.type} device has no FP8 products of ours"
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    if torch.version.hip is not None:
        return "FP8 products were only written for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability >= LEAST:
        return None
    arch, least = (f"sm_{major}{minor}" for major, minor in (capability, LEAST))
    return f"{torch.cuda.get_device_name(device)} is {arch}: FP8 products begin with {least} (Ada, Hopper, Blackwell)"


_states: "WeakKeyDictionary[nn.Module, State]" = WeakKeyDictionary()


def state_of(owner: nn.Module, recipe: Recipe, depth: int, device: torch.device) -> State:
    """The scales of the stack that belongs to `owner`, made at its first call and where recipe, depth or device changed."""
    state = _states.get(owner)
    layers = recipe.layers(depth)
    if state is None or (state.recipe, state.layers, state.scale.device) != (recipe, layers, device):
        state = _states[owner] = State(recipe, layers, device)
    return state
