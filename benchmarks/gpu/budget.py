"""python -m benchmarks.gpu.budget: how often the budget refuses right code and faulty code, by rows, draws and statistic.

The code is dropout_add_norm's reference in float32 with a deviation that is as accurate as a GPU's approximate root and division
may leave it, and sums in another order. Its error of one row is mostly that of one number that all of the row shares.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bertfast import testing
from bertfast.ops import rng
from bertfast.ops.dropout_add_norm import reference

COLUMNS, EPS, RATE = 768, 1e-12, 0.3
HARDWARE = 2**-22.9  # relative error that a root and a division on a GPU may have together
NAMES = ("y", "dx", "dbias", "dresidual", "dweight", "dnorm_bias")
Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]  # mean and 1 / deviation of the rows of z
Results = dict[str, tuple[Tensor, Tensor, Tensor]]


def rounded(z: Tensor) -> tuple[Tensor, Tensor]:
    """As right as hardware is."""
    order = torch.randperm(z.shape[1])
    mean = z[:, order].mean(-1)
    rstd = ((z - mean[:, None])[:, order].square().mean(-1) + EPS).rsqrt()
    return mean, rstd * (1 + HARDWARE * (2 * torch.rand(z.shape[0]) - 1))


def _scaled(relative: float) -> Statistics:
    def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
        mean, rstd = rounded(z)
        return mean, rstd * (1 + relative)

    return statistics


def _half_precision(z: Tensor) -> tuple[Tensor, Tensor]:
    mean, _ = rounded(z)
    squares = (z - mean[:, None]).square().bfloat16()
    return mean, (squares.float().mean(-1) + EPS).rsqrt()


def _lost_term(z: Tensor) -> tuple[Tensor, Tensor]:
    mean, _ = rounded(z)
    squares = (z - mean[:, None]).square()
    squares[:, 0] = 0.0
    return mean, (squares.mean(-1) + EPS).rsqrt()


FAULTS: dict[str, Statistics] = {
    "deviation off by 2^-20": _scaled(2**-20),
    "deviation off by 2^-21": _scaled(2**-21),
    "squares added in bfloat16": _half_precision,
    "one square of a row lost": _lost_term,
}


def draw(rows: int, statistics: Statistics, dtype: torch.dtype = torch.float32) -> Results:
    """New inputs: (ours, eager, oracle) by result, ours with these statistics. x has `dtype`, all else is float32."""
    x, residual, dy = (torch.randn(rows, COLUMNS) for _ in range(3))
    bias, weight, norm_bias = (torch.randn(COLUMNS) for _ in range(3))
    x, state = x.to(dtype), rng.new_rng("cpu")
    keep = rng.keep_rows(state, rows, COLUMNS, RATE)
    inputs = (x, bias, residual, weight, norm_bias)

    def stock(x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, norm_bias: Tensor) -> Tensor:
        z = (x + bias) * keep / rng.keep_rate_rows(RATE) + residual
        return F.layer_norm(z, z.shape[-1:], weight, norm_bias, EPS)

    def step(dtype: torch.dtype | None) -> list[Tensor]:
        leaves = testing.leaves(inputs, dtype)
        y = stock(*leaves)  # type: ignore[arg-type]
        y.backward(dy.to(y.dtype))
        return [y.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[union-attr, list-item]

    z, _ = reference._sum(x, bias, residual, RATE, state)
    mean, rstd = statistics(z)
    y = (z - mean[:, None]) * rstd[:, None] * weight + norm_bias
    dx, dresidual, dbias, dweight, dnorm_bias = reference.backward(
        dy, x, bias, residual, weight, mean, rstd, RATE, state
    )
    ours = (y, dx, dbias, dresidual, dweight, dnorm_bias)
    return dict(zip(NAMES, zip(ours, step(None), step(torch.float64), strict=True), strict=True))


def refused(rows: int, count: int, statistics: Statistics, dtype: torch.dtype) -> bool:
    try:
        testing.assert_draws_within_budget(lambda: draw(rows, statistics, dtype), count)
    except AssertionError:
        return True
    return False


def main(
    times: Annotated[int, typer.Option(min=1, help="how often each case is judged")] = 100,
    seed: Annotated[int, typer.Option(help="of the inputs")] = 0,
) -> None:
    """Print how many of so many verdicts refuse, by code, rows, dtype of x and draws."""
    torch.manual_seed(seed)
    table = Table(
        title=f"refused of {times}; 1 draw: largest error; 16 draws: root mean square over them of each one's largest"
    )
    for column in ("code", "rows", "x", "1 draw", "16 draws"):
        table.add_column(column)
    for name, statistics in {"right": rounded, **FAULTS}.items():
        for rows in (1, 7):
            for dtype in (torch.float32, torch.bfloat16):
                counts = [sum(refused(rows, n, statistics, dtype) for _ in range(times)) for n in (1, testing.FEW_ROWS)]
                table.add_row(name, str(rows), str(dtype).removeprefix("torch."), *map(str, counts))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
