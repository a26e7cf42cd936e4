"""A stack whose products are the candidates in Gluon, on a CPU by the interpreter: layers make the first one's launches again."""

import copy

import pytest
import torch
from captured import captured_on_cpu
from half_cases import at_once, encoder, plainly, result, rows

pytest.importorskip("triton", reason="Triton is not installed")
from bertfast import _library
from bertfast.ops.linear import gluon as linear
from bertfast.ops.linear import gluon_launch
from bertfast.ops.linear_gelu import gluon as linear_gelu
from bertfast.testing import assert_within_budget, rms_error
from bertfast.triton import launch

CANDIDATES = {
    "linear_fwd": linear,
    "linear_add_dx": linear,
    "linear_dweight": linear,
    "linear_gelu_fwd": linear_gelu,
    "linear_gelu_infer": linear_gelu,
    "linear_dgelu": linear_gelu,
}
DEPTH = 3

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends a GPU")


@pytest.fixture
def gluon_products(triton_ops):
    """Chooses the candidates, whatever the size: (calls of their launchers by name, epilogues of the launches, the choice)."""
    calls: list[str] = []
    launches: list[int] = []
    chosen = [True]
    interpret, other = launch.gluon_interpreter, _library.resolved

    def counted(name):
        function = getattr(CANDIDATES[name], name)

        def call(*args):
            calls.append(name)
            return function(*args)

        call.__module__, call.__qualname__ = function.__module__, function.__qualname__
        return call

    functions = {name: counted(name) for name in CANDIDATES}

    def interpreted(kernel, grid, args, constants):
        launches.append(constants["EPILOGUE"])
        interpret(kernel, grid, args, constants)

    with captured_on_cpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "gluon_interpreter", interpreted)
        patch.setattr(_library, "_RUNNING", {})
        patch.setattr(gluon_launch, "LEAST_FILLED", 0.0)
        patch.setattr(linear, "LEAST_TOKENS", 1)
        patch.setattr(_library, "resolved", lambda name, key: (chosen[0] and functions.get(name)) or other(name, key))
        yield calls, launches, chosen


def test_training(gluon_products):
    calls, launches, chosen = gluon_products
    stack = encoder(depth=DEPTH).bfloat16()
    x, layout = rows(torch.bfloat16)
    ours = result(lambda x: at_once(stack, x, layout), stack, x)
    layer = {"linear_fwd": 4, "linear_gelu_fwd": 1, "linear_dgelu": 1, "linear_dweight": 4, "linear_add_dx": 2}
    assert {name: calls.count(name) for name in calls} == layer
    assert len(launches) == DEPTH * len(calls)
    chosen[0] = False
    _library.forget("CUDA")
    plain = result(lambda x: at_once(stack, x, layout), stack, x)
    wide, x = copy.deepcopy(stack).double(), x.detach().double().requires_grad_()
    exact = result(lambda x: plainly(wide, x, layout), wide, x)
    assert_within_budget(ours.output, plain.output, exact.output, "output", measure=rms_error)
    for name, gradient in ours.gradients.items():
        if not name.endswith("key.bias"):  # without rounding it is 0
            assert_within_budget(gradient, plain.gradients[name], exact.gradients[name], name, measure=rms_error)


def test_inference(gluon_products):
    calls, launches, chosen = gluon_products
    stack = encoder(depth=DEPTH).bfloat16().eval()
    x, layout = rows(torch.bfloat16)
    with torch.no_grad():
        ours = at_once(stack, x.detach(), layout)
        assert {name: calls.count(name) for name in calls} == {"linear_fwd": 3, "linear_gelu_infer": 1}
        assert len(launches) == DEPTH * len(calls)
        chosen[0] = False
        _library.forget("CUDA")
        torch.testing.assert_close(ours, at_once(stack, x.detach(), layout), rtol=0.05, atol=0.05)
