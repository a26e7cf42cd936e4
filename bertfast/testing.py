"""What tests and benchmarks share: the float64 oracle's inputs and the error budget.

The budget is the project's one tolerance: our error against float64 may be at most twice that of the same maths in eager
PyTorch at the same dtype, plus one rounding step of the dtype at the size of the result. Error is the largest one; where
both sides are a matrix product of two libraries, which add the same hundreds of terms in different orders, it is the root
mean square, since the largest of thousands of such errors is luck.

Luck of another kind has a case of few rows. The numbers that a whole row shares, such as a layer norm's 1 / deviation, carry one
rounding error for all of the row, and so the error of a single row is a single random draw: eager's may be nearly none, and right
code is then over the budget (15 of 100 single rows, where a root and a division are as accurate as a GPU's). Such a case is drawn
several times, and both sides' errors are judged by the root mean square over the draws of each draw's largest error. The formula
stays; `python -m benchmarks.gpu.budget` prints how often each statistic refuses right code and faulty code.
"""

import math
from collections.abc import Callable, Iterable, Mapping

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


FEW_ROWS = 16


def draws(rows: int) -> int:
    """How often a case of so many rows is to be drawn for its error to be no luck."""
    return FEW_ROWS if 0 < rows < FEW_ROWS else 1


def error_of_draws(value: Tensor, oracle: Tensor) -> float:
    """Root mean square over draws, the first dimension, of each draw's largest error; infinite as in `max_error`."""
    errors = [max_error(*pair) for pair in zip(value, oracle, strict=True)]
    return math.sqrt(sum(error * error for error in errors) / len(errors)) if errors else 0.0


def assert_draws_within_budget(draw: Callable[[], Mapping[str, tuple[Tensor, Tensor, Tensor]]], count: int) -> None:
    """`assert_within_budget` for each result of a case, over `count` draws of it (see `draws`).

    draw: makes new inputs and gives (ours, eager, oracle) by the name of each result.
    """
    cases = [draw() for _ in range(count)]
    measure = max_error if len(cases) == 1 else error_of_draws
    for name in cases[0]:
        ours, eager, oracle = (torch.stack(tensors) for tensors in zip(*(case[name] for case in cases), strict=True))
        assert_within_budget(ours, eager, oracle, name, measure)


def leaves(tensors: Iterable[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Detached copies that need gradients, at `dtype` where given; None stays None."""
    return [None if t is None else t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]
