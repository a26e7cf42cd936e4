"""One training call of a stack: what it is, the buffers of its bucket, and its forward and backward on either."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bertfast import _library
from bertfast.graphs import buckets, capturing
from bertfast.graphs.backend import Graph
from bertfast.graphs.inputs import Bounds, copy_all
from bertfast.nn import seeds as dropout_seeds
from bertfast.nn.layout import Packed
from bertfast.nn.parts import parts_of
from bertfast.nn.through import Layers
from bertfast.nn.training import Trained

OPS = (
    "attention_fwd",
    "attention_bwd",
    "dropout_add_norm_fwd",
    "dropout_add_norm_bwd",
    "bias_gelu_fwd",
    "bias_gelu_bwd",
    "linear_bwd",
)
FP8_OPS = (
    "fp8_cast",
    "fp8_cast_weights",
    "fp8_linear",
    "fp8_norm_fwd",
    "fp8_norm_bwd",
    "fp8_gelu_fwd",
    "fp8_gelu_bwd",
)


@dataclass(frozen=True)
class Call:
    """One training call: what it computes, and its own tensors but for x and the parameters.

    Attributes:
        parameters: of all layers, each once.
        slots: which of `parameters` stands at each place of `trained.parameters`; None for an absent one.
        grads: whether x and each parameter need a gradient.
        kept: cu_seqlens, and the rows that are read and the seeds of dropout where there are any.
        sizes: N and E, x's shape.
    """

    layers: Layers
    trained: Trained
    parameters: tuple[Tensor, ...]
    slots: tuple[int | None, ...]
    grads: tuple[bool, ...]
    layout: Packed
    seeds: Tensor | None
    autocast: torch.dtype | None
    dtype: torch.dtype
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, layers: Layers, trained: Trained, x: Tensor, layout: Packed) -> "Call":
        places: dict[int, int] = {}
        parameters: list[Tensor] = []
        slots: list[int | None] = []
        for parameter in trained.parameters:
            if parameter is None:
                slots.append(None)
                continue
            if id(parameter) not in places:
                places[id(parameter)] = len(parameters)
                parameters.append(parameter)
            slots.append(places[id(parameter)])
        grads = (x.requires_grad, *(parameter.requires_grad for parameter in parameters))
        seeds = dropout_seeds.draw(layers.seeds, x.device) if layers.seeds else None
        autocast = capturing.autocast(x.device.type)
        return cls(
            layers, trained, tuple(parameters), tuple(slots), grads, layout, seeds, autocast, x.dtype, tuple(x.shape)
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that captured code reads by address besides its inputs: parameters, and the scales of FP8."""
        scales = self.trained.scales
        return self.parameters if scales is None else (*self.parameters, *scales.tensors().values())

    def pretending(self) -> AbstractContextManager[None]:
        """Around forwards and backwards whose gradients are no step's: scales of FP8 learn nothing of them."""
        scales = self.trained.scales
        return nullcontext() if scales is None else scales.untouched()

    @property
    def own_rows(self) -> int:
        """How many rows of the result are this call's."""
        return self.sizes[0] if self.layout.read is None else self.layout.read.shape[0]

    def bucket(self) -> buckets.Bucket:
        read = self.layout.read
        count = self.layout.cu_seqlens.shape[0] - 1
        return buckets.bucket(self.sizes[0], count, self.layout.max_seqlen, None if read is None else read.shape[0])

    def key(self) -> Hashable:
        """What the captured code depends on besides sizes, and what parameters and torch's settings tell."""
        parts = [parts_of(layer) for layer in self.layers.modules]
        eps = tuple(float(norm.eps) for part in parts for norm in part.norms)
        trained = self.trained
        running = tuple(_library.resolved(name, "CUDA") for name in (*OPS, *(() if trained.fp8 is None else FP8_OPS)))
        return (
            trained.kind,
            trained.rates,
            trained.dtype,
            self.dtype,
            self.sizes[1],
            self.grads,
            self.slots,
            eps,
            running,
            trained.checkpointing,
            trained.narrow_stream,
            trained.fp8,
        )


class Rows:
    """Buffers for any call of a bucket. Rows past a call's own are zeros, as are their gradients, so that they add nothing to those
    of the parameters.

    Attributes:
        x: [N, E]; cu_seqlens: [B + 1] int32; read: [R] int64 or None; seeds: int64 [n, 2] or None; dy: [R or N, E].
    """

    def __init__(self, bucket: buckets.Bucket, call: Call, x: Tensor):
        self.x = x.detach().new_zeros(bucket.tokens, x.shape[1])
        self._bounds = Bounds(bucket, x.device)
        self.longest = bucket.longest
        self.read = None
        if type(bucket.read) is int:
            self.read = torch.zeros(bucket.read, dtype=torch.int64, device=x.device)
        self.seeds = None if call.seeds is None else torch.zeros_like(call.seeds)
        self.dy: Tensor | None = None
        self._rows = self._gradients = 0  # that the calls before wrote

    @property
    def layout(self) -> Packed:
        return Packed(self._bounds.tensor, self.longest, self.read)

    @property
    def nbytes(self) -> int:
        tensors = (self.x, self.read, self.seeds, self.dy)
        return self._bounds.nbytes + sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def fill(self, call: Call, x: Tensor) -> None:
        """Put a call's own tensors into the buffers, without a wait."""
        count, bounds, read = x.shape[0], call.layout.cu_seqlens, call.layout.read
        if self._rows > count:
            self.x[count : self._rows].zero_()
        self._rows = count
        targets, sources = [self.x[:count], self._bounds.target(bounds)], [x.detach(), bounds]
        if self.read is not None and read is not None:
            targets.append(self.read[: read.shape[0]])
            sources.append(read)
        if self.seeds is not None and call.seeds is not None:
            targets.append(self.seeds)
            sources.append(call.seeds)
        copy_all(targets, sources)
        self._bounds.close(bounds, count)

    def fill_gradient(self, dy: Tensor) -> None:
        """Put the gradient of a call's own rows into its buffer."""
        assert self.dy is not None, "made when the graphs were"
        count = dy.shape[0]
        if self._gradients > count:
            self.dy[count : self._gradients].zero_()
        self._gradients = count
        self.dy[:count].copy_(dy)

    def pretend_gradient(self, rows: Tensor, own: int) -> None:
        """Make dy for such rows, and let it hold numbers none of which are alike."""
        self.dy = torch.zeros_like(rows)
        numbers = torch.arange(rows[:own].numel(), dtype=torch.float32, device=rows.device)
        self.fill_gradient(numbers.view(rows[:own].shape).cos_().to(rows.dtype))


class Pass:
    """A forward and its backward: on the buffers of a bucket, or once more on a call's own tensors.

    Parameters take part as leaves of their own, which share their memory: autograd's node of a user's parameter remembers a stream
    and may have hooks, and neither is the graph's business.
    """

    def __init__(self, call: Call, x: Tensor, layout: Packed, seeds: Tensor | None, dy: Callable[[], Tensor]):
        self._call, self._x, self._layout, self._seeds, self._dy = call, x, layout, seeds, dy
        self._rows: Tensor | None = None
        self._leaves: list[Tensor] = []

    @classmethod
    def on(cls, inputs: Rows, call: Call) -> "Pass":
        return cls(call, inputs.x, inputs.layout, inputs.seeds, lambda: inputs.dy)  # type: ignore[arg-type, return-value]

    @property
    def x_needs_gradient(self) -> bool:
        return self._call.grads[0]

    def forward(self) -> tuple[Tensor]:
        call = self._call
        with torch.enable_grad():
            leaves = [tensor.detach() for tensor in (self._x, *call.parameters)]
            for leaf, grad in zip(leaves, call.grads, strict=True):
                leaf.requires_grad_(grad)
            own = [None if slot is None else leaves[1 + slot] for slot in call.slots]
            trained = replace(call.trained, parameters=own)
            layout = self._layout
            rows = trained.forward(leaves[0], layout.cu_seqlens, layout.max_seqlen, layout.read, self._seeds)
        self._leaves = [leaf for leaf, grad in zip(leaves, call.grads, strict=True) if grad]
        self._rows = rows
        return (rows.detach(),)

    def backward(self) -> tuple[Tensor, ...]:
        """The gradients of x and of the parameters that need one, in their order."""
        assert self._rows is not None, "forward comes first"
        rows, leaves = self._rows, self._leaves
        self._rows, self._leaves = None, []
        with torch.autocast(rows.device.type, enabled=False):  # as where a loop calls backward
            return torch.autograd.grad(rows, leaves, self._dy())

    def came_back(self) -> None:
        """Tell the scales of FP8 that there was a backward, which a replay does not."""
        scales = self._call.trained.scales
        if scales is not None:
            scales.came_back()

    def both(self) -> tuple[Tensor, ...]:
        return (*self.forward(), *self.backward())


class Pair(Graph):
    """The graphs of a forward and of its backward, which are captured one after the other into one pool."""

    def __init__(self, forward: Graph, backward: Graph):
        self.forward, self.backward = forward, backward
        self.nbytes = forward.nbytes + backward.nbytes

    def reset(self) -> None:
        self.backward.reset()
        self.forward.reset()
