"""The random fuzz of the drop-in, with a fresh seed each time, and what shows that its judge is neither deaf nor blind.

A failure prints the case and the command that runs it alone. BERTFAST_FUZZ_SEED and BERTFAST_FUZZ_CASES choose the first seed
and how many cases are run from there; `make fuzz` runs 2,000.
"""

import os
from collections import Counter

import pytest
import torch
from fuzz.capture_faults import FAULTS
from fuzz.draw import Case, draw
from fuzz.mutants import MUTANTS
from fuzz.run import Outcome, run
from torch import nn

from bertfast.convert.families import FAMILIES

SEED = int(os.environ["BERTFAST_FUZZ_SEED"])  # set by conftest, for all processes of a run alike
CASES = int(os.environ.get("BERTFAST_FUZZ_CASES", "150"))
GROUPS = min(CASES, max(10, CASES // 50))


@pytest.fixture(autouse=True)
def one_thread():
    """The models are so small that threads cost more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def said(outcome: Outcome) -> str:
    lines = [str(outcome.case), *(f"  >> {difference}" for difference in outcome.differences[:8])]
    return "\n".join([*lines, f"  alone: make fuzz CASES=1 SEED={outcome.case.seed}"])


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_drop_in_is_like_stock(group, record_property):
    outcomes = [run(seed) for seed in range(SEED + group, SEED + CASES, GROUPS)]
    routes = sum((outcome.routes for outcome in outcomes), Counter())
    record_property("calls", sum(outcome.calls for outcome in outcomes))
    record_property("routes", dict(routes.most_common(20)))
    wrong = [outcome for outcome in outcomes if outcome.differences]
    assert not wrong, f"{len(wrong)} of {len(outcomes)} cases differ from stock:\n" + "\n".join(map(said, wrong))


def test_cases_are_reproducible_and_many_go_the_fast_way():
    seeds = range(SEED, SEED + 40)
    assert [str(run(seed).case) for seed in seeds[:3]] == [str(run(seed).case) for seed in seeds[:3]]
    fast = [any("fast" in how for how in run(seed).routes) for seed in seeds]
    # Half of all cases, by measurement; a chance of less than one in a million for these 40.
    assert sum(fast) >= 5, "a fuzz of stock against stock shows nothing"


class Halves(nn.Linear):
    """A Linear that adds up its products in another order than stock's: right, with other rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = x.shape[-1] // 2
        tail = nn.functional.linear(x[..., middle:], self.weight[:, middle:], self.bias)
        return tail + nn.functional.linear(x[..., :middle], self.weight[:, :middle])


def in_halves(model: nn.Module, case: Case) -> nn.Module:
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Halves
    return model


KEEPS_CLASSES = {"user_linear", "lora", "lora_merged", "parametrised", "pruned", "user_layer"}


def test_the_judge_passes_right_code_that_rounds_otherwise():
    from fuzz.changes import WEIGHTS

    weights = {name: weight for name, weight in WEIGHTS.items() if name not in KEEPS_CLASSES}
    outcomes = [run(draw(seed, weights), in_halves) for seed in range(SEED, SEED + max(CASES // 4, 1))]
    wrong = [outcome for outcome in outcomes if outcome.differences]
    assert not wrong, "\n".join(map(said, wrong))


@pytest.mark.parametrize("fault", MUTANTS)
def test_the_judge_sees_a_planted_fault(fault):
    mutant = MUTANTS[fault]
    cases = [mutant.case(seed) for seed in range(6)]
    missed = [str(case) for case in cases if not run(case, mutant.make).differences]
    assert not missed, f"not seen in {len(missed)} of {len(cases)} cases:\n" + "\n".join(missed)


def test_the_judge_passes_the_same_cases_without_the_fault():
    for mutant in MUTANTS.values():
        outcome = run(mutant.case(1), lambda model, case: model)
        assert not outcome.differences, said(outcome)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_sees_a_fault_of_captured_calls(fault):
    broken, mutant = FAULTS[fault]
    for case in map(mutant.case, range(6)):
        right = run(case)
        assert not right.differences, said(right)
        base = FAMILIES[case.family].model.__name__
        assert right.routes[f"{base}: fast, from ids to hidden states: replayed"] >= 1
        with broken():
            assert run(case).differences, f"not seen:\n{case}"
