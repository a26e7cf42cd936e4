"""Layers that train in FP8, beside the same maths composed of numbers that eager functions quantise."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from captured import captured_on_cpu
from half_cases import HEADS, E, at_once, encoder, result, rows

from bertfast.nn import fp8_state, joined, seeds, training
from bertfast.nn.fp8_state import Recipe, State, state_of
from bertfast.nn.parts import parts_of
from bertfast.ops import fp8
from bertfast.testing import rms_error

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Of two computations whose float32 sums are in other orders: an element at a boundary may be rounded to the next FP8 number.
FLIPS = 2e-3


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with captured_on_cpu():
        yield


@pytest.fixture
def any_dtype(monkeypatch):
    """Float32 layers take FP8 too, so that nothing but FP8 rounds."""
    monkeypatch.setattr(training, "why_not", lambda *_: None)


def quantised(x, dtype):
    scale = x.abs().max().float() / fp8.LARGEST[dtype]
    return fp8.quantise(x, scale, dtype).float() * scale


class Product(torch.autograd.Function):
    """x W^T of quantised numbers; in backward of the quantised gradient and the same, the weight's gradient where it is to be."""

    @staticmethod
    def forward(ctx, x, weight, recipe):
        x8, weight8 = quantised(x, E4M3), quantised(weight, E4M3)
        ctx.save_for_backward(x8 if recipe.weight_gradients else x, weight8)
        ctx.recipe = recipe
        return x8 @ weight8.t()

    @staticmethod
    def backward(ctx, dy):
        x, weight8 = ctx.saved_tensors
        dy8 = quantised(dy, ctx.recipe.gradients)
        return dy8 @ weight8, (dy8 if ctx.recipe.weight_gradients else dy).t() @ x, None


def composed(stack, x, layout, recipe):
    bounds = layout.cu_seqlens.tolist()
    for number, layer in enumerate(stack.layer):
        attention, mlp = parts_of(layer)
        in_fp8 = number < recipe.layers(len(stack.layer))

        def product(x, weight, in_fp8=in_fp8):
            return Product.apply(x, weight, recipe) if in_fp8 else x @ weight.t()

        projections = attention[:3]
        qkv = product(x, torch.cat([linear.weight for linear in projections]))
        qkv = qkv + torch.cat([linear.bias for linear in projections]) if projections[0].bias is not None else qkv
        heads = qkv.view(-1, 3, HEADS, E // HEADS)
        contexts = []
        for begin, end in pairwise(bounds):
            query, key, value = heads[begin:end].permute(1, 2, 0, 3)
            scores = query @ key.transpose(1, 2) * (E // HEADS) ** -0.5
            contexts.append((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
        dense, down = attention.dense, mlp.down
        context = torch.cat(contexts)
        if number == len(stack.layer) - 1 and layout.read is not None:
            context, x = context[layout.read], x[layout.read]
        x = attention.norm(product(context, dense.weight) + (0 if dense.bias is None else dense.bias) + x)
        hidden = F.gelu(product(x, mlp.up.weight) + mlp.up.bias, approximate=layer.approximate)
        x = mlp.norm(product(hidden, down.weight) + (0 if down.bias is None else down.bias) + x)
    return x


CASES = {
    "as by default": Recipe(current=True),
    "all layers": Recipe(current=True, last=0),
    "e4m3 gradients": Recipe(current=True, gradients=E4M3),
    "weight gradients in 16 bits": Recipe(current=True, last=0, weight_gradients=False),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_parity(any_dtype, name, read, act, bias):
    stack = encoder(act=act, bias=bias)
    x, layout = rows(read=read)
    recipe = CASES[name]
    expected = result(lambda x: composed(stack, x, layout, recipe), stack, x)
    stack.fp8 = recipe
    ours = result(lambda x: at_once(stack, x, layout), stack, x)
    stack.fp8 = None
    exact = result(lambda x: at_once(stack, x, layout), stack, x)
    assert rms_error(ours.output, expected.output) <= FLIPS * float(expected.output.square().mean().sqrt())
    for name, gradient in ours.gradients.items():
        if name.endswith("key.bias"):  # zeros but for rounding
            continue
        size = float(expected.gradients[name].square().mean().sqrt())
        assert rms_error(gradient, expected.gradients[name]) <= FLIPS * size, name
    # FP8 was really there: its own error is larger than what is allowed above.
    assert rms_error(exact.output, expected.output) > 2 * FLIPS * float(expected.output.square().mean().sqrt())


def test_delayed_scales_give_the_numbers_of_current_ones_on_the_same_batch(any_dtype):
    stack = encoder()
    x, layout = rows()
    stack.fp8 = Recipe(current=True)
    current = result(lambda x: at_once(stack, x, layout), stack, x)
    stack.fp8 = Recipe()
    for _ in range(3):  # the first finds the scales, the others take those of the steps before
        delayed = result(lambda x: at_once(stack, x, layout), stack, x)
        assert torch.equal(delayed.output, current.output)
        assert all(torch.equal(gradient, current.gradients[name]) for name, gradient in delayed.gradients.items())


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_drops_what_bfloat16_drops(checkpointing, last):
    stack = encoder(0.2, depth=3).bfloat16()
    stack.gradient_checkpointing = checkpointing
    x, layout = rows(torch.bfloat16, read=True)
    drawn = seeds.draw(9, "cpu")
    bfloat16 = result(lambda x: at_once(stack, x, layout, drawn), stack, x)
    others = at_once(stack, x, layout, seeds.draw(9, "cpu")).detach()
    stack.fp8 = Recipe(last=last)
    ours = result(lambda x: at_once(stack, x, layout, drawn), stack, x)
    size = float(bfloat16.output.float().square().mean().sqrt())
    assert 0 < rms_error(ours.output, bfloat16.output) < 0.15 * size < rms_error(others, bfloat16.output)
    with torch.no_grad():  # grad mode decides nothing
        assert torch.equal(at_once(stack, x, layout, drawn), ours.output)
    for name, gradient in ours.gradients.items():
        if not name.endswith("key.bias"):
            expected = bfloat16.gradients[name].float()
            assert rms_error(gradient, expected) < 0.5 * float(expected.square().mean().sqrt()), name


def test_gradients_of_some_parameters():
    """Those that are asked for are what they are when all are."""
    stack = encoder().bfloat16()
    x, layout = rows(torch.bfloat16)
    stack.fp8 = Recipe(last=0)
    every = result(lambda x: at_once(stack, x, layout), stack, x)
    for frozen in (("query",), ("weight",), ("bias",), ("LayerNorm",), ("layer.0.",)):
        for name, parameter in stack.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
        some = result(lambda x: at_once(stack, x, layout), stack, x)
        assert some.gradients.keys() == {n for n, p in stack.named_parameters() if p.requires_grad} | {"x"}
        assert all(torch.equal(gradient, every.gradients[name]) for name, gradient in some.gradients.items())


def scales_of(stack):
    return state_of(stack, stack.fp8, len(stack.layer), torch.device("cpu"))


def test_scales_move_on_before_the_forward_that_follows_a_backward():
    stack = encoder().bfloat16()
    stack.fp8 = Recipe(history=2)
    x, layout = rows(torch.bfloat16)
    state = scales_of(stack)
    assert not state.knows_scales
    at_once(stack, x, layout)
    at_once(stack, x, layout)  # without a backward in between
    assert not state.knows_scales
    assert (state.history == 0).all()
    assert (state.scale == 1).all()
    at_once(stack, x, layout).float().sum().backward()
    met = state.amax.clone()
    assert (met > 0).all()
    assert (state.history == 0).all()
    at_once(stack, x.detach() * 8, layout)
    assert state.knows_scales
    assert torch.equal(state.history[0].view_as(met), met)
    largest = torch.tensor([fp8.LARGEST[stack.fp8.format(tensor)] for tensor in range(8)])
    torch.testing.assert_close(state.scale, met / largest)
    assert float(state.amax[0, 0]) == 8 * float(met[0, 0])  # of this call, forward only
    assert (state.amax[0, 4:] == 0).all()


def test_several_batches_of_a_step_raise_one_amax():
    stack = encoder().bfloat16()
    stack.fp8 = Recipe()
    x, layout = rows(torch.bfloat16)
    with joined.held(stack) as copies:
        for factor in (1, 3, 2):
            at_once(stack, x.detach() * factor, layout).float().sum().backward()
        state = scales_of(stack)
        (amax,) = copies.amaxes()
        assert amax is state.amax
        assert float(amax[0, 0]) == float((x.detach() * 3).abs().max())
        assert (state.scale == 1).all()
        copies.refresh()
        assert float(state.scale[0, 0]) == pytest.approx(float((x.detach() * 3).abs().max()) / 448)
        assert (state.amax == 0).all()
        assert copies.nbytes() > 0


def test_weights_that_are_held_are_cast_by_refresh_alone():
    stack = encoder().bfloat16()
    stack.fp8 = Recipe(last=0)
    x, layout = rows(torch.bfloat16)
    with joined.held(stack) as copies:
        at_once(stack, x, layout).float().sum().backward()
        copies.refresh()
        before = at_once(stack, x, layout)
        with torch.no_grad():
            parts_of(stack.layer[0]).mlp.up.weight.mul_(-1)
        assert torch.equal(at_once(stack, x, layout), before)
        copies.refresh()
        assert not torch.equal(at_once(stack, x, layout), before)


def test_values_beyond_the_scale_are_clamped():
    stack = encoder().bfloat16()
    stack.fp8 = Recipe()
    x, layout = rows(torch.bfloat16)
    for _ in range(2):
        at_once(stack, x, layout).float().sum().backward()
    assert at_once(stack, x.detach() * 1000, layout).isfinite().all()


REASONS = {
    "products are in float32": (torch.device("cpu"), torch.float32, 48),
    "24 columns": (torch.device("cpu"), torch.bfloat16, 48, 24),
    "a meta device": (torch.device("meta"), torch.bfloat16, 48),
}


@pytest.mark.parametrize("said", REASONS)
def test_why_not(said):
    assert said in (fp8_state.why_not(*REASONS[said]) or "")
    assert fp8_state.why_not(torch.device("cpu"), torch.bfloat16, 48, 96) is None


def test_gpus_that_are_too_old(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for capability, said in (
        ((8, 0), "NVIDIA A100 is sm_80: FP8 products begin with sm_89"),
        ((8, 9), None),
        ((9, 0), None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert (fp8_state.unsupported(torch.device("cuda", 0)) or "").startswith(said or "")
        assert (fp8_state.unsupported(torch.device("cuda", 0)) is None) == (said is None)


def test_float32_products_stay_as_they_are():
    stack = encoder()
    x, layout = rows()
    before = at_once(stack, x, layout)
    stack.fp8 = Recipe()
    assert torch.equal(at_once(stack, x, layout), before)
    with torch.autocast("cpu", torch.bfloat16):
        in_fp8 = at_once(stack, x, layout)
        stack.fp8 = None
        assert in_fp8.dtype is torch.float32
        assert not torch.equal(in_fp8, at_once(stack, x, layout))


def test_recipe_of_no_layer():
    assert Recipe(last=3).layers(2) == 0
    assert isinstance(State(Recipe(), 1, torch.device("cpu")).tensors(), dict)
    stack = encoder(depth=1).bfloat16()
    x, layout = rows(torch.bfloat16)
    before = at_once(stack, x, layout)
    stack.fp8 = Recipe()
    assert torch.equal(at_once(stack, x, layout), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": -1}, "last must be 0 layers or more, got -1"),
        ({"history": 0}, "history must be 1 step or more, got 0"),
        ({"gradients": "e4m3"}, "gradients must be torch.float8_e5m2"),
    ],
)
def test_recipes_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


@pytest.mark.parametrize("largest", [float("inf"), float("nan"), 0.0])
def test_a_scale_is_finite_and_leaves_its_margin(largest):
    amax = torch.tensor([largest, 3.0])
    scale = fp8.scale_of(amax, 448.0, torch.tensor([0.5, 0.5]), 2.0)
    assert scale.tolist() == pytest.approx([0.5, 4 * 3.0 / 448])
