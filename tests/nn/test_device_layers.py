"""Layers without the dispatcher: the bits of the layers by their ops, whatever is repeated and whatever is not."""

import warnings

import pytest
import torch
from device_cases import KIND, WHERE, E, F, H, by_ops, directly, make_stack, own, tokens
from torch import nn

from bertfast import _library
from bertfast.nn import device, joined
from bertfast.nn.layout import Packed
from bertfast.nn.modules import BertEmbeddings, embed
from bertfast.triton import repeats, verified

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Checked(repeats.Repeat):
    """A repeat whose launches are such as the compiled kernel is for. The interpreter would take any."""

    def __init__(self, launches, *counting):
        checked = [(self.checking(call, self.of(args)), args, moves) for call, args, moves in launches]
        super().__init__(checked, *counting)

    def checking(self, call, traits):
        def checked(args):
            assert self.of(args) == traits
            call(args)

        return checked

    def of(self, args):
        from bertfast.triton import launch

        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        return launch._traits(tuple(args)), [tensor.shape for tensor in tensors], [t.is_contiguous() for t in tensors]


@pytest.fixture
def owned(triton_ops, monkeypatch):
    """Every op on CPU tensors is what runs on a GPU, and repeats are looked at."""
    own(monkeypatch)
    monkeypatch.setattr(repeats, "Repeat", Checked)


@pytest.fixture
def made_repeats(monkeypatch):
    """What `repeats.repeat` gave."""
    made = []
    original = repeats.repeat

    def repeat(*args):
        made.append(original(*args))
        return made[-1]

    monkeypatch.setattr(repeats, "repeat", repeat)
    return made


def assert_same(stack, x, layout, kind=KIND, **options):
    given = x.clone()
    y = directly(stack, x, layout, kind, **options)
    expected = by_ops(stack, x, layout, kind)
    assert torch.equal(x, given)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    assert not y.isnan().any()
    return y


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers(owned, poisoned, made_repeats, dtype, approximate):
    x, layout = tokens([17, 5], 20, dtype)
    assert_same(make_stack(dtype), x, layout, KIND._replace(approximate=approximate))
    assert len(made_repeats) == 4  # attention, two norms and GELU, each found by the first layer for the others
    assert None not in made_repeats


@pytest.mark.parametrize(
    ("lengths", "longest"),
    [
        ([0, 5, 0, 0, 7, 0], 9),  # absent sequences of a bucket
        ([5, 4, 4, 4, 1], 4 + 1),  # a tail of rows past the real ones, in pieces
        ([1], 1),
        ([130, 3], 130),  # longer than one tile of attention
        ([], 1),
    ],
)
def test_sequences(owned, poisoned, lengths, longest):
    x, layout = tokens(lengths, longest)
    assert_same(make_stack(), x, layout)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("read", [[0, 3, 6], [6, 0, 0], []])
def test_rows_that_are_read(owned, poisoned, depth, read):
    x, layout = tokens([3, 4], 4)
    rows = torch.tensor(read, dtype=torch.int64, device=WHERE)
    y = assert_same(make_stack(depth=depth), x, Packed(layout.cu_seqlens, 4, rows))
    assert y.shape == (len(read), E)


@pytest.mark.parametrize("head", [16, 48])
def test_heads_that_do_not_fill_the_width(owned, poisoned, head):
    x, layout = tokens([6, 2], 6)
    assert_same(make_stack(head=head), x, layout)


@pytest.mark.parametrize("read", [None, [1, 5]])
def test_autocast(owned, poisoned, read):
    """Products of float32 weights in bfloat16, and a residual stream that stays float32."""
    x, layout = tokens([6, 2], 6)
    rows = None if read is None else torch.tensor(read, device=WHERE)
    stack = make_stack()
    with torch.autocast(WHERE.type, torch.bfloat16):
        y = assert_same(stack, x, Packed(layout.cu_seqlens, 6, rows), dtype=torch.bfloat16)
    assert y.dtype == torch.float32


def test_a_residual_stream_that_widens(owned, poisoned):
    """The first norm adds a float16 product to a bfloat16 residual, which makes float32, so the second layer's launches differ."""
    x, layout = tokens([6, 2], 6, torch.bfloat16)
    stack = make_stack(torch.bfloat16)
    with torch.autocast(WHERE.type, torch.float16):
        y = directly(stack, x, layout, dtype=torch.float16)
        expected = by_ops(stack, x, layout)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)


def test_other_dtypes_than_the_kernels(owned, made_repeats):
    """float64 goes to the references inside the launchers, which launch nothing that could be repeated."""
    x, layout = tokens([6, 2], 6, torch.float64)
    assert_same(make_stack(torch.float64), x, layout)
    assert made_repeats == []


def test_layers_of_other_shapes(owned, poisoned, made_repeats):
    stack = make_stack()
    stack[1].intermediate.dense, stack[1].output.dense = nn.Linear(E, 96, device=WHERE), nn.Linear(96, E, device=WHERE)
    x, layout = tokens([6, 2], 6)
    assert_same(stack, x, layout)
    assert made_repeats == []


def test_parameters_that_a_launcher_copies(owned, poisoned, made_repeats):
    """A copy on its way to the kernel is another layer's next time, so such a launch is not repeated."""
    stack = make_stack()
    for layer in stack:
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
            norm.weight = nn.Parameter(torch.randn(2 * E, device=WHERE)[::2])
        layer.intermediate.dense.weight = nn.Parameter(torch.randn(E, F, device=WHERE).t() / 8)
    x, layout = tokens([6, 2], 6)
    assert_same(stack, x, layout)
    # GELU and attention go on being repeated.
    assert [made is None for made in made_repeats].count(True) == 2 * len(stack)


def test_one_parameter_in_two_places(owned, poisoned):
    stack = make_stack()
    stack[0].output.LayerNorm.bias = stack[0].output.LayerNorm.weight
    for layer in stack[1:]:
        layer.output.LayerNorm = stack[0].output.LayerNorm
        layer.output.dense = stack[0].output.dense
    x, layout = tokens([6, 2], 6)
    assert_same(stack, x, layout)


def test_no_biases_where_none_are_needed(owned, poisoned):
    stack = make_stack()
    for layer in stack:
        for linear in (layer.attention.output.dense, layer.output.dense):
            linear.bias = None
        for name in ("query", "key", "value"):
            getattr(layer.attention.self, name).bias = None
    x, layout = tokens([6, 2], 6)
    assert_same(stack, x, layout)


def test_rows_that_are_not_contiguous(owned, poisoned):
    x, layout = tokens([6, 2], 6)
    wide = torch.cat([x, x], 1)
    stack = make_stack()
    assert torch.equal(directly(stack, wide[:, :E], layout), directly(stack, x, layout))


@pytest.mark.parametrize("folder", ["attention", "dropout_add_norm", "linear_gelu"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
def test_ops_that_are_not_verified(triton_ops, monkeypatch, made_repeats, folder):
    """They run their references, as through the dispatcher."""
    monkeypatch.setattr(verified, "devices", lambda: (90,))
    monkeypatch.setattr(verified, "gate", lambda arch: {folder: "a test says so"})
    monkeypatch.setattr(_library, "_RESOLVED", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the notice that some ops run torch's functions
        own(monkeypatch)
        name = {
            "attention": "attention_fwd",
            "dropout_add_norm": "dropout_add_norm_fwd",
            "linear_gelu": "bias_gelu_fwd",
        }
        assert _library.resolved(name[folder], "CUDA") is _library.meaning(name[folder])
        x, layout = tokens([17, 5], 17, torch.bfloat16)
        assert_same(make_stack(torch.bfloat16), x, layout)
    assert len(made_repeats) == (2 if folder == "dropout_add_norm" else 3)


@pytest.mark.parametrize("bounds", [[0, 9, 8], [0, 4], [0, 1, 8]])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU tells at a later call")
def test_bad_bounds(owned, bounds):
    x, _ = tokens([8], 8)
    with pytest.raises(ValueError, match="attention: "):
        directly(make_stack(), x, Packed(torch.tensor(bounds, dtype=torch.int32), 6))


def test_rows_that_do_not_begin_on_16_bytes(owned, poisoned):
    """The first residual is the caller's, the others are memory of ours."""
    x, layout = tokens([6, 2], 6)
    shifted = torch.empty(x.numel() + 1, device=WHERE)[1:].view(x.shape).copy_(x)
    stack = make_stack()
    assert torch.equal(directly(stack, shifted, layout), directly(stack, x, layout))


def test_no_layer(owned):
    x, layout = tokens([8], 8)
    assert torch.equal(directly(nn.ModuleList(), x, layout), x)


def test_nothing_is_noted_after_a_fault(owned, monkeypatch):
    x, _ = tokens([8], 8)
    with pytest.raises((ValueError, RuntimeError)):
        directly(make_stack(), x, Packed(torch.zeros(0, dtype=torch.int32, device=WHERE), 8))
    assert repeats.noted == {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
def test_embed(owned, poisoned, dtype, types, ids):
    module = BertEmbeddings(50, E, 20, layer_norm_eps=1e-3).eval().to(WHERE, dtype)
    nn.init.normal_(module.LayerNorm.weight)
    nn.init.normal_(module.LayerNorm.bias)
    input_ids, positions = torch.randint(0, 50, (9,), device=WHERE), torch.arange(9, device=WHERE) % 5
    token_types = torch.randint(0, 2, (9,), device=WHERE).to(ids) if types else None
    y = device.embed(module, input_ids.to(ids), token_types, positions.to(ids))
    assert not y.requires_grad
    with torch.no_grad():
        assert torch.equal(y, embed(module, input_ids, token_types, positions))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU tells at a later call")
def test_embed_names_a_bad_id(owned):
    module = BertEmbeddings(50, E, 20).eval()
    with pytest.raises(IndexError, match="input_ids holds 50 at flattened position 1"):
        device.embed(module, torch.tensor([1, 50]), None, torch.arange(2))


def test_heads_are_those_of_the_kind(owned):
    """The scale and the heads come from the kind alone, not from the modules."""
    x, layout = tokens([6, 2], 6)
    stack = make_stack()
    other = KIND._replace(heads=2 * H, scale=0.3)
    assert torch.equal(directly(stack, x, layout, other), by_ops(stack, x, layout, other))
    assert not torch.equal(directly(stack, x, layout, other), directly(stack, x, layout))
    joined.clear(stack)
