"""The budget of cases of few rows: right code passes whatever is drawn, and faults far below a tolerance are refused."""

import math

import pytest
import torch

from benchmarks.gpu import budget
from bertfast import testing


def test_draws_are_judged_together():
    oracle = torch.zeros(4, 3, dtype=torch.float64)
    value = torch.zeros(4, 3)
    value[0, 1], value[2, 0] = 3e-3, 4e-3
    assert testing.error_of_draws(value, oracle) == pytest.approx(math.sqrt((9e-6 + 16e-6) / 4), rel=1e-5)
    value[3, 2] = math.nan
    assert testing.error_of_draws(value, oracle) == math.inf
    assert testing.error_of_draws(value[:, :0], oracle[:, :0]) == 0.0


def test_few_rows_are_drawn_often():
    assert [testing.draws(rows) for rows in (0, 1, 15, 16, 199)] == [1, 16, 16, 1, 1]


def test_one_draw_is_judged_by_its_largest_error():
    exact = torch.zeros(2, 3, dtype=torch.float64)

    def draw(error):
        return lambda: {"y": (exact.float() + error, exact.float() + 1e-3, exact)}

    testing.assert_draws_within_budget(draw(1.9e-3), 1)
    with pytest.raises(AssertionError, match="y: error"):
        testing.assert_draws_within_budget(draw(2.1e-3), 1)


# As accurate as a GPU's root and division, over seeds: single draws are refused about 15 times in 100.
@pytest.mark.parametrize("seed", range(6))
def test_right_code_is_within_the_budget_of_single_rows(seed):
    torch.manual_seed(seed)
    testing.assert_draws_within_budget(lambda: budget.draw(1, budget.rounded), testing.draws(1))


@pytest.mark.parametrize("fault", list(budget.FAULTS))
def test_faults_are_beyond_the_budget_of_single_rows(fault):
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="over the budget"):
        testing.assert_draws_within_budget(lambda: budget.draw(1, budget.FAULTS[fault]), testing.draws(1))
