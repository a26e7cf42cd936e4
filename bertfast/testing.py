"""What tests and benchmarks share: the float64 oracle's inputs and the error budget.

The budget is the project's one tolerance: our error against float64 may be at most twice that of the same maths in eager
PyTorch at the same dtype, plus one rounding step of the dtype at the size of the result.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def rounding_step(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number of `dtype`."""
    return torch.finfo(dtype).eps / 2


def max_error(value: Tensor, oracle: Tensor) -> float:
    """Largest absolute difference to the float64 oracle; infinite where a value is not a number and the oracle is."""
    if value.shape != oracle.shape:
        raise AssertionError(f"shape {tuple(value.shape)} differs from the oracle's {tuple(oracle.shape)}")
    if value.numel() == 0:
        return 0.0
    difference = (value.double() - oracle.double()).abs()
    return float(torch.nan_to_num(difference, nan=float("inf")).max())


def assert_within_budget(ours: Tensor, eager: Tensor, oracle: Tensor, what: str = "result") -> None:
    """AssertionError unless error(ours) <= 2 x error(eager) + one rounding step, errors taken against `oracle`."""
    scale = float(oracle.abs().max()) if oracle.numel() else 0.0
    budget = 2.0 * max_error(eager, oracle) + rounding_step(ours.dtype) * scale
    error = max_error(ours, oracle)
    assert error <= budget, (
        f"{what}: error {error:.3e} is over the budget {budget:.3e} (eager error {max_error(eager, oracle):.3e})"
    )


def leaves(tensors: Iterable[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Detached copies that need gradients, at `dtype` where given; None stays None."""
    return [None if t is None else t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]
