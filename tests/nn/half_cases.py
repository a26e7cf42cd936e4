"""Stacks for the tests of `nn.halves` and `nn.training`, and the same maths in plain PyTorch."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast.nn import BertEncoder
from bertfast.nn.layout import Packed
from bertfast.nn.parts import LayerParts, parts_of
from bertfast.nn.through import through

E, FEED, HEADS = 48, 96, 3
LENGTHS = (5, 0, 11, 1, 6)
READ = (0, 5, 15, 17, 5, 9, 1, 3, 8, 11, 13, 20, 22, 2)  # in any order, one of them twice


def encoder(p: float = 0.0, *, act: str = "gelu", bias: bool = True, depth: int = 2) -> BertEncoder:
    """In training; biases and norms are not zeros and ones."""
    stack = BertEncoder(depth, E, HEADS, FEED, act, p, p)
    for parameter in stack.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
        else:
            nn.init.normal_(parameter, 0.0, 0.1)
    if not bias:
        for layer in stack.layer:
            parts = parts_of(layer)
            for linear in (*parts.attention[:4], parts.mlp.down):
                linear.bias = None
    return stack.train()


def rows(dtype: torch.dtype = torch.float32, read: bool = False) -> tuple[Tensor, Packed]:
    """Rows of several sequences, one of them empty."""
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    x = torch.randn(sum(LENGTHS), E).to(dtype).requires_grad_()
    return x, Packed(bounds, max(LENGTHS), torch.tensor(READ) if read else None)


class Result(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]  # of x and of the parameters by name


def result(function: Callable[[Tensor], Tensor], stack: nn.Module, x: Tensor) -> Result:
    """Output, and gradients of a loss that weighs every number."""
    stack.zero_grad()
    x.grad = None
    output = function(x)
    weights = torch.arange(output.numel(), dtype=torch.float64).cos().view(output.shape)
    (output * weights.to(output.dtype)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in stack.named_parameters() if p.grad is not None}
    return Result(output.detach(), gradients | ({} if x.grad is None else {"x": x.grad.clone()}))


def at_once(stack: BertEncoder, x: Tensor, layout: Packed, seeds: Tensor | None = None) -> Tensor:
    return through(stack.layers(E).ready(x), x, layout, seeds)


def one_by_one(stack: BertEncoder, x: Tensor, layout: Packed) -> Tensor:
    for number, layer in enumerate(stack.layer):
        last = number == len(stack.layer) - 1
        read = layout.read if last else None
        x = layer(x, cu_seqlens=layout.cu_seqlens, max_seqlen=layout.max_seqlen, read=read)
    return x


def plainly(stack: BertEncoder, x: Tensor, layout: Packed) -> Tensor:
    """Without dropout, in PyTorch's functions, autocast as it is."""
    for number, layer in enumerate(stack.layer):
        last = number == len(stack.layer) - 1
        x = _layer(parts_of(layer), x, layout, layout.read if last else None, layer.approximate)
    return x


def _layer(parts: LayerParts, x: Tensor, layout: Packed, read: Tensor | None, approximate: str) -> Tensor:
    attention, mlp = parts
    bounds: Sequence[int] = layout.cu_seqlens.tolist()
    heads = [linear(x).unflatten(1, (HEADS, -1)).transpose(0, 1) for linear in attention[:3]]
    contexts: list[Any] = []
    for begin, end in pairwise(bounds):
        query, key, value = (t[:, begin:end] for t in heads)
        scores = (query @ key.transpose(1, 2)) * (E // HEADS) ** -0.5
        contexts.append((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
    context = torch.cat(contexts)
    if read is not None:
        context, x = context[read], x[read]
    x = attention.norm(attention.dense(context) + x)
    return mlp.norm(mlp.down(F.gelu(mlp.up(x), approximate=approximate)) + x)
