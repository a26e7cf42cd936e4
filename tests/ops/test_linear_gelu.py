"""linear_gelu and its elementwise half, bias_gelu, against torch's own functions in float64."""

import pytest
import torch
import torch.nn.functional as F

from bertfast.ops import linear_gelu, products
from bertfast.testing import assert_within_budget, leaves

# rows, K, N. 768 is BERT-base, 257 has a tail in every vector width; rows: nothing, one, a few, several chunks.
SIZES = [(0, 64, 32), (1, 768, 257), (7, 257, 768), (199, 768, 96)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = {"none": False, "tanh": True}


def make(rows, k, n, dtype):
    return torch.randn(rows, k).to(dtype), (2 * torch.randn(n, k) / k**0.5).to(dtype), torch.randn(n).to(dtype)


def stock(x, weight, bias, approximate="none"):
    return F.gelu(F.linear(x, weight, bias), approximate=approximate)


def run(function, inputs, dy):
    y = function(*inputs)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *[t.grad for t in inputs]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_parity(implementation, size, dtype, approximate, monkeypatch):
    # Eager's own product, so that the budget judges bias and GELU; test_products.py judges ours.
    for other in ("preferred", "widens"):
        monkeypatch.setattr(products, other, lambda: False)
    inputs = x, weight, bias = make(*size, dtype)
    dy = torch.randn(size[0], size[2]).to(dtype)
    y, pre = implementation.linear_gelu_fwd(x, weight, bias, FORMS[approximate])
    grads = implementation.linear_gelu_bwd(dy, x, weight, bias, pre, FORMS[approximate], True, True)

    def eager(*t):
        return stock(*t, approximate)

    theirs, exact = run(eager, leaves(inputs), dy), run(eager, leaves(inputs, torch.float64), dy)
    for name, mine, e, o in zip(["y", "dx", "dweight", "dbias"], (y, *grads), theirs, exact, strict=True):
        assert mine.dtype == dtype
        assert_within_budget(mine, e, o, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_parity_inside_a_layer(implementation, size, dtype, approximate, monkeypatch):
    """Forward without what backward reads, and backward through the next product and GELU at once."""
    for other in ("preferred", "widens"):
        monkeypatch.setattr(products, other, lambda: False)
    x, weight, bias = make(*size, dtype)
    behind = (torch.randn(40, size[2]) / size[2] ** 0.5).to(dtype)  # the next Linear's weight
    dy = torch.randn(size[0], 40).to(dtype)
    y = implementation.linear_gelu_infer(x, weight, bias, FORMS[approximate])
    pre = F.linear(x, weight)
    dpre, dbias = implementation.linear_dgelu(dy, behind, pre, bias, FORMS[approximate])

    def eager(p, b):
        return F.gelu(p + b, approximate=approximate)

    hidden, exact = stock(x, weight, bias, approximate), stock(x.double(), weight.double(), bias.double(), approximate)
    assert_within_budget(y, hidden, exact, "y")
    _, *theirs = run(eager, leaves((pre, bias)), dy @ behind)
    _, *exact = run(eager, leaves((pre, bias), torch.float64), dy.double() @ behind.double())
    assert_within_budget(dpre, theirs[0], exact[0], "dpre")
    assert_within_budget(dbias, theirs[1], exact[1], "dbias")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", FORMS)
def test_elementwise_over_the_whole_range(implementation, dtype, approximate):
    # 1000 values a row is no multiple of any vector; beyond +-12 gelu is 0 or the identity.
    pre = torch.linspace(-12, 12, 20_000).view(20, 1000).to(dtype)
    bias, dy = torch.linspace(-0.5, 0.5, 1000).to(dtype), torch.randn(20, 1000).to(dtype)
    y = implementation.bias_gelu_fwd(pre, bias, FORMS[approximate])
    dpre, dbias = implementation.bias_gelu_bwd(dy, pre, bias, FORMS[approximate])

    def eager(p, b):
        return F.gelu(p + b, approximate=approximate)

    theirs, exact = run(eager, leaves((pre, bias)), dy), run(eager, leaves((pre, bias), torch.float64), dy)
    for name, mine, e, o in zip(["y", "dpre", "dbias"], (y, dpre, dbias), theirs, exact, strict=True):
        assert_within_budget(mine, e, o, name)


def test_extremes(implementation):
    pre = torch.tensor([[-1e30, -1e4, -40.0, 0.0, 40.0, 1e4, 1e30, float("nan")]])
    for tanh in (False, True):
        y = implementation.bias_gelu_fwd(pre, torch.zeros(8), tanh)
        slope, _ = implementation.bias_gelu_bwd(torch.ones(1, 8), pre, torch.zeros(8), tanh)
        assert torch.equal(y[0, :7], pre[0, :7].clamp(min=0))
        assert torch.equal(slope[0, 1:6], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
        assert y[0, 7].isnan()
        assert slope[0, 7].isnan()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_subsets_of_gradients_and_views(wanted):
    inputs = [torch.randn(40, 12).t(), torch.randn(40, 24).t(), torch.randn(48)[::2]]  # none is contiguous
    mine, theirs = ([t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)] for _ in range(2))
    y, expected = linear_gelu(*mine), stock(*theirs)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.sum().backward()  # the gradient of a sum is an expanded scalar
    expected.sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_elementwise_views(implementation):
    pre, dy, bias = torch.randn(33, 7).t(), torch.randn(1, 33).expand(7, 33), torch.randn(66)[::2]
    expected = implementation.bias_gelu_bwd(dy.contiguous(), pre.contiguous(), bias.contiguous(), False)
    for mine, other in zip(implementation.bias_gelu_bwd(dy, pre, bias, False), expected, strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(implementation.bias_gelu_fwd(pre, bias, False), F.gelu(pre + bias))


@pytest.mark.parametrize("approximate", FORMS)
def test_gradcheck(approximate):
    assert torch.autograd.gradcheck(
        lambda *t: linear_gelu(*t, approximate=approximate), leaves(make(3, 5, 4, torch.float64))
    )


def test_backward_does_not_multiply_again(monkeypatch):
    calls = []
    product = products.linear
    monkeypatch.setattr(products, "linear", lambda *t: (calls.append(1), product(*t))[1])
    linear_gelu(*leaves(make(4, 8, 6, torch.float32))).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_and_threads(threads, dtype):
    """The bias gradient is added in an order that only the rows decide: the same bits for any number of threads."""
    pre, bias, dy = torch.randn(300, 257).to(dtype), torch.randn(257).to(dtype), torch.randn(300, 257).to(dtype)

    def step():
        return [
            torch.ops.bertfast.bias_gelu_fwd(pre, bias, False),
            *torch.ops.bertfast.bias_gelu_bwd(dy, pre, bias, False),
        ]

    threads(4)
    first = step()
    for count in (4, 3, 1):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))


def test_opcheck():
    x, weight, bias = make(5, 24, 8, torch.float32)
    dy = torch.randn(5, 8)
    ops = torch.ops.bertfast
    torch.library.opcheck(ops.linear_gelu_fwd.default, (*leaves((x, weight, bias)), False))
    y, pre = ops.linear_gelu_fwd(x, weight, bias, False)
    torch.library.opcheck(ops.bias_gelu_fwd.default, (pre, bias, True))
    torch.library.opcheck(ops.bias_gelu_bwd.default, (dy, pre, bias, False))
    for needs in ((True, False), (False, True)):
        torch.library.opcheck(ops.linear_gelu_bwd.default, (dy, x, weight, bias, pre, False, *needs))
    assert y.shape == pre.shape


def test_compile(backend):
    args = leaves(make(6, 32, 16, torch.float32))
    y = torch.compile(linear_gelu, fullgraph=True, backend=backend)(*args)
    grads = torch.autograd.grad(y.square().sum(), args)
    expected = stock(*args)
    torch.testing.assert_close(y, expected)
    for mine, other in zip(grads, torch.autograd.grad(expected.square().sum(), args), strict=True):
        torch.testing.assert_close(mine, other)


def test_float16_takes_the_reference():
    x, weight, bias = make(4, 16, 8, torch.float16)
    y = linear_gelu(x, weight, bias)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), stock(x.float(), weight.float(), bias.float()), rtol=4e-3, atol=4e-3)


def test_bad_inputs():
    x, weight, bias = make(3, 8, 4, torch.float32)
    with pytest.raises(ValueError, match="approximate must be"):
        linear_gelu(x, weight, bias, approximate="erf")
    with pytest.raises(ValueError, match="do not fit"):
        linear_gelu(x, weight[:, 1:], bias)
    with pytest.raises(ValueError, match="cast one of them"):
        linear_gelu(x.bfloat16(), weight, bias)
