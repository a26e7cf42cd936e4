"""Small stacks of layers for the tests of `nn.device`, and what the ops give for them, each op by what a GPU would run."""

import pytest
import torch
from torch import Tensor, nn

from bertfast import _library
from bertfast.nn import device, feed_forward, joined, linear
from bertfast.nn.core import attention_block, mlp_block
from bertfast.nn.layout import Packed
from bertfast.nn.modules import BertLayer
from bertfast.nn.parts import Kind, parts_of

E, F, H = 64, 128, 2
WHERE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
KIND = Kind(H, 0.17, "none")


def make_stack(dtype: torch.dtype = torch.float32, depth: int = 3, head: int = E // H) -> nn.ModuleList:
    """Layers with heads of `head` columns, each with another eps, and norms and biases that are not ones and zeros."""
    stack = nn.ModuleList(BertLayer(E, H, F, layer_norm_eps=10.0**-i) for i in range(2, 2 + depth))
    for layer in stack:
        projections, output = layer.attention.self, layer.attention.output
        for name in ("query", "key", "value"):
            setattr(projections, name, nn.Linear(E, H * head))
        output.dense = nn.Linear(H * head, E)
    for parameter in stack.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return stack.eval().to(WHERE, dtype)


def tokens(lengths: list[int], longest: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Packed]:
    """Random rows of sequences of these lengths."""
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(WHERE, torch.int32)
    return torch.randn(sum(lengths), E, device=WHERE).to(dtype), Packed(bounds, longest)


def directly(
    stack: nn.ModuleList, x: Tensor, layout: Packed, kind: Kind = KIND, dtype: torch.dtype | None = None
) -> Tensor:
    parts = [parts_of(layer) for layer in stack]
    weights = joined.Joined.of(stack, parts, x.dtype if dtype is None else dtype)
    assert weights is not None
    return device.layers(x, parts, kind, layout, weights)


def by_ops(stack: nn.ModuleList, x: Tensor, layout: Packed, kind: Kind = KIND) -> Tensor:
    """The same layer by layer. On a CPU the ops are what the dispatcher would run on a GPU (`owned`)."""
    every = Packed(layout.cu_seqlens, layout.max_seqlen)
    with torch.no_grad():
        for number, layer in enumerate(stack):
            parts, last = parts_of(layer), number == len(stack) - 1
            x = attention_block(
                x, layout if last else every, parts.attention, kind.heads, scale=kind.scale, use_prepack=False
            )
            x = mlp_block(x, parts.mlp, approximate=kind.approximate, use_prepack=False)
    return x


def own(patch: pytest.MonkeyPatch) -> None:
    """Without a GPU: let every op on CPU tensors be what runs on a GPU, and products be torch's."""
    if WHERE.type == "cpu":
        patch.setattr(linear, "ordinary", lambda parts: False)
        patch.setattr(feed_forward, "ordinary", lambda parts: False)
        patch.setattr(
            _library, "_OVERLOADS", {name: _library.resolved(name, "CUDA") for name in _library.owners("CUDA")}
        )
