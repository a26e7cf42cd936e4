"""Products from reordered weights: the numbers of a Linear in float32 and bfloat16, and known errors in int8."""

import pytest
import torch
import torch.nn.functional as F

from bertfast import _ext
from bertfast.ops import packed_linear
from bertfast.testing import assert_within_budget, rms_error

pytestmark = pytest.mark.skipif(_ext.load() is None, reason="the C++ extension is not built")

ACTIVATIONS = {"none": lambda y: y, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}
# rows, K, N: nothing, one row, odd sizes with tails everywhere, several pieces of the inner dimension, several units.
SIZES = [(0, 64, 32), (1, 768, 2304), (5, 258, 33), (16, 3072, 768), (97, 386, 70), (199, 1536, 65)]


def take(dtype, inputs, int8=False):
    if not packed_linear.available(dtype, inputs, int8=int8):
        pytest.skip(f"this processor has no {'int8' if int8 else dtype} kernel for {inputs} inputs")


def make(rows, k, n, dtype):
    torch.manual_seed(rows + k)
    return torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype) / k**0.5, torch.randn(n).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_parity_on_a_cpu(size, activation, dtype):
    x, weight, bias = make(*size, dtype)
    take(dtype, size[1])
    packed = packed_linear.pack(weight, dtype)
    for b in (bias, None):
        y = packed_linear.linear(x, packed, b, activation)
        assert y.dtype == dtype
        eager = ACTIVATIONS[activation](F.linear(x, weight, b))
        oracle = ACTIVATIONS[activation](F.linear(x.double(), weight.double(), None if b is None else b.double()))
        assert_within_budget(y, eager, oracle, measure=rms_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_a_row_do_not_depend_on_the_rows_beside_it(dtype):
    """From 19 rows on. Among them are counts that leave a few rows beside whole units, as 18 * 96 + 1 does."""
    take(dtype, 386)
    x, weight, bias = make(2000, 386, 70, dtype)
    packed = packed_linear.pack(weight, dtype)
    whole = packed_linear.linear(x, packed, bias, "gelu")
    for rows in (19, 50, 96, 97, 98, 113, 193, 500, 577, 1057, *range(1725, 1748, 2)):
        assert torch.equal(packed_linear.linear(x[:rows], packed, bias, "gelu"), whole[:rows]), rows


def test_float32_inputs_need_not_be_even():
    take(torch.float32, 257)
    x, weight, bias = make(7, 257, 65, torch.float32)
    y = packed_linear.linear(x, packed_linear.pack(weight, torch.float32), bias, "none")
    oracle = F.linear(x.double(), weight.double(), bias.double())
    assert_within_budget(y, F.linear(x, weight, bias), oracle, measure=rms_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 768, 96), (97, 388, 70), (16, 3072, 65)])
def test_int8_is_the_exact_product_of_its_integers(size, dtype):
    take(dtype, size[1], int8=True)
    x, weight, bias = make(*size, dtype)
    y = packed_linear.linear(x, packed_linear.pack(weight, dtype, int8=True), bias, "none")

    low = x.float().amin(1, keepdim=True)
    step = (x.float().amax(1, keepdim=True) - low) / 255
    qx = ((x.float() - low) / step).round().double() * step.double() + low.double()
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    qw = (weight.float() / scale).round().double() * scale.double()
    oracle = F.linear(qx, qw, bias.double())
    # One x in thousands lies so near a half that the division rounds it the other way: a step of its scale.
    assert rms_error(y, oracle) < (3e-4 if dtype == torch.float32 else 3e-3) * rms_error(
        oracle, torch.zeros_like(oracle)
    )


def test_int8_rows_of_zeros_and_values_without_a_step():
    take(torch.float32, 64, int8=True)
    x, weight, bias = make(4, 64, 32, torch.float32)
    weight[3] = 0.0
    x[1] = 0.0
    x[2, 5] = float("nan")
    x[3, 7] = float("inf")
    y = packed_linear.linear(x, packed_linear.pack(weight, torch.float32, int8=True), bias, "none")
    torch.testing.assert_close(y[1], bias)
    torch.testing.assert_close(y[0, 3], bias[3])
    assert y[0].isfinite().all()
    assert y[2:].isnan().all()  # never a number that hides them


def test_any_layout():
    take(torch.float32, 64)
    x, weight, bias = make(9, 64, 48, torch.float32)
    packed = packed_linear.pack(weight.t().contiguous().t(), torch.float32)
    wide = torch.randn(9, 128)
    wide[:, ::2] = x
    spread = torch.randn(96)
    spread[::2] = bias
    y = packed_linear.linear(wide[:, ::2], packed, spread[::2], "none")
    torch.testing.assert_close(y, F.linear(x, weight, bias))


def test_errors():
    take(torch.float32, 64)
    x, weight, bias = make(9, 64, 48, torch.float32)
    packed = packed_linear.pack(weight, torch.float32)
    with pytest.raises(ValueError, match=r"got Float \[9, 63\]|not one of 48 outputs and 63 inputs"):
        packed_linear.linear(x[:, 1:], packed, bias, "none")
    with pytest.raises(ValueError, match=r"bias must be \[48\]"):
        packed_linear.linear(x, packed, bias[1:], "none")
    with pytest.raises(ValueError, match="activation must be one of"):
        packed_linear.linear(x, packed, bias, "relu")
    with pytest.raises(ValueError, match="float32 or bfloat16 matrix"):
        packed_linear.pack(weight.double(), torch.float32)
    with pytest.raises(ValueError, match="no kernel of this processor"):
        packed_linear.pack(weight, torch.float16)
