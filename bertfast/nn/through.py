"""The one way of packed tokens through all layers: at once, or layer by layer.

At once is by one C++ call on a CPU (`stack`), by launchers alone on a GPU (`device`), or in training there by two autograd nodes a
layer (`training`), wherever nothing is attached to a layer that would miss its call; on a GPU a graph can hold it. Layer by layer
is the rest: training on a CPU, hooks, sharded parameters, tracing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from bertfast.nn import device, fp8_inference, stack, training
from bertfast.nn import seeds as dropout_seeds
from bertfast.nn.fp8_state import Recipe, why_not
from bertfast.nn.layout import Packed
from bertfast.nn.parts import Kind, widths

Call = Callable[[nn.Module, Tensor, Packed], Tensor]


@dataclass(frozen=True)
class Layers:
    """
    Attributes:
        owner: the module that copies of the weights belong to.
        modules: the layers.
        call: (layer, x, layout) to the layer's output, through the module itself.
        kind: of every layer; None where they differ, or where each must be called as a module.
        prepack: whether inference on a CPU may keep reordered copies of the weights.
        int8: whether products from these copies are of 8-bit integers.
        checkpointing: whether training keeps only each layer's input, and computes the layer again in backward.
        narrow_stream: whether training under autocast keeps the residual stream in 16 bits whatever its width.
        fp8: how training in bfloat16 multiplies in FP8; None where it does not.
        infer_fp8: whether inference in bfloat16 on a GPU does.
        at_once: what runs all of them without their calls, its parameters current; see `ready`.
    """

    owner: nn.Module
    modules: Sequence[nn.Module]
    call: Call
    kind: Kind | None
    prepack: bool = True
    int8: bool = False
    checkpointing: bool = False
    narrow_stream: bool = False
    fp8: Recipe | None = None
    infer_fp8: bool = False
    at_once: stack.Native | device.Launched | training.Trained | None = None

    @property
    def seeds(self) -> int:
        """How many seeds of dropout a call needs that `seeds` may be given to."""
        return self.at_once.seeds if isinstance(self.at_once, training.Trained) else 0

    def ready(self, x: Tensor) -> "Layers":
        """The same with what runs all layers on such x at once, where there is something."""
        if self.kind is None:
            return self
        if x.device.type in device.KINDS:
            at_once: device.Launched | training.Trained | None = device.find(self.owner, self.modules, x, self.kind)
            if (
                at_once is not None
                and self.infer_fp8
                and why_not(x.device, at_once.joined.dtype, *widths(at_once.parts)) is None
            ):
                at_once = fp8_inference.Launched8(at_once.parts, at_once.kind, at_once.joined)
            if at_once is None:
                options = self.checkpointing, self.narrow_stream, self.fp8
                at_once = training.find(self.owner, self.modules, x, self.kind, *options)
            return replace(self, at_once=at_once)
        if not self.prepack:
            return self
        return replace(self, at_once=stack.find(self.modules, x, self.kind, int8=self.int8))


def through(layers: Layers, x: Tensor, layout: Packed, seeds: Tensor | None = None) -> Tensor:
    """x [T, E] of packed tokens through all layers, to [T, E]; to [R, E] where the layout names R rows to be read.

    seeds: int64 [layers.seeds, 2] of `nn.seeds.draw`; drawn here where it is None.
    """
    if isinstance(layers.at_once, training.Trained):
        layers.at_once.begin()
        if seeds is None and layers.seeds:
            seeds = dropout_seeds.draw(layers.seeds, x.device)
        return layers.at_once.forward(x, layout.cu_seqlens, layout.max_seqlen, layout.read, seeds)
    if layers.at_once is not None:
        return layers.at_once.forward(x, layout.cu_seqlens, layout.max_seqlen, layout.read)
    every = replace(layout, read=None)
    last = len(layers.modules) - 1
    for i, layer in enumerate(layers.modules):
        # Every row is a key and a value, until the last layer's output.
        x = layers.call(layer, x, layout if i == last else every)
    return x
