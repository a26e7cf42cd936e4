"""Whether layers may be computed from their parameters, without a call of their modules: plain inference that nobody watches."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from bertfast import _torch
from bertfast.nn.parts import LayerParts, parts_of


def untouched(module: nn.Module) -> bool:
    """Whether calling `module` runs its class's forward and nothing else: no hooks, no `forward` set on the instance."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _torch.has_global_hooks()
    )


def inference_parts(layers: Iterable[nn.Module]) -> list[LayerParts] | None:
    """The parts of all layers; None where a product was replaced, or dropout is on in any."""
    all_parts: list[LayerParts] = []
    for layer in layers:
        parts = parts_of(layer)
        if any(type(linear) is not nn.Linear for linear in parts.linears):
            return None
        if layer.training or any(dropout.training and dropout.p > 0.0 for dropout in parts.dropouts):
            return None
        all_parts.append(parts)
    return all_parts


def is_unwatched() -> bool:
    """Whether nothing traces, transforms or records what is computed now."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # a graph must hold the weights, not copies of them
        return False
    return not (_torch.is_transformed() or _torch.is_watched())


def needs_gradients(x: Tensor, parameters: Sequence[Tensor | None]) -> bool:
    """Whether autograd would record a function of these."""
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters if p is not None))


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products on x: autocast's where it is on, else x's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def dropout_rate(module: nn.Dropout) -> float:
    """What this Dropout drops now. Its own mode counts, so that dropout switched on alone (Monte Carlo) works as in torch."""
    return module.p if module.training else 0.0
