"""The candidate of linear_gelu with products in Gluon: both forms of GELU and their gradient in the epilogue, and edges."""

import pytest
import torch
import torch.nn.functional as F
from gluon_cases import ON_GPU, WIDTHS, at_width, product_launches, runs_kernels, takes_all

from bertfast.testing import assert_within_budget, leaves, rms_error

pytest.importorskip("triton")
from bertfast.ops.linear_gelu import gluon
from bertfast.triton import repeats

FORMS = {"none": False, "tanh": True}
# Rows, K, N as in test_linear_gluon.
SIZES = [(128, 64, 128), (300, 200, 264), (1, 8, 16), (391, 72, 520)] + [(4100, 768, 3072)] * ON_GPU

# Each size and each kind is a kernel of its own, a second to compile on a GPU: so not every form with every type.
KINDS = [("none", torch.bfloat16), ("none", torch.float16), ("tanh", torch.bfloat16)]


@pytest.fixture(params=["triton"])
def implementation(candidate_ops):
    return candidate_ops


@pytest.fixture(params=WIDTHS)
def alone(request, monkeypatch):
    """The kernel, with tiles of so many columns, takes every size; nothing is left to the owner."""
    owners = {"owner": ("linear_gelu_fwd",), "torch_products": ("linear_gelu_infer", "linear_dgelu")}
    takes_all(monkeypatch, gluon, **owners)
    with at_width(gluon.TABLES, request.param):
        yield request.param


def make(t, k, n, dtype):
    """x, weight, bias, and the gradient and weight [K, N] of the product behind."""
    x, dy = torch.randn(t, k).to(dtype), torch.randn(t, k).to(dtype)
    weight, behind = (torch.randn(n, k) / k**0.5).to(dtype), (torch.randn(k, n) / k**0.5).to(dtype)
    return x, weight, torch.randn(n).to(dtype), dy, behind


@runs_kernels
@pytest.mark.parametrize(("form", "dtype"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_forward(implementation, alone, size, form, dtype):
    x, weight, bias, _, _ = make(*size, dtype)
    y, pre = implementation.linear_gelu_fwd(x, weight, bias, FORMS[form])
    exact = F.linear(x.double(), weight.double())
    assert_within_budget(pre, F.linear(x, weight), exact, "pre", measure=rms_error)
    eager = F.gelu(F.linear(x, weight, bias), approximate=form)
    assert_within_budget(y, eager, F.gelu(exact + bias.double(), approximate=form), "y", measure=rms_error)
    # Of what was stored nothing is lost: y is gelu of pre, to its own rounding.
    of_pre = F.gelu(pre.double() + bias.double(), approximate=form)
    assert_within_budget(y, of_pre.to(dtype), of_pre, "y of pre")
    assert torch.equal(implementation.linear_gelu_infer(x, weight, bias, FORMS[form]), y)


@runs_kernels
@pytest.mark.parametrize(("form", "dtype"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_backward(implementation, alone, size, form, dtype):
    x, weight, bias, dy, behind = make(*size, dtype)
    pre = F.linear(x, weight)
    dpre, dbias = implementation.linear_dgelu(dy, behind, pre, bias, FORMS[form])

    def gradients(to):
        p, b = leaves((pre, bias), to)
        F.gelu(p + b, approximate=form).backward(dy.to(to) @ behind.to(to))
        return p.grad, b.grad

    for name, ours, eager, exact in zip(
        ("dpre", "dbias"), (dpre, dbias), gradients(dtype), gradients(torch.float64), strict=True
    ):
        assert_within_budget(ours, eager, exact, name, measure=rms_error)
    again, sums = implementation.linear_dgelu(dy, behind, pre, bias, FORMS[form])
    assert torch.equal(again, dpre)
    assert torch.equal(sums, dbias)


@runs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_the_whole_range_of_gelu(implementation, alone, form):
    """Products by one's own: pre is x, exactly."""
    x = torch.linspace(-12, 12, 300 * 128).view(300, 128).bfloat16()
    eye, bias = torch.eye(128).bfloat16(), torch.linspace(-0.5, 0.5, 128).bfloat16()
    y, pre = implementation.linear_gelu_fwd(x, eye, bias, FORMS[form])
    assert torch.equal(pre, x)
    dpre, dbias = implementation.linear_dgelu(torch.ones_like(x), eye, x, bias, FORMS[form])
    v = x.double() + bias.double()
    exact = F.gelu(v, approximate=form)
    slope = torch.ops.aten.gelu_backward(torch.ones_like(v), v, approximate=form)
    eager = torch.ops.aten.gelu_backward(torch.ones_like(x), x + bias, approximate=form)
    assert_within_budget(y, F.gelu(x + bias, approximate=form), exact, "y")
    assert_within_budget(dpre, eager, slope, "dpre")
    assert_within_budget(dbias, eager.sum(0), slope.sum(0), "dbias")


@runs_kernels
def test_ends_are_those_of_the_formula(implementation, alone):
    dtype = torch.bfloat16
    largest = torch.finfo(dtype).max
    ends = torch.tensor([float("-inf"), -largest, -40.0, 0.0, 40.0, largest, float("inf"), float("nan")], dtype=dtype)
    x, weight = torch.zeros(3, 8, dtype=dtype), torch.zeros(8, 8, dtype=dtype)
    x[:, 0], weight[:, 0] = 1, ends  # each column of pre is an end
    bias = torch.zeros(8, dtype=dtype)
    y, pre = implementation.linear_gelu_fwd(x, weight, bias, False)
    finite = ends.isfinite()
    torch.testing.assert_close(pre[:, finite], ends[finite].expand(3, -1), rtol=0, atol=0)
    v = ends.float()
    phi = 0.5 * (1 + torch.erf(v * 0.5**0.5))
    torch.testing.assert_close(y, (v * phi).to(dtype).expand(3, -1), rtol=0, atol=0, equal_nan=True)
    dpre, dbias = implementation.linear_dgelu(
        x, torch.ones(8, 8, dtype=dtype), ends.expand(3, 8).contiguous(), bias, False
    )
    slope = phi + v * torch.exp(-0.5 * v * v) / (2 * torch.pi) ** 0.5
    torch.testing.assert_close(dpre, slope.to(dtype).expand(3, -1), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(dbias, (3 * slope).to(dtype), rtol=0, atol=0, equal_nan=True)


def forms(dtype=torch.bfloat16, k=768, tokens=16384):
    def empty(*size):
        return torch.empty(*size, dtype=dtype, device="meta")

    x, bias = empty(tokens, k), empty(3072)
    return {
        gluon.linear_gelu_fwd: (x, empty(3072, k), bias, False),
        gluon.linear_gelu_infer: (x, empty(3072, k), bias, True),
        gluon.linear_dgelu: (x, empty(k, 3072), empty(tokens, 3072), bias, False),
    }


@pytest.mark.parametrize("function", list(forms()), ids=lambda function: function.__name__)
def test_what_is_the_owners(triton_ops, function):
    assert product_launches(function, *forms()[function]) == 1
    for arch in (80, 100):
        assert product_launches(function, *forms()[function], arch=arch) == 0
    for other in (forms(torch.float32), forms(k=769), forms(tokens=100), forms(tokens=0)):
        assert product_launches(function, *other[function]) == 0


@runs_kernels
@pytest.mark.skipif(ON_GPU, reason="calls launchers on tensors of the CPU")
def test_launches_are_made_again_on_other_tensors(implementation, alone):
    _, _, bias, dy, behind = make(300, 72, 264, torch.bfloat16)
    pre = torch.randn(300, 264).bfloat16()
    with repeats.noting() as made:
        dpre, dbias = gluon.linear_dgelu(dy, behind, pre, bias, False)
    again = repeats.repeat(made, (dy, behind, pre, bias, dpre, dbias), (), scratch=1)
    _, _, bias, dy, behind = make(300, 72, 264, torch.bfloat16)
    pre, dpre, dbias = torch.randn(300, 264).bfloat16(), torch.empty_like(dpre), torch.empty_like(dbias)
    again(dy, behind, pre, bias, dpre, dbias)
    for ours, called in zip((dpre, dbias), gluon.linear_dgelu(dy, behind, pre, bias, False), strict=True):
        assert torch.equal(ours, called)
