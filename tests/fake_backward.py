"""Backward without torch's engine, which asks a GPU for its streams: fake CUDA tensors have none.

The graph of nodes is walked in the engine's order, in the caller's thread. Hooks do not run.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


def _order(roots: list[Any]) -> dict[Any, int]:
    """Every node that is reached, and how many edges lead to it."""
    edges: dict[Any, int] = dict.fromkeys(roots, 0)
    waiting = list(edges)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            if node not in edges:
                edges[node] = 0
                waiting.append(node)
            edges[node] += 1
    return edges


def _fitted(gradient: Tensor, meta: Any) -> Tensor:
    """As a node wants it: summed over what was broadcast, and in its dtype."""
    if gradient.shape != meta.shape:
        gradient = gradient.sum_to_size(meta.shape)
    return gradient if gradient.dtype == meta.dtype else gradient.to(meta.dtype)


def _call(node: Any, given: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients for `node.next_functions`."""
    if isinstance(node, BackwardCFunction):
        if getattr(node, "materialize_grads", True):
            metas = node._input_metadata
            given = [
                torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device) if each is None else each
                for each, meta in zip(given, metas, strict=True)
            ]
        made = node.apply(*given)
        made = made if isinstance(made, tuple) else (made,)
        # One for each argument, tensor or not. Edges are of tensors alone, to nowhere where no gradient is needed.
        needed = iter([each for each, is_needed in zip(made, node.needs_input_grad, strict=True) if is_needed])
        return tuple(None if following is None else next(needed) for following, _ in node.next_functions)
    made = node(*given)
    return made if isinstance(made, tuple) else (made,)


@torch.no_grad()
def backward(tensor: Tensor, gradient: Tensor | None = None, **_: Any) -> None:
    """`tensor.backward(gradient)`: gradients are added to those of the leaves."""
    root = tensor.grad_fn
    edges = _order([root])
    given = {node: [None] * len(node._input_metadata) for node in edges}
    given[root][tensor.output_nr] = torch.ones_like(tensor) if gradient is None else gradient
    ready = [root]
    while ready:
        node = max(ready, key=lambda each: each._sequence_nr())
        ready.remove(node)
        arrived = given.pop(node)
        made = _call(node, arrived) if any(each is not None for each in arrived) else ()
        for number, (following, place) in enumerate(node.next_functions):
            if following is None:
                continue
            new = made[number] if number < len(made) else None
            if new is not None:
                new = _fitted(new, following._input_metadata[place])
                before = given[following][place]
                given[following][place] = new if before is None else before + new
            edges[following] -= 1
            if not edges[following]:
                ready.append(following)
