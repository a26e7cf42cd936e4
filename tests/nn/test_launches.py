"""Layers in training by the launchers themselves, in Triton's interpreter: repeated launches give the bits of launchers' calls."""

import pytest
import torch
from half_cases import E, at_once, encoder, result

from bertfast import _library
from bertfast.nn import device, launches, seeds
from bertfast.nn.layout import Packed
from bertfast.triton import counters, launch, repeats, verified

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the captured stack's tests")


@pytest.fixture
def own(triton_ops, monkeypatch):
    """Every op is its launcher."""
    monkeypatch.setattr(device, "KINDS", frozenset({"cpu"}))
    with verified.prefer(candidates=False):
        yield


def case(lengths, p, dtype=torch.float32):
    stack = encoder(p, depth=3).to(dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    x = torch.randn(sum(lengths), E).to(dtype).requires_grad_()
    layout = Packed(bounds, max(lengths))
    drawn = seeds.draw(9, "cpu") if p else None
    return stack, x, lambda: result(lambda x: at_once(stack, x, layout, drawn), stack, x)


@pytest.mark.parametrize(("lengths", "p", "dtype"), [((5, 8), 0.2, torch.float32), ((3, 7), 0.0, torch.bfloat16)])
def test_bits(own, poisoned, monkeypatch, lengths, p, dtype):
    made = []
    original = repeats.Repeat.__call__
    monkeypatch.setattr(repeats.Repeat, "__call__", lambda self, *values: made.append(self) or original(self, *values))
    _, _, run = case(lengths, p, dtype)
    repeated = run()
    # Of two more layers: attention, GELU and two norms forward; these and the sums of the joined biases backward.
    assert len(made) == 2 * (4 + 5)
    monkeypatch.setattr(launches.Launches, "run", lambda self, name, args, varying, **_: launches.run(name, args))
    called = run()
    assert len(made) == 18
    assert torch.equal(repeated.output, called.output)
    for name, gradient in repeated.gradients.items():
        assert torch.equal(gradient, called.gradients[name])


def test_bits_with_sums_that_end_in_their_own_launch(own, poisoned, monkeypatch):
    """Every launch of further layers is a repeated one with these candidates too, and on other counters none is."""
    made = []
    original = repeats.Repeat.__call__
    monkeypatch.setattr(repeats.Repeat, "__call__", lambda self, *values: made.append(self) or original(self, *values))
    ending = {"linear_bwd": "linear.ending_sums", "bias_gelu_bwd": "linear_gelu.cheap_erf"}
    resolved = _library.resolved

    def chosen(name, key):
        return _library.candidate_function(name, ending[name]) if name in ending else resolved(name, key)

    monkeypatch.setattr(_library, "resolved", chosen)
    _, _, run = case((5, 8), 0.2, torch.bfloat16)
    repeated = run()
    assert len(made) == 2 * (4 + 5)
    assert sum(bool(repeat._counting) for repeat in made) == 2 * 2
    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr(counters, "are_current", lambda x: False)
        called = run()
    assert len(made) == 2 * (4 + 5 - 2)
    for name, gradient in repeated.gradients.items():
        assert torch.equal(gradient, called.gradients[name])


def test_two_kernels_of_attention_are_repeated_with_the_sum_between_them(own, poisoned, monkeypatch):
    from bertfast.ops.attention import tuning

    monkeypatch.setattr(tuning, "single_block", lambda *args, **options: 0)
    names = []
    original = launch.launch

    def noted(kernel, *args, **options):
        names.append(getattr(kernel, "__name__", ""))
        return original(kernel, *args, **options)

    monkeypatch.setattr(launch, "launch", noted)
    _, _, run = case((6, 3), 0.2)
    repeated = run()
    calls = [name for name in names if name.startswith("attention_bwd")]
    assert len(calls) in (2, 6)  # the launcher's own; a repeat may go through `launch` or past it
    monkeypatch.setattr(launches.Launches, "run", lambda self, name, args, varying, **_: launches.run(name, args))
    called = run()
    for name, gradient in repeated.gradients.items():
        assert torch.equal(gradient, called.gradients[name])


def test_gradients_are_not_copied(own):
    """Nobody else holds them, so autograd keeps the very tensors that backward made."""
    stack, _, run = case((4, 4), 0.0)
    made = set()
    original = launches.Launches.run

    def noting(self, name, args, varying, **options):
        results = original(self, name, args, varying, **options)
        if name.endswith("_bwd"):
            made.update(result.data_ptr() for result in results if result.numel())
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launches.Launches, "run", noting)
        kept = {}
        for name, parameter in stack.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: kept.update({name: p.grad.data_ptr()}))
        run()
    of_norms = [name for name in kept if "LayerNorm" in name]
    assert len(of_norms) == 12
    assert all(kept[name] in made for name in of_norms)
