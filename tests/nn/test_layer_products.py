"""A layer's products where candidates with products of their own are chosen: asked for everything, in training and inference."""

import pytest
import torch
from captured import captured_on_cpu
from half_cases import at_once, encoder, result, rows

from bertfast import _library

NAMES = ("linear_fwd", "linear_add_dx", "linear_dweight", "linear_gelu_fwd", "linear_gelu_infer", "linear_dgelu")


@pytest.fixture
def chosen():
    """Candidates for every product are chosen; they compute as the references do.

    Gives the names of those that ran, and the functions by name: without them the owners are chosen.
    """
    ran: list[str] = []
    functions = {}

    def candidate(name):
        def function(*args):
            ran.append(name)
            return _library.meaning(name)(*args)

        function.__module__, function.__qualname__ = "candidate", name
        return function

    with captured_on_cpu(), pytest.MonkeyPatch.context() as patch:
        functions.update({name: candidate(name) for name in NAMES})
        other = _library.resolved
        patch.setattr(_library, "resolved", lambda name, key: functions.get(name) or other(name, key))
        patch.setattr(_library, "_RUNNING", {})
        patch.setattr(_library, "_FUSED", {f"candidate:{name}" for name in NAMES})
        yield ran, functions


def test_training(chosen):
    ran, functions = chosen
    stack = encoder(depth=2)
    x, layout = rows()
    ours = result(lambda x: at_once(stack, x, layout), stack, x)
    layer = {"linear_fwd": 4, "linear_gelu_fwd": 1, "linear_dgelu": 1, "linear_dweight": 4, "linear_add_dx": 2}
    assert {name: ran.count(name) for name in ran} == {name: 2 * count for name, count in layer.items()}
    functions.clear()
    _library.forget("CUDA")
    plain = result(lambda x: at_once(stack, x, layout), stack, x)
    assert len(ran) == 24
    torch.testing.assert_close(ours.output, plain.output, rtol=1e-5, atol=1e-5)
    for name, gradient in ours.gradients.items():
        torch.testing.assert_close(gradient, plain.gradients[name], rtol=1e-4, atol=1e-4)


def test_autocast_asks_for_gradients_in_the_dtype_of_weights(chosen):
    ran, _ = chosen
    stack = encoder(depth=1)
    x, layout = rows()
    with torch.autocast("cpu", torch.bfloat16):
        ours = result(lambda x: at_once(stack, x, layout), stack, x)
    assert ran.count("linear_dweight") == 4
    assert all(gradient.dtype == torch.float32 for gradient in ours.gradients.values())


@pytest.mark.parametrize("read", [False, True])
def test_inference(chosen, read):
    ran, functions = chosen
    stack = encoder(depth=2).eval()
    x, layout = rows(read=read)
    x = x.detach()
    with torch.no_grad():
        ours = at_once(stack, x, layout)
        assert {name: ran.count(name) for name in ran} == {"linear_fwd": 6, "linear_gelu_infer": 2}
        functions.clear()
        _library.forget("CUDA")
        torch.testing.assert_close(ours, at_once(stack, x, layout), rtol=1e-5, atol=1e-5)
