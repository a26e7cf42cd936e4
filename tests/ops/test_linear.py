"""linear, linear_gelu and the elementwise bias_gelu against float64; and the private oneDNN entry points being there."""

import pytest
import torch
import torch.nn.functional as F

from bertfast.ops import linear, linear_gelu, onednn
from bertfast.testing import assert_within_budget, leaves, rms_error


def make(rows, inputs, outputs, dtype):
    return (
        torch.randn(rows, inputs).to(dtype),
        (torch.randn(outputs, inputs) / 10).to(dtype),
        torch.randn(outputs).to(dtype),
    )


def run(function, inputs, dy):
    y = function(*inputs)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in inputs]]


FUNCTIONS = {
    "linear": (linear, F.linear),
    "gelu": (linear_gelu, lambda x, w, b: F.gelu(F.linear(x, w, b))),
    "tanh": (
        lambda x, w, b: linear_gelu(x, w, b, approximate="tanh"),
        lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"),
    ),
}


# rows, K, N: nothing, one row, odd sizes, more rows than columns, and sums long enough to be cut into pieces: 3072 inputs
# in forward, 2500 rows in the weight's gradient.
SIZES = [(0, 16, 8), (1, 768, 64), (7, 257, 33), (199, 64, 257), (40, 3072, 96), (2500, 48, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_parity_of_the_implementations(implementation, size, has_bias, dtype):
    x, weight, bias = make(*size, dtype)
    dy, inputs = torch.randn(size[0], size[2]).to(dtype), (x, weight, bias) if has_bias else (x, weight)
    y = implementation.linear_fwd(x, weight, bias if has_bias else None)
    grads = implementation.linear_bwd(dy, x, weight, has_bias, True, True)
    eager, exact = run(F.linear, leaves(inputs), dy), run(F.linear, leaves(inputs, torch.float64), dy)
    for name, o, e, e64 in zip(("y", "dx", "dweight", "dbias"), (y, *grads), eager, exact, strict=False):
        assert_within_budget(o, e, e64, name, measure=rms_error)
    absent = implementation.linear_bwd(dy, x, weight, False, False, False)
    assert [tuple(t.shape) for t in absent] == [(0,)] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_parity_inside_a_layer(implementation, size, wide, dtype):
    """What a layer's backward asks for: added to the residual's gradient, and in the weight's dtype with the bias's beside."""
    x, weight, _ = make(*size, dtype)
    dy = torch.randn(size[0], size[2]).to(dtype)
    kind = torch.float32 if wide else dtype
    before = torch.randn(x.shape).to(kind)
    total = before.clone()
    assert implementation.linear_add_dx(dy, weight, total) is None
    assert_within_budget(
        total, before + dy @ weight, before.double() + dy.double() @ weight.double(), "total", measure=rms_error
    )
    dweight, dbias = implementation.linear_dweight(dy, x, kind, True)
    assert dweight.dtype == dbias.dtype == kind
    exact = dy.double().t() @ x.double()
    assert_within_budget(dweight, (dy.to(kind).t() @ x.to(kind)), exact, "dweight", measure=rms_error)
    assert_within_budget(dbias, dy.to(kind).sum(0), dy.double().sum(0), "dbias", measure=rms_error)
    alone, absent = implementation.linear_dweight(dy, x, kind, False)
    assert torch.equal(alone, dweight)
    assert absent.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", list(FUNCTIONS))
def test_parity(kind, size, dtype):
    ours, stock = FUNCTIONS[kind]
    inputs = make(*size, dtype)
    dy = torch.randn(size[0], size[2]).to(dtype)
    found = run(ours, leaves(inputs), dy)
    eager, exact = run(stock, leaves(inputs), dy), run(stock, leaves(inputs, torch.float64), dy)
    for name, o, e, x in zip(("y", "dx", "dweight", "dbias"), found, eager, exact, strict=True):
        assert_within_budget(o, e, x, name, measure=rms_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("cols", [64, 257, 3])
def test_parity_bias_gelu(implementation, cols, tanh, dtype):
    pre, bias, dy = (torch.randn(19, cols).to(dtype) * 3, torch.randn(cols).to(dtype), torch.randn(19, cols).to(dtype))
    approximate = "tanh" if tanh else "none"

    def stock(p, b):
        return F.gelu(p + b, approximate=approximate)

    y = implementation.bias_gelu_fwd(pre, bias, tanh)
    dpre, dbias = implementation.bias_gelu_bwd(dy, pre, bias, tanh)
    eager, exact = run(stock, leaves((pre, bias)), dy), run(stock, leaves((pre, bias), torch.float64), dy)
    for name, o, e, x in zip(("y", "dpre", "dbias"), (y, dpre, dbias), eager, exact, strict=True):
        assert_within_budget(o, e, x, name)


def test_column_sum_of_long_chunks(triton_ops, poisoned, monkeypatch):
    # What many rows get, on few: chunks of 256, the last one short. Twice the same bits.
    from bertfast.triton import sums

    assert sums.chunk_rows(65536) == 256
    monkeypatch.setattr(sums, "chunk_rows", lambda rows: 256)
    x = torch.randn(600, 9).to("cuda" if torch.cuda.is_available() else "cpu")
    found = sums.column_sum(x)
    torch.testing.assert_close(found.double(), x.double().sum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(found, sums.column_sum(x))


def test_gelu_far_out(implementation):
    pre = torch.tensor([[-40.0, -9.0, -1e-8, 0.0, 9.0, 40.0, 0.5, float("nan")]])
    y = implementation.bias_gelu_fwd(pre, torch.zeros(8), False)
    torch.testing.assert_close(y[0, :6], F.gelu(pre[0, :6]), rtol=1e-6, atol=1e-7)
    assert y[0, 7].isnan()


def test_bias_gradient_does_not_depend_on_threads(threads):
    x, w, b = leaves(make(300, 64, 257, torch.float32))
    first = torch.autograd.grad(linear_gelu(x, w, b).square().sum(), b)[0]
    pre, dy = torch.randn(300, 257), torch.randn(300, 257)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(torch.ops.bertfast.bias_gelu_bwd(dy, pre, b.detach(), False))
    assert all(torch.equal(i, j) for other in found[1:] for i, j in zip(found[0], other, strict=True))
    assert first.shape == b.shape


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("kind", ["linear", "gelu"])
def test_subsets_of_gradients(kind, wanted):
    inputs = list(make(5, 12, 8, torch.float32))
    inputs[0] = torch.randn(12, 5).t()
    for i in wanted:
        inputs[i].requires_grad_()
    FUNCTIONS[kind][0](*inputs).sum().backward()
    mine = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    FUNCTIONS[kind][1](*inputs).sum().backward()
    for m, t in zip(mine, inputs, strict=True):
        assert (m is None) == (t.grad is None)
        if m is not None:
            torch.testing.assert_close(m, t.grad, rtol=1e-4, atol=1e-5)


def test_gradcheck():
    inputs = leaves(make(3, 4, 5, torch.float64))
    for ours, _ in FUNCTIONS.values():
        assert torch.autograd.gradcheck(ours, inputs)


def test_opcheck():
    x, w, b = make(5, 12, 8, torch.float32)
    ops = torch.ops.bertfast
    torch.library.opcheck(ops.linear_fwd.default, tuple(leaves((x, w, b))))
    torch.library.opcheck(ops.linear_bwd.default, (torch.randn(5, 8), x, w, True, True, True))
    torch.library.opcheck(ops.linear_add_dx.default, (torch.randn(5, 8), w.detach(), torch.randn(5, 12)))
    for sums in (False, True):
        args = torch.randn(5, 8).bfloat16(), torch.randn(5, 16).bfloat16(), torch.float32, sums
        torch.library.opcheck(ops.linear_dweight.default, args)
    torch.library.opcheck(ops.linear_gelu_fwd.default, (*leaves((x, w, b)), False))
    pre = torch.randn(5, 8)
    torch.library.opcheck(ops.bias_gelu_fwd.default, (pre, b, False))
    torch.library.opcheck(ops.bias_gelu_bwd.default, (pre, pre, b, False))
    torch.library.opcheck(ops.linear_gelu_bwd.default, (pre, x, w, b, pre, False, True, True))


def test_compile(backend):
    x, w, b = make(5, 12, 8, torch.float32)
    for ours, stock in FUNCTIONS.values():
        mine, theirs = leaves((x, w, b)), leaves((x, w, b))
        torch.compile(ours, fullgraph=True, backend=backend)(*mine).sum().backward()
        stock(*theirs).sum().backward()
        torch.testing.assert_close([t.grad for t in mine], [t.grad for t in theirs], rtol=1e-4, atol=1e-5)


def test_private_entry_points_are_there():
    # When a torch release drops or renames them, this says so; the library itself falls back to torch's products.
    assert onednn.available()
    x, w, b = make(9, 32, 48, torch.float32)
    packed = onednn.prepack(w)
    for activation, stock in (
        ("none", lambda y: y),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda y: F.gelu(y, approximate="tanh")),
    ):
        torch.testing.assert_close(
            onednn.linear_packed(x, packed, b, activation), stock(F.linear(x, w, b)), rtol=1e-5, atol=1e-5
        )


def test_bad_input():
    x, w, b = make(5, 12, 8, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        linear(x[:, :3], w, b)
    with pytest.raises(ValueError, match="cast one of them"):
        linear_gelu(x.bfloat16(), w, b)
    with pytest.raises(ValueError, match="approximate must be"):
        linear_gelu(x, w, b, approximate="sigmoid")
