"""Training in FP8 in a loop of one's own, layers captured forward and backward; a whole inference call in FP8, captured."""

import copy

import pytest
import torch
from stack_cases import CAPTURED, FIRST, LENGTHS, REPLAYED, assert_equal, encoder, rows_of, run, step

from bertfast.models import BertConfig, BertModel
from bertfast.nn import device as devices
from bertfast.nn.fp8_state import Recipe, state_of

UNKNOWN = "eager: its FP8 scales are known after the first backward"


pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(params=[0.0, 0.1], ids=["no dropout", "dropout"])
def two(request):
    """The same stack twice, in bfloat16, its first two of three layers in FP8."""
    layers = encoder(request.param, torch.bfloat16, layers=3)
    layers.fp8 = Recipe(history=3)
    return layers, copy.deepcopy(layers)


def state(layers):
    return state_of(layers, layers.fp8, len(layers.layer), torch.device("cpu"))


def test_bits_and_scales_are_those_of_eager_calls(two):
    """Over steps whose numbers grow, so that scales move on."""
    captured, eager = two
    for number, how in enumerate((UNKNOWN, FIRST, CAPTURED, REPLAYED, REPLAYED, REPLAYED)):
        x, layout = rows_of(LENGTHS, number, torch.bfloat16)
        x = (x.detach() * (1 + number)).requires_grad_()
        again = x.detach().clone().requires_grad_()
        assert_equal(step(captured, x, layout, captured=True, how=how), step(eager, again, layout, captured=False))
        assert state(captured).knows_scales == state(eager).knows_scales
        for name, tensor in state(captured).tensors().items():
            assert torch.equal(tensor, state(eager).tensors()[name]), (number, name)


def test_weights_are_followed(two):
    captured, eager = two
    for number, how in enumerate((UNKNOWN, FIRST, CAPTURED, REPLAYED, REPLAYED)):
        with torch.no_grad():
            for layers in two:
                layers.layer[0].intermediate.dense.weight.mul_(1.1)
        x, layout = rows_of(LENGTHS, number, torch.bfloat16)
        again = x.detach().clone().requires_grad_()
        assert_equal(step(captured, x, layout, captured=True, how=how), step(eager, again, layout, captured=False))


def test_another_recipe_is_another_graph(two):
    layers, _ = two
    x, layout = rows_of(LENGTHS, 0, torch.bfloat16)
    for how in (UNKNOWN, FIRST, CAPTURED, REPLAYED):
        step(layers, x, layout, captured=True, how=how)
    layers.fp8 = None
    step(layers, x, layout, captured=True, how=FIRST)
    layers.fp8 = Recipe(history=3, gradients=torch.float8_e4m3fn)
    step(layers, x, layout, captured=True, how=UNKNOWN)


def test_two_forwards_before_a_backward(two):
    layers, _ = two
    x, layout = rows_of(LENGTHS, 0, torch.bfloat16)
    for how in (UNKNOWN, FIRST, CAPTURED):
        step(layers, x, layout, captured=True, how=how)
    torch.manual_seed(7)
    one, how = run(layers, x, layout)
    assert how == REPLAYED
    moved = state(layers).scale.clone()
    torch.manual_seed(7)
    two, how = run(layers, x, layout)  # on the scales of the first
    assert how.startswith("eager")
    assert torch.equal(one, two)
    assert torch.equal(state(layers).scale, moved)


def model_of(**options):
    torch.manual_seed(0)
    model = BertModel(BertConfig(60, 32, 3, 2, 64, max_position_embeddings=40, **options)).bfloat16().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def test_captured_inference(device):
    model, eager = model_of(), model_of()
    plain = model_of()
    for each in (model, eager):
        each.set_precision("fp8")
    eager.graph_limits = type(eager.graph_limits)(max_graphs=0)
    for number in range(4):
        ids = torch.randint(0, 60, (3, 8), generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            if number == 3:  # seen by a replay too
                for each in (model, eager, plain):
                    each.encoder.layer[1].output.dense.weight.data.mul_(-1)
            rows, expected, bfloat16 = (each(ids).last_hidden_state for each in (model, eager, plain))
        assert torch.equal(rows, expected)
        apart = float((rows - bfloat16).float().norm() / bfloat16.float().norm())
        assert 0 < apart < 0.2
    model.set_precision(None)
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, bfloat16)


def test_precision_of_a_model():
    model = model_of()
    with pytest.raises(ValueError, match=r'precision must be None .* or "fp8", got \'int4\''):
        model.set_precision("int4")
    model.set_precision("fp8", Recipe(last=0))
    assert (model.encoder.infer_fp8, model.encoder.fp8) == (True, Recipe(last=0))
    model.set_precision(None)
    assert (model.encoder.infer_fp8, model.encoder.fp8) == (False, None)


def test_precision_of_a_model_without_a_gpu(monkeypatch):
    monkeypatch.setattr(devices, "KINDS", frozenset({"cuda"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch sees no GPU here\. It needs an NVIDIA GPU of sm_89"):
        model_of().set_precision("fp8")
