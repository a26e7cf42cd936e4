"""Prepacked products: the same numbers as the Linears, and never those of weights that have since changed."""

import copy
import gc
import io
import pickle
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bertfast.nn import prepack
from bertfast.ops import onednn, packed_linear

ACTIVATIONS = {"none": lambda y: y, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}


@pytest.fixture(autouse=True, params=["ours", "oneDNN", "plain"])
def branch(request, monkeypatch):
    """Every test with our own products, with oneDNN's, and with neither."""
    if request.param != "ours":
        monkeypatch.setattr(packed_linear, "available", lambda *_, **__: False)
    elif not all(packed_linear.available(dtype, 64) for dtype in (torch.float32, torch.bfloat16)):
        pytest.skip("this processor or build has not all of our own products")
    if request.param == "plain":
        monkeypatch.setattr(onednn, "available", lambda: False)
    elif request.param == "oneDNN" and not onednn.available():
        pytest.skip("this torch has no oneDNN entry points")
    with torch.no_grad():
        yield request.param


def linears(count=3, k=64, n=48, bias=True, dtype=torch.float32):
    return tuple(nn.Linear(k, n, bias=bias, dtype=dtype) for _ in range(count))


def expected(x, layers, activation="none"):
    y = torch.cat(
        [F.linear(x, m.weight.to(x.dtype), None if m.bias is None else m.bias.to(x.dtype)) for m in layers], -1
    )
    return ACTIVATIONS[activation](y)


def check(x, layers, activation="none"):
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if x.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(
        prepack.fused_linear(x, layers, activation), expected(x, layers, activation), **tolerance
    )


@pytest.mark.parametrize("rows", [0, 1, 7, 199])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers(rows, activation, dtype):
    for bias in (True, False):
        check(torch.randn(rows, 257).to(dtype), linears(k=257, n=33, bias=bias, dtype=dtype), activation)


def test_views_and_other_dtypes():
    layers = linears()
    check(torch.randn(64, 7).t(), layers)
    check(torch.randn(7, 64).double(), layers)
    layers[0].weight.data = torch.randn(64, 48).t()  # not contiguous
    layers[1].bias.data = torch.randn(96)[::2]
    check(torch.randn(7, 64), layers)


def half(p):
    p.mul_(0.5)


def half_unseen(p):
    p.data.mul_(0.5)


def columns(p):
    p.data[..., 1:] = 0  # an even stride through the matrix would see column 0 alone


def replace(p):
    p.data = torch.randn(p.shape)


def transpose(p):
    p.data = p.data.t() if p.dim() == 2 else p.data.flip(0)  # the same address and version


def shift(p):
    p.data = torch.randn(p.numel() + 1)[1:].view(p.shape)


@pytest.mark.parametrize("edit", [half, half_unseen, columns, replace, transpose, shift])
@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_edits_are_noticed(edit, which, name):
    layers, x = linears(n=64), torch.randn(5, 64)
    check(x, layers)
    edit(getattr(layers[which], name))
    check(x, layers)


def test_edits_of_odd_layouts_are_noticed():
    (layer,) = layers = linears(1)
    layer.weight.data = torch.randn(64, 48).t()
    check(torch.randn(5, 64), layers)
    layer.weight.data.mul_(0.5)
    check(torch.randn(5, 64), layers)


def test_new_parameters_and_state_dicts_are_noticed():
    layers, x = linears(), torch.randn(5, 64)
    check(x, layers)
    for layer, other in zip(layers, linears(), strict=True):
        layer.load_state_dict(other.state_dict())
    check(x, layers)
    for layer, other in zip(layers, linears(), strict=True):
        layer.load_state_dict(other.state_dict(), assign=True)
    check(x, layers)
    layers[1].weight = nn.Parameter(torch.randn(48, 64))
    check(x, layers)


def test_optimizer_steps_are_noticed():
    layers, x = linears(), torch.randn(5, 64)
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=0.1)
    for _ in range(3):
        check(x, layers)
        with torch.enable_grad():
            expected(x, layers).square().sum().backward()
        optimizer.step()
    check(x, layers)


def test_groups_of_the_same_owner_do_not_mix():
    a, b, c, d = linears(4)
    x = torch.randn(5, 64)
    for layers in ((a,), (a, b), (a, c), (a, b, c), (a, d, c), (a,)):
        check(x, layers)


def test_dtype_change(branch):
    layers = linears()
    module, x = nn.ModuleList(layers), torch.randn(5, 64)
    check(x, layers)
    check(x.bfloat16(), layers)  # autocast: fp32 weights, both copies stay
    both = prepack.memory(module)
    module.bfloat16()
    check(x.bfloat16(), layers)
    if branch == "oneDNN":
        assert prepack.memory(module) == 3 * 48 * 65 * 2
    if branch != "plain":
        assert both == 3 * prepack.memory(module) > 0  # the fp32 copy went with the fp32 weights


def test_old_storage_is_let_go():
    layers, x = linears(1), torch.randn(5, 64)
    check(x, layers)
    check(x.bfloat16(), layers)
    old = weakref.ref(layers[0].weight.untyped_storage())
    layers[0].weight = nn.Parameter(torch.randn(48, 64))
    check(x, layers)
    gc.collect()
    assert old() is None


def test_inference_mode():
    x = torch.randn(5, 64)
    with torch.inference_mode():
        layers = linears()  # no version counters
        check(x, layers)
        layers[0].weight.mul_(0.5)
        check(x, layers)
    outside = linears()
    with torch.inference_mode():
        check(x, outside)
    outside[0].weight.mul_(0.5)
    check(x, outside)
    with torch.enable_grad():
        assert not prepack.fused_linear(x, tuple(m.requires_grad_(False) for m in outside)).requires_grad


def test_copies_know_nothing_of_the_cache(branch):
    module, x = nn.ModuleList(linears()), torch.randn(5, 64)
    before = set(module[0].__dict__)
    check(x, tuple(module))
    assert set(module[0].__dict__) == before
    assert (prepack.memory(module) > 0) == (branch != "plain")
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert prepack.memory(twin) == 0
        twin[0].weight.mul_(2)
        check(x, tuple(twin))
    check(x, tuple(module))


def test_clear_and_lifetime():
    module, x = nn.ModuleList(linears()), torch.randn(5, 64)
    check(x, tuple(module))
    prepack.clear(module)
    assert prepack.memory(module) == 0
    check(x, tuple(module))
    gone, size = weakref.ref(module[0]), len(prepack._cache)
    del module
    gc.collect()
    assert gone() is None
    assert len(prepack._cache) < size


def test_owners_where_there_are_parameters_alone(branch):
    """Copies are found again by the layers' first parameter, go with it, and follow the weights."""
    module, x, size = nn.ModuleList(linears()), torch.randn(5, 64), len(prepack._cache)
    first = module[0].weight

    def leaves(module, first):
        owners = prepack.owners_of(first, len(module))
        return tuple(
            SimpleNamespace(weight=m.weight, bias=m.bias, owner=o) for m, o in zip(module, owners, strict=True)
        )

    check(x, leaves(module, first))
    kept = prepack.memory(module)
    assert (kept > 0) == (branch != "plain")
    module[1].weight.mul_(2)
    check(x, leaves(module, first))
    assert prepack.memory(module) == kept
    prepack.clear(module)
    assert prepack.memory(module) == 0
    check(x, leaves(module, first))
    assert len(prepack._cache) == size + 1
    del module, first
    gc.collect()
    assert len(prepack._cache) == size


def test_threads():
    """Readers race for the first build after each edit: every result belongs to the current weights."""
    layers, x = linears(), torch.randn(9, 64)
    wrong: list[Exception] = []

    def read():
        try:
            with torch.no_grad():
                for _ in range(20):
                    check(x, layers)
                    prepack.memory(layers[0])
        except Exception as error:
            wrong.append(error)

    for _ in range(4):
        layers[1].weight.data.mul_(-1)
        workers = [threading.Thread(target=read) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong


def test_bad_inputs():
    x = torch.randn(2, 64)
    with pytest.raises(ValueError, match="activation must be one of"):
        prepack.fused_linear(x, linears(1), "relu")
    with pytest.raises(ValueError, match="either all of the Linears have a bias"):
        prepack.fused_linear(x, (*linears(1), *linears(1, bias=False)))
