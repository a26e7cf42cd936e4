"""dropout_add_norm against a float64 oracle written from torch's own functions."""

import pytest
import torch
import torch.nn.functional as F

from bertfast.ops import dropout_add_norm, rng
from bertfast.testing import assert_draws_within_budget, draws, leaves

EPS = 1e-12
# 768 is BERT-base, 64 a head, 257 has a tail in every vector width; 0, 1, 7 and 199 rows: nothing, one, less than a grain, many.
SIZES = [(0, 64), (1, 768), (7, 257), (199, 768), (33, 1)]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


def make(rows, cols, dtype, residual_dtype, bias=True, residual=True):
    x = torch.randn(rows, cols).to(dtype)
    return (
        x,
        torch.randn(cols).to(residual_dtype) if bias else None,
        torch.randn(rows, cols).to(residual_dtype) if residual else None,
        torch.randn(cols).to(residual_dtype),
        torch.randn(cols).to(residual_dtype),
    )


def oracle(x, bias, residual, weight, norm_bias, keep=None, rate=1.0):
    z = x if bias is None else x + bias
    if keep is not None:
        z = z * keep / rate
    z = z if residual is None else z + residual
    return F.layer_norm(z, z.shape[-1:], weight.to(z.dtype), norm_bias.to(z.dtype), EPS)


def run(function, inputs, dy):
    y = function(*inputs)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in inputs if t is not None]]


@pytest.mark.parametrize(("dtype", "residual_dtype"), DTYPES)
@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_parity(implementation, rows, cols, dtype, residual_dtype, p):
    def draw():
        inputs = make(rows, cols, dtype, residual_dtype)
        dy = torch.randn(rows, cols).to(residual_dtype)
        state = rng.new_rng("cpu") if p else None
        keep = rng.keep_rows(state, rows, cols, p) if p else None
        x, bias, residual, weight, norm_bias = inputs
        y, *saved = implementation.dropout_add_norm_fwd(x, bias, residual, weight, norm_bias, EPS, p, state)
        gradients = implementation.dropout_add_norm_bwd(dy, x, bias, residual, weight, *saved, p, state)
        dx, dresidual, dbias, dweight, dnorm_bias = gradients
        assert (y.dtype, dx.dtype, dresidual.dtype) == (residual_dtype, dtype, residual_dtype)

        def stock(*t):
            return oracle(*t, keep=keep, rate=rng.keep_rate_rows(p))

        ours = [y, dx, dbias, dresidual, dweight, dnorm_bias]
        eager, exact = run(stock, leaves(inputs), dy), run(stock, leaves(inputs, torch.float64), dy)
        names = ["y", "dx", "dbias", "dresidual", "dweight", "dnorm_bias"]
        return dict(zip(names, zip(ours, eager, exact, strict=True), strict=True))

    assert_draws_within_budget(draw, 1 if getattr(implementation, "interpreted", False) else draws(rows))


@pytest.mark.parametrize(("bias", "residual"), [(False, True), (True, False), (False, False)])
def test_absent_inputs(implementation, bias, residual):
    x, b, r, w, nb = make(7, 257, torch.float32, torch.float32, bias, residual)
    y, mean, rstd = implementation.dropout_add_norm_fwd(x, b, r, w, nb, EPS, 0.0, None)
    dx, dres, dbias, _, _ = implementation.dropout_add_norm_bwd(torch.ones_like(y), x, b, r, w, mean, rstd, 0.0, None)
    torch.testing.assert_close(y, oracle(x, b, r, w, nb), rtol=1e-5, atol=1e-5)
    assert dbias.numel() == (257 if bias else 0)
    assert dres.numel() == (x.numel() if residual else 0)
    assert dx.shape == x.shape


@pytest.mark.parametrize("wanted", [(0,), (1, 2), (3, 4), (0, 1, 2, 3, 4)])
def test_subsets_of_gradients_and_views(wanted):
    inputs = [t.detach() for t in make(12, 96, torch.float32, torch.float32)]
    inputs[0] = torch.randn(96, 12).t()  # not contiguous
    for i in wanted:
        inputs[i].requires_grad_()
    x, bias, residual, weight, norm_bias = inputs
    dropout_add_norm(x, residual, weight, norm_bias, bias=bias).square().sum().backward()
    mine = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    oracle(*inputs).square().sum().backward()
    for i, t in enumerate(inputs):
        assert (mine[i] is None) == (i not in wanted)
        if i in wanted:
            torch.testing.assert_close(mine[i], t.grad, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    inputs = leaves(make(3, 5, torch.float64, torch.float64))
    state = rng.new_rng("cpu")
    for p, s in ((0.0, None), (0.4, state)):

        def function(x, bias, residual, weight, norm_bias, p=p, s=s):
            return dropout_add_norm(x, residual, weight, norm_bias, bias=bias, eps=1e-5, dropout_p=p, rng=s)

        assert torch.autograd.gradcheck(function, inputs)


def test_repeats_and_threads(threads):
    x, bias, residual, weight, norm_bias = leaves(make(300, 257, torch.float32, torch.float32))
    state = rng.new_rng("cpu")

    def step():
        y = dropout_add_norm(x, residual, weight, norm_bias, bias=bias, dropout_p=0.1, rng=state)
        return [y, *torch.autograd.grad(y.square().sum(), (x, bias, residual, weight, norm_bias))]

    first = step()
    for count in (1, 2, 3, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))


def test_opcheck():
    state = rng.new_rng("cpu")
    for p, s in ((0.0, None), (0.2, state)):
        args = make(5, 24, torch.float32, torch.float32)
        torch.library.opcheck(torch.ops.bertfast.dropout_add_norm_fwd.default, (*leaves(args), EPS, p, s))
        x, bias, residual, weight, norm_bias = args
        y, mean, rstd = torch.ops.bertfast.dropout_add_norm_fwd(x, bias, residual, weight, norm_bias, EPS, p, s)
        torch.library.opcheck(
            torch.ops.bertfast.dropout_add_norm_bwd.default, (y, x, bias, residual, weight, mean, rstd, p, s)
        )


def test_compile(backend):
    args = leaves(make(6, 32, torch.float32, torch.float32))

    def step(x, bias, residual, weight, norm_bias):
        y = dropout_add_norm(x, residual, weight, norm_bias, bias=bias, dropout_p=0.1, rng=state)
        return torch.autograd.grad(y.square().sum(), (x, weight))

    state = rng.new_rng("cpu")
    y = torch.compile(lambda *t: dropout_add_norm(t[0], t[2], t[3], t[4], bias=t[1]), fullgraph=True, backend=backend)(
        *args
    )
    y.square().sum().backward()
    torch.testing.assert_close(y, dropout_add_norm(args[0], args[2], args[3], args[4], bias=args[1]))
    assert all(t.grad is not None for t in args)
    assert all(torch.equal(a, b) for a, b in zip(step(*args), step(*args), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"weight": torch.ones(5)}, "weight must have shape"), ({"residual": torch.ones(2, 8)}, "residual has shape")],
)
def test_bad_shapes(change, message):
    good = {"x": torch.ones(3, 8), "residual": torch.ones(3, 8), "weight": torch.ones(8), "norm_bias": torch.ones(8)}
    with pytest.raises(ValueError, match=message):
        dropout_add_norm(**{**good, **change})


def test_backward_takes_statistics_of_any_stride(implementation):
    x, _, _, weight, _ = make(300, 33, torch.float32, torch.float32)
    dy, one = torch.randn_like(x), torch.ones(1)
    for mean, rstd in ((one.expand(300), one.expand(300)), (torch.randn(600)[::2], torch.rand(600)[::2])):
        args = (dy, x, None, None, weight)
        found = implementation.dropout_add_norm_bwd(*args, mean, rstd, 0.0, None)
        wanted = implementation.dropout_add_norm_bwd(*args, mean.contiguous(), rstd.contiguous(), 0.0, None)
        torch.testing.assert_close(found, wanted)


def test_float16_takes_the_reference():
    x = torch.randn(4, 16).half()
    y = dropout_add_norm(x, None, torch.ones(16).half(), torch.zeros(16).half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), F.layer_norm(x.float(), (16,)), rtol=2e-3, atol=2e-3)
