"""Seeds of dropout on a GPU, whose generator gives other numbers in one draw than in several."""

import pytest
import torch
from captured import captured_on_cpu
from half_cases import at_once, encoder, result, rows
from torch.utils.checkpoint import checkpoint

from bertfast.nn import seeds
from bertfast.ops.rng import new_rng


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """The generator advances once for each draw, and elements are numbered within it."""
    original = torch.randint

    def counted(low, high, size, *, dtype, device):
        generator = torch.Generator().manual_seed(int(original(0, 2**31 - 1, (1,))))
        return original(low, high, size, dtype=dtype, device=device, generator=generator)

    monkeypatch.setattr(torch, "randint", counted)
    with captured_on_cpu():
        yield


def test_one_draw_is_not_several():
    torch.manual_seed(3)
    together = seeds.draw(3, "cpu")
    torch.manual_seed(3)
    assert not torch.equal(together, torch.stack([new_rng("cpu") for _ in range(3)]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_gradients_the_same_elements_are_dropped(checkpointing):
    stack = encoder(0.2)
    stack.gradient_checkpointing = checkpointing
    x, layout = rows(read=True)
    outputs = []
    for grad in (True, False):
        torch.manual_seed(3)
        with torch.set_grad_enabled(grad):
            outputs.append(at_once(stack, x, layout).detach())
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], at_once(stack, x, layout))


def test_a_reentrant_checkpoint_around_the_layers_computes_in_backward_what_it_gave():
    stack = encoder(0.2)
    x, layout = rows()

    def seeded(function):
        torch.manual_seed(3)
        return function()

    plain = result(lambda x: seeded(lambda: at_once(stack, x, layout)), stack, x)
    inside = result(
        lambda x: seeded(lambda: checkpoint(lambda x: at_once(stack, x, layout), x, use_reentrant=True)), stack, x
    )
    assert torch.equal(inside.output, plain.output)
    for name, gradient in plain.gradients.items():
        assert torch.equal(inside.gradients[name], gradient)
