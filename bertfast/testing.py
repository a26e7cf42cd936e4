"""What tests and benchmarks share: the float64 oracle's inputs and the error budget.

The budget is the project's one tolerance: our error against float64 may be at most twice that of the same maths in eager
PyTorch at the same dtype, plus one rounding step of the dtype at the size of the result. Error is the largest one; where
both sides are a matrix product of two libraries, which add the same hundreds of terms in different orders, it is the root
mean square, since the largest of thousands of such errors is luck.
"""

from collections.abc import Callable, Iterable

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


def rms_error(value: Tensor, oracle: Tensor) -> float:
    """Root mean square difference to the float64 oracle; infinite where a value is not a number and the oracle is."""
    if value.shape != oracle.shape:
        raise AssertionError(f"shape {tuple(value.shape)} differs from the oracle's {tuple(oracle.shape)}")
    if value.numel() == 0:
        return 0.0
    return float((value.double() - oracle.double()).square().mean().sqrt().nan_to_num(nan=float("inf")))


def assert_within_budget(
    ours: Tensor,
    eager: Tensor,
    oracle: Tensor,
    what: str = "result",
    measure: Callable[[Tensor, Tensor], float] = max_error,
) -> None:
    """AssertionError unless error(ours) <= 2 x error(eager) + one rounding step, errors taken against `oracle`."""
    zero = torch.zeros_like(oracle)
    budget = 2.0 * measure(eager, oracle) + rounding_step(ours.dtype) * measure(oracle, zero)
    error = measure(ours, oracle)
    assert error <= budget, (
        f"{what}: error {error:.3e} is over the budget {budget:.3e} (eager error {measure(eager, oracle):.3e})"
    )


def leaves(tensors: Iterable[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Detached copies that need gradients, at `dtype` where given; None stays None."""
    return [None if t is None else t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]
