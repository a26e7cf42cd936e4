"""dropout_add_norm's passes that write FP8 as well: numbers, transposed copies, largest magnitudes, and the same dropout."""

import pytest
import torch
import torch.nn.functional as F
from fp8_numbers import E4M3, E5M2, assert_nearest, bits

from bertfast.ops import fp8, rng
from bertfast.testing import assert_within_budget, leaves

EPS = 1e-12
# Rows and columns: nothing, odd, BERT-base with words of the transposed copy that end within a tile, columns past a power of two.
SIZES = [(0, 64), (23, 257), (80, 768), (20, 1030)]
KINDS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


@pytest.fixture(params=["reference", "triton"])
def implementation(request):
    """As everywhere, without the CPU's: there the references run."""
    if request.param == "reference":
        return torch.ops.bertfast_reference
    request.getfixturevalue("poisoned")
    return request.getfixturevalue("triton_ops")


def make(size, kind, stream):
    """x, bias, residual, weight, norm_bias."""
    vectors = [torch.randn(size[1]).to(stream) for _ in range(3)]
    return torch.randn(size).to(kind), vectors[0], torch.randn(size).to(stream), vectors[1], vectors[2]


def stock(x, bias, residual, weight, norm_bias, keep, rate):
    z = (x if bias is None else x + bias) * keep / rate
    z = z if residual is None else z + residual
    return F.layer_norm(z, z.shape[-1:], weight.to(z.dtype), norm_bias.to(z.dtype), EPS)


def dropout(size, p):
    """rng, which elements are kept, and the rate."""
    if not p:
        return None, torch.ones(size, dtype=torch.bool), 1.0
    state = rng.new_rng("cpu")
    return state, rng.keep_rows(state, *size, p), rng.keep_rate_rows(p)


def gradients(inputs, dy, keep, rate, dtype=None):
    tensors = leaves(inputs, dtype)
    y = stock(*tensors, keep, rate)
    y.backward(dy.to(y.dtype))
    return [t.grad for t in tensors]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("p", "dtype"), [(0.0, E5M2), (0.3, E4M3)])
@pytest.mark.parametrize("size", SIZES)
def test_forward(implementation, size, p, kinds, dtype):
    kind, stream = kinds
    inputs, (state, keep, rate) = make(size, kind, stream), dropout(size, p)
    scale, amax = torch.tensor(0.02), torch.tensor(0.25)
    y, mean, rstd, y8, y8t = implementation.fp8_norm_fwd(*inputs, EPS, p, state, scale, amax, dtype, True)
    exact = stock(*(t.double() for t in inputs), keep, rate)
    assert (y.dtype, mean.dtype, rstd.dtype, y8.dtype) == (stream, torch.float32, torch.float32, dtype)
    assert_within_budget(y, stock(*inputs, keep, rate).to(stream), exact, "y")
    assert_nearest(y8, exact, 0.02, 1e-5 * (1 + exact.abs()), "y8")
    assert torch.equal(bits(y8t), bits(y8.t()))
    assert float(amax) == pytest.approx(max([0.25, *exact.abs().flatten().tolist()]), rel=1e-5)


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("p", "dtype"), [(0.0, E5M2), (0.3, E4M3)])
@pytest.mark.parametrize("size", SIZES)
def test_backward(implementation, size, p, kinds, dtype):
    kind, stream = kinds
    inputs, (state, keep, rate) = make(size, kind, stream), dropout(size, p)
    x, bias, residual, weight, _ = inputs
    dy, scale, amax = torch.randn(size).to(stream), torch.tensor(0.01), torch.tensor(0.0)
    _, mean, rstd = torch.ops.bertfast_reference.dropout_add_norm_fwd(*inputs, EPS, p, state)
    dx8, dx8t, *others = implementation.fp8_norm_bwd(
        dy, x, bias, residual, weight, mean, rstd, p, state, scale, amax, dtype, True
    )
    exact, exact_dbias, exact_dresidual, *exact_others = gradients(inputs, dy, keep, rate, torch.float64)
    eager = gradients(inputs, dy, keep, rate)
    assert_nearest(dx8, exact, 0.01, 1e-4 * (1 + exact.abs()), "dx8")
    assert dx8.float()[~keep].count_nonzero() == 0
    assert torch.equal(bits(dx8t), bits(dx8.t()))
    assert float(amax) == pytest.approx(max([0.0, *exact.abs().flatten().tolist()]), rel=1e-4)
    names = ("dresidual", "dbias", "dweight", "dnorm_bias")
    oracles = (exact_dresidual, exact_dbias, *exact_others)
    for name, ours, theirs, oracle in zip(names, others, (eager[2], eager[1], *eager[3:]), oracles, strict=True):
        assert ours.dtype == stream
        assert_within_budget(ours, theirs, oracle, name)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_rows(implementation, size, kinds, dtype):
    inputs = make(size, *kinds)
    y, y8, scale = implementation.fp8_norm_rows(*inputs, EPS, 0.0, None, dtype)
    exact = stock(*(t.double() for t in inputs), torch.ones(size), 1.0)
    assert_within_budget(y, stock(*inputs, torch.ones(size), 1.0).to(kinds[1]), exact, "y")
    largest = exact.abs().amax(1, keepdim=True) if size[0] else exact[:, :1]
    torch.testing.assert_close(scale.double(), largest / fp8.LARGEST[dtype], rtol=1e-5, atol=0)
    assert_nearest(y8, exact, scale.double(), 1e-5 * (1 + exact.abs()), "y8")


@pytest.mark.parametrize("given", [(False, True), (True, False), (False, False)])
def test_absent_inputs(implementation, given):
    x, bias, residual, weight, norm_bias = make((16, 257), torch.float32, torch.float32)
    bias, residual = bias if given[0] else None, residual if given[1] else None
    scaling = (torch.tensor(0.02), torch.tensor(0.0), E4M3, True)
    y, mean, rstd, _, _ = implementation.fp8_norm_fwd(x, bias, residual, weight, norm_bias, EPS, 0.0, None, *scaling)
    torch.testing.assert_close(y, stock(x, bias, residual, weight, norm_bias, 1.0, 1.0), rtol=1e-5, atol=1e-5)
    args = (torch.ones_like(y), x, bias, residual, weight, mean, rstd, 0.0, None)
    dx8, dx8t, dresidual, dbias, _, _ = implementation.fp8_norm_bwd(*args, *scaling)
    assert (dx8.shape, dx8t.shape) == ((16, 257), (257, 16))
    assert dbias.numel() == (257 if given[0] else 0)
    assert dresidual.numel() == (x.numel() if given[1] else 0)


@pytest.mark.parametrize("rows", [7, 32])
def test_without_a_transposed_copy_and_views(implementation, rows):
    x, residual, dy = torch.randn(96, rows).t(), torch.randn(rows, 192)[:, ::2], torch.randn(1, 96).expand(rows, 96)
    weight, mean, rstd = torch.randn(192)[::2], torch.zeros(1).expand(rows), torch.ones(2 * rows)[::2]
    amax, scale, results = torch.zeros(4), torch.tensor(0.02), []
    for number, (transposed, plain) in enumerate(((False, lambda t: t), (True, lambda t: t.contiguous()))):
        tail = (plain(weight), plain(weight), EPS, 0.0, None, scale, amax[2 * number], E4M3, transposed)
        forward = implementation.fp8_norm_fwd(plain(x), None, plain(residual), *tail)
        tail = (plain(mean), plain(rstd), 0.0, None, scale, amax[2 * number + 1], E4M3, transposed)
        backward = implementation.fp8_norm_bwd(plain(dy), plain(x), None, plain(residual), plain(weight), *tail)
        results.append((forward[3], backward[0]))
        assert forward[4].numel() == backward[1].numel() == transposed * x.numel()
    for alone, whole in zip(*results, strict=True):
        assert torch.equal(bits(alone), bits(whole))
    assert torch.equal(amax[:2], amax[2:])


@pytest.mark.parametrize("rows", [5, 16])
def test_nan_shows_in_its_row_and_in_amax(implementation, rows):
    x, bias, residual, weight, norm_bias = make((rows, 96), torch.float32, torch.float32)
    x[2, 5] = float("nan")
    scale, amax = torch.tensor(0.02), torch.zeros(2)
    args = (x, bias, residual, weight, norm_bias, EPS, 0.0, None)
    _, mean, rstd, y8, y8t = implementation.fp8_norm_fwd(*args, scale, amax[0], E4M3, True)
    assert torch.equal(y8.float().isnan().all(1), torch.arange(rows) == 2)
    assert torch.equal(y8t.float().isnan().all(0), torch.arange(rows) == 2)
    args = (torch.ones_like(x), x, bias, residual, weight, mean, rstd, 0.0, None)
    dx8, *_ = implementation.fp8_norm_bwd(*args, scale, amax[1], E5M2, False)
    assert torch.equal(dx8.float().isnan().all(1), torch.arange(rows) == 2)
    assert bool(amax.isnan().all())


def test_too_large_is_clamped(implementation):
    x, bias, residual, weight, norm_bias = make((16, 64), torch.float32, torch.float32)
    amax = torch.tensor(0.0)
    args = (x, bias, residual, 1e6 * weight, norm_bias, EPS, 0.0, None, torch.tensor(1.0), amax, E4M3, False)
    _, _, _, y8, _ = implementation.fp8_norm_fwd(*args)
    assert float(y8.float().abs().max()) == 448
    assert 1e6 < float(amax) < 1e8


def test_the_same_elements_are_dropped_as_by_dropout_add_norm(implementation):
    x, bias, residual, weight, norm_bias = make((48, 768), torch.bfloat16, torch.bfloat16)
    state, keep, _ = dropout((48, 768), 0.1)
    args = (x, bias, residual, weight, norm_bias, EPS, 0.1, state)
    y, mean, rstd, *_ = implementation.fp8_norm_fwd(*args, torch.tensor(0.02), torch.tensor(0.0), E4M3, False)
    others = implementation.dropout_add_norm_fwd(*args)
    for ours, theirs, tolerance in zip((y, mean, rstd), others, (2**-7, 1e-5, 1e-5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert 0.05 < float((~keep).float().mean()) < 0.15


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_opcheck(p, transposed):
    inputs, state = make((6, 24), torch.float32, torch.float32), rng.new_rng("cpu") if p else None
    ops, scaling = torch.ops.bertfast, (torch.tensor(0.01), torch.tensor(0.0), E5M2, transposed)
    torch.library.opcheck(ops.fp8_norm_fwd.default, (*inputs, EPS, p, state, *scaling))
    torch.library.opcheck(ops.fp8_norm_rows.default, (*inputs, EPS, p, state, E4M3))
    y, mean, rstd, *_ = ops.fp8_norm_fwd(*inputs, EPS, p, state, *scaling)
    x, bias, residual, weight, _ = inputs
    for given in ((bias, residual), (None, None)):
        torch.library.opcheck(ops.fp8_norm_bwd.default, (y, x, *given, weight, mean, rstd, p, state, *scaling))
