"""Products of FP8 matrices against float64 of the same stored numbers."""

import pytest
import torch

from bertfast.testing import assert_within_budget

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Rows, K, N: nothing, one row, sizes that tensor cores take, and sizes that they do not.
SIZES = [(0, 32, 16), (1, 64, 32), (33, 128, 48), (20, 40, 24), (5, 16, 7)]


@pytest.fixture(params=["reference", "triton"])
def product(request):
    if request.param == "reference":
        return torch.ops.bertfast_reference
    return request.getfixturevalue("triton_ops")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kinds", [(E4M3, E4M3), (E5M2, E4M3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_parity(product, size, by_rows, bias, kinds, dtype):
    rows, k, n = size
    a, b = torch.randn(rows, k).to(kinds[0]), torch.randn(n, k).to(kinds[1])
    scales = (torch.rand(rows, 1) + 0.5, torch.rand(n, 1) + 0.5) if by_rows else (torch.tensor(0.25), torch.tensor(3.0))
    added = torch.randn(n).to(dtype) if bias else None
    y = product.fp8_linear(a, b, *scales, added, dtype, False)
    assert y.dtype == dtype

    def multiplied(kind):
        left, right = a.to(kind) * scales[0].to(kind), b.to(kind) * scales[1].to(kind)
        return left @ right.t() + (0 if added is None else added.to(kind))

    assert_within_budget(y, multiplied(torch.float32).to(dtype), multiplied(torch.float64), "y")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_added(product, size, dtype):
    rows, k, n = size
    a, b = torch.randn(rows, k).to(E5M2), torch.randn(n, k).to(E4M3)
    scales, before = (torch.tensor(0.25), torch.tensor(3.0)), torch.randn(rows, n).to(dtype)
    total = before.clone()
    assert product.fp8_linear_add(a, b, *scales, total) is None
    exact = before.double() + (a.double() * 0.25) @ (b.double() * 3).t()
    # The owner's product is in bfloat16 before it is added, as eager's.
    eager = before + ((a.float() * 0.25) @ (b.float() * 3).t()).bfloat16()
    assert_within_budget(total, eager, exact, "total")


def test_opcheck():
    a, b, one = torch.randn(6, 16).to(E4M3), torch.randn(8, 16).to(E4M3), torch.tensor(1.0)
    args = a, b, one, one, torch.randn(8), torch.float32, True
    # The schema's own test multiplies, which torch does not in FP8 on a CPU.
    utils = "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(torch.ops.bertfast.fp8_linear.default, args, test_utils=utils)
    args = a, b, one, one, torch.randn(6, 8)
    torch.library.opcheck(torch.ops.bertfast.fp8_linear_add.default, args, test_utils=utils)
