"""What the optimizer's ops mean, in eager torch: numbers are kept in their dtypes and computed in float32 at least.

    t = step + 1,  g = gradient min(1, max_norm / (norm + 1e-6))
    mean = beta1 mean + (1 - beta1) g,  square = beta2 square + (1 - beta2) g^2
    direction = (mean / (1 - beta1^t)) / (sqrt(square / (1 - beta2^t)) + eps)
    AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101):
        weight -= rate (direction + weight_decay weight)
    LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2), direction from the moments as they are stored:
        weight -= rate trust (direction + weight_decay weight)
        trust = |weight| / |direction + weight_decay weight|; 1 where either is 0 and where nothing decays

What is scalar is computed in float64. Nothing is read from the device: a withheld step writes every number as it was.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SETTINGS = 4  # of a group: beta1, beta2, eps, weight_decay


class Group(NamedTuple):
    """What the parameters of a group share."""

    number: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def groups(sizes: Sequence[int], settings: Sequence[float]) -> Iterator[Group]:
    """The group of each parameter in order; sizes: parameters of each group."""
    for number, size in enumerate(sizes):
        group = Group(number, *settings[number * SETTINGS : (number + 1) * SETTINGS])
        yield from (group for _ in range(size))


def computed(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are computed in."""
    return torch.promote_types(dtype, torch.float32)


def write(target: Tensor, value: Tensor, withheld: Tensor | None) -> None:
    """`value` into `target`, where the step is not withheld."""
    target.copy_(value if withheld is None else torch.where(withheld == 0, value.to(target.dtype), target))


def clip(norm: Tensor | None, max_norm: float) -> Tensor | float:
    """What gradients are multiplied by."""
    return 1.0 if norm is None else torch.clamp(max_norm / (norm + 1e-6), max=1.0)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all numbers of all gradients, [] float32 (float64 of such gradients)."""
    if not gradients:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(g, dtype=computed(g.dtype)) for g in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


def _update_moments(
    gradient: Tensor, mean: Tensor, square: Tensor, group: Group, scale: Tensor | float, withheld: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both moments after this step, in the computing dtype; they are written, rounded to their own."""
    dtype = computed(mean.dtype)
    g = gradient.to(dtype) * scale
    new_mean = mean.to(dtype) * group.beta1 + g * (1 - group.beta1)
    new_square = square.to(dtype) * group.beta2 + g * g * (1 - group.beta2)
    write(mean, new_mean, withheld)
    write(square, new_square, withheld)
    return new_mean, new_square


def _direction(mean: Tensor, square: Tensor, group: Group, done: Tensor) -> Tensor:
    """Adam's, bias-corrected; done: steps with this one, [] float64."""
    root = (1 - group.beta2**done).sqrt()
    scale = root / (1 - group.beta1**done)
    return mean * scale.to(mean.dtype) / (square.sqrt() + (group.eps * root).to(mean.dtype))


def _rate(rates: Tensor, group: Group) -> Tensor:
    return rates.reshape(-1)[group.number if rates.numel() > 1 else 0].double()


def _advance(step: Tensor, withheld: Tensor | None) -> None:
    step.add_(1 if withheld is None else 1 - withheld)


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor],
    sizes: Sequence[int],
    settings: Sequence[float],
    rates: Tensor,
    norm: Tensor | None,
    max_norm: float,
    withheld: Tensor | None,
) -> None:
    scale = clip(norm, max_norm)
    columns = zip(weights, gradients, means, squares, steps, copies, groups(sizes, settings), strict=True)
    for weight, gradient, mean, square, step, copy, group in columns:
        new = _update_moments(gradient, mean, square, group, scale, withheld)
        w, rate = weight.to(computed(weight.dtype)), _rate(rates, group)
        direction = _direction(*new, group, step.double() + 1)
        value = w - ((rate * group.weight_decay).to(w.dtype) * w + rate.to(w.dtype) * direction)
        write(weight, value, withheld)
        if copy.numel():
            write(copy, value, withheld)
        _advance(step, withheld)


def lamb_moments(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    sizes: Sequence[int],
    settings: Sequence[float],
    norm: Tensor | None,
    max_norm: float,
    withheld: Tensor | None,
) -> Tensor:
    scale, sums = clip(norm, max_norm), []
    columns = zip(weights, gradients, means, squares, steps, groups(sizes, settings), strict=True)
    for weight, gradient, mean, square, step, group in columns:
        _update_moments(gradient, mean, square, group, scale, withheld)
        w = weight.to(computed(weight.dtype))
        direction = _direction(mean.to(w.dtype), square.to(w.dtype), group, step.double() + 1) + group.weight_decay * w
        sums.append(torch.stack([w.square().sum(), direction.square().sum()]))
        _advance(step, withheld)
    if not sums:
        return torch.zeros(0, 2)
    both = torch.stack(sums)
    return both if withheld is None else torch.where(withheld == 0, both, 0.0)


def lamb_step(
    weights: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor],
    sizes: Sequence[int],
    settings: Sequence[float],
    rates: Tensor,
    sums: Tensor,
    withheld: Tensor | None,
) -> None:
    columns = zip(weights, means, squares, steps, copies, sums.unbind(), groups(sizes, settings), strict=True)
    for weight, mean, square, step, copy, pair, group in columns:
        w = weight.to(computed(weight.dtype))
        size, length = pair.double().sqrt().unbind()
        trust = torch.where((size > 0) & (length > 0), size / length, 1.0) if group.weight_decay else 1.0
        direction = _direction(mean.to(w.dtype), square.to(w.dtype), group, step.double()) + group.weight_decay * w
        value = w - (_rate(rates, group) * trust).to(w.dtype) * direction
        write(weight, value, withheld)
        if copy.numel():
            write(copy, value, withheld)
