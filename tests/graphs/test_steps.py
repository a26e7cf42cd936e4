"""Captured procedures: what is kept, what goes, when they are due, whose turn it is."""

import pytest
import torch
from stepping import SteppingTape
from torch.nn import Parameter

from bertfast.graphs import backend as backends
from bertfast.graphs import capturing, steps


@pytest.fixture
def tape():
    return SteppingTape()


@pytest.fixture
def total():
    return torch.zeros(3)


def test_capturing_changes_nothing_and_replaying_does(tape, total):
    made = steps.Procedures(tape, 4)
    state = torch.get_rng_state()
    made.capture("key", lambda: total.add_(torch.rand(3)))
    assert not total.any()
    assert torch.equal(state, torch.get_rng_state())
    for _ in range(2):
        made.replay("key")
    torch.set_rng_state(state)
    assert torch.equal(total, torch.rand(3) + torch.rand(3))
    assert "key" in made
    assert len(made) == 1


def test_gradients_are_written_and_added_to(tape):
    weight, x = Parameter(torch.tensor([1.0, 2.0])), torch.tensor([3.0, 4.0])
    made = steps.Procedures(tape, 4)
    made.capture("first", lambda: (weight * x).square().sum().backward())
    gradient = weight.grad
    made.capture("further", lambda: (weight * x).square().sum().backward())
    assert weight.grad is gradient
    for numbers in ([3.0, 4.0], [5.0, 6.0]):
        x.copy_(torch.tensor(numbers))
        once = 2 * weight.detach() * x**2
        made.replay("first")
        assert torch.equal(gradient, once)
        made.replay("further")
        assert torch.equal(gradient, 2 * once)


def test_a_procedure_is_due_when_all_of_a_step_came(tape, total):
    made = steps.Procedures(tape, 4)
    assert not made.are_due(["a", "b"])
    made.came(["a"])
    assert not made.are_due(["a", "b"])
    made.came(["b"])
    assert made.are_due(["a", "b"])
    made.capture("c", total.zero_)
    assert made.are_due(["a", "c"]), "one that is captured may be beside one that is due"


def test_bounds(tape, total):
    """The least recently used go, but for what the step needs and what others depend on; then nothing is captured for a while."""
    made = steps.Procedures(tape, 2)
    made.capture("kept", total.zero_, keep=True)
    for key in "abc":
        made.came(key)
        made.capture(key, lambda: total.add_(1))
    made.replay("a")
    made.make_room("c")
    assert [key for key in ("kept", "a", "b", "c") if key in made] == ["kept", "a", "c"]
    made.came("d")
    assert not made.are_due("d")
    assert not any(made.are_due("d") for _ in range(steps._PAUSE - 1))
    assert made.are_due("d")
    made.make_room("ac")
    assert len(made) == 3
    made.clear()
    assert len(made) == 0
    assert not made.are_due("d"), "what came is forgotten too"


def test_graphs_that_go_are_reset_when_the_turn_is_over(tape, total):
    reset = []

    class Graph(backends.Graph):
        outputs, nbytes = (), 7

        def replay(self, function):
            function()

        def reset(self):
            reset.append(True)

    tape.capture = lambda function, pool: Graph()
    made = steps.Procedures(tape, 2)
    assert tape.begin_capture()
    made.capture("a", total.zero_)
    made.capture("b", total.zero_)
    assert made.nbytes == 14
    made.clear()
    assert not reset, "the device may still run them"
    tape.end()
    assert len(reset) == 2


def test_what_is_captured_is_of_the_pool_of_training(tape, total):
    pools = []

    def capture(function, pool):
        pools.append(pool)
        return SteppingTape.capture(tape, function, pool)

    tape.capture = capture
    steps.Procedures(tape, 2).capture("a", total.zero_)
    assert pools == [backends.TRAINING]


def test_a_failed_capture_leaves_the_others(tape, total):
    tape.fail_at = (2,)
    made = steps.Procedures(tape, 4)
    made.capture("a", lambda: total.add_(1))
    with pytest.raises(RuntimeError, match="not permitted"):
        made.capture("b", lambda: total.add_(10))
    assert "b" not in made
    made.replay("a")
    assert total.tolist() == [1.0] * 3


def test_whether_tensors_lie_where_they_lay(tape):
    made, weight = steps.Procedures(tape, 2), Parameter(torch.ones(3))
    assert not made.are_current([weight, None]), "nothing is known yet"
    made.remember([weight, None])
    with torch.no_grad():
        weight.mul_(2)
    assert made.are_current([weight, None])
    assert not made.are_current([weight, torch.zeros(3)])
    weight.data = torch.ones(3)
    assert not made.are_current([weight, None])


def test_the_generator_goes_back():
    before = steps.Generator(torch.device("cpu"))
    first = torch.rand(4)
    before.restore()
    assert torch.equal(first, torch.rand(4))


def test_differing_numbers_are_counted_by_their_bits():
    nan = float("nan")
    a = [torch.tensor([1.0, nan, 0.0]), torch.tensor([2.0], dtype=torch.float64)]
    assert steps.differing(a, [t.clone() for t in a]) == 0, "NaN has bits too"
    assert steps.differing(a, [torch.tensor([1.0, nan, -0.0]), torch.tensor([2.5], dtype=torch.float64)]) == 2


def test_out_of_memory_behind_another_error():
    assert capturing.is_out_of_memory(torch.OutOfMemoryError("none left"))
    assert not capturing.is_out_of_memory(RuntimeError("no"))
    later = RuntimeError("operation failed due to a previous error during capture")
    later.__context__ = torch.OutOfMemoryError("none left")
    assert capturing.is_out_of_memory(later)
