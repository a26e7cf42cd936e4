"""GELU inside the product, forward and backward, against float64: no op's owner yet, called by name."""

import pytest
import torch
import torch.nn.functional as F

from bertfast.testing import assert_within_budget, leaves

pytest.importorskip("triton")
from bertfast.ops.linear_gelu import reference, triton, triton_gemm, tuning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = [("none", torch.bfloat16), ("tanh", torch.float16)]
# rows, K, N: less than a tile; K shorter than a step; small tiles, ragged in every direction; and the table's large tiles,
# more of them than the interpreter's four multiprocessors hold programs.
SIZES = [(1, 768, 96), (7, 8, 264), (130, 72, 72), (300, 72, 392)]
# By pointers, by bulk copies, and the largest tile.
ARCHITECTURES = [80, 90, 100]


@pytest.fixture(params=ARCHITECTURES)
def kernels(request, triton_ops, poisoned, monkeypatch):
    if torch.cuda.is_available():
        if request.param != ARCHITECTURES[-1]:
            pytest.skip("one GPU has one architecture")
        return
    monkeypatch.setattr(triton_gemm, "architecture", lambda device: request.param)


def make(rows, k, n, dtype):
    x, weight, bias = torch.randn(rows, k), 2 * torch.randn(n, k) / k**0.5, torch.randn(n)
    return [t.to(DEVICE, dtype) for t in (x, weight, bias)]


@pytest.mark.parametrize(("approximate", "dtype"), FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_forward(kernels, size, approximate, dtype):
    inputs = make(*size, dtype)
    y, pre = triton.linear_gelu_fwd_fused(*inputs, approximate == "tanh")

    def stock(x, weight, bias):
        product = F.linear(x, weight)
        return F.gelu(product + bias, approximate=approximate), product

    wide = [t.double() for t in inputs]
    for name, mine, eager, exact in zip(("y", "pre"), (y, pre), stock(*inputs), stock(*wide), strict=True):
        assert mine.dtype == dtype
        assert_within_budget(mine, eager, exact, name)
    without, none = triton_gemm.linear_gelu_fused(*inputs, approximate == "tanh", store_pre=False)
    assert none is None
    assert_within_budget(without, stock(*inputs)[0], stock(*wide)[0], "y without pre")


@pytest.mark.parametrize(("approximate", "dtype"), FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_backward_through_the_next_linear(kernels, size, approximate, dtype):
    rows, k, n = size
    dy2, weight2, bias = make(rows, k, n, dtype)
    weight2, pre = weight2.t().contiguous(), (2 * torch.randn(rows, n)).to(DEVICE, dtype)
    found = triton_gemm.linear_dgelu_fused(dy2, weight2, pre, bias, approximate == "tanh")

    def stock(pre, bias, dy2, weight2):
        y = F.linear(F.gelu(pre + bias, approximate=approximate), weight2)
        return torch.autograd.grad(y, (pre, bias), dy2)

    args = pre, bias, dy2, weight2
    eager, exact = stock(*leaves(args)), stock(*leaves(args, torch.float64))
    for name, mine, e, x in zip(("dpre", "dbias"), found, eager, exact, strict=True):
        assert mine.dtype == dtype
        assert_within_budget(mine, e, x, name)
    again = triton_gemm.linear_dgelu_fused(dy2, weight2, pre, bias, approximate == "tanh")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(
    "inputs",
    [make(5, 16, 8, torch.float32), make(5, 12, 8, torch.bfloat16), make(5, 16, 9, torch.bfloat16)],
    ids=["float32", "K of 12", "N of 9"],
)
def test_what_the_fused_form_declines(triton_ops, inputs):
    assert not tuning.fused_takes(*inputs, inputs[0].new_empty(5, inputs[1].shape[0]))
    y, pre = triton.linear_gelu_fwd_fused(*inputs, False)
    expected, product = reference.forward(*inputs, False)
    torch.testing.assert_close(pre, product)
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    x, weight, bias = inputs
    with pytest.raises(ValueError, match="multiples of 8"):
        triton_gemm.linear_dgelu_fused(x, weight.t().contiguous(), pre, bias, False)


def test_no_rows(triton_ops):
    y, pre = triton.linear_gelu_fwd_fused(*make(0, 16, 8, torch.bfloat16), False)
    assert y.shape == pre.shape == (0, 8)


def test_split_owns_every_shape_until_a_gpu_result():
    for rows in (1, 128, 65536):
        x, weight = torch.empty(rows, 768, device="meta"), torch.empty(3072, 768, device="meta")
        assert tuning.forward_owner(x, weight) == "split"
