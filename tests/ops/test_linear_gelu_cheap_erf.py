"""The candidate of linear_gelu with a cheaper erfc: what its owner's tests ask, its ends, and where its numbers come from."""

import pytest
import torch
from test_linear_gelu import (  # noqa: F401  collected here with the candidate as the implementation
    test_elementwise_over_the_whole_range,
    test_elementwise_views,
    test_extremes,
    test_parity,
)

from bertfast.testing import assert_within_budget

pytest.importorskip("triton")
from bertfast.ops.linear_gelu import cheap_erf
from bertfast.triton import counters, launch, tables

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=["triton"])
def implementation(candidate_ops):
    return candidate_ops


def exact_tail(x):
    """erfc(x / sqrt 2) / 2 in float64."""
    return 0.5 * torch.special.erfc(x * 0.5**0.5)


def test_numbers_are_the_best_for_the_relative_error_up_to_6():
    x = torch.linspace(0, 6, 20_001, dtype=torch.float64)
    t = 1 / (1 + cheap_erf.P * x)
    polynomial = sum(c * t ** (k + 1) for k, c in enumerate(cheap_erf.COEFFICIENTS))
    error = torch.exp(-0.5 * x * x) * polynomial / exact_tail(x) - 1
    assert error[0].abs() < 1e-7
    assert error.abs().max() < 7.4e-5
    # Chebyshev's criterion: with p and four coefficients, one of them spent on 0, the error has its largest size five times, the
    # signs in turn.
    ends = torch.cat((error[1:-1][(error[1:-1] - error[:-2]) * (error[2:] - error[1:-1]) < 0], error[-1:]))
    assert torch.equal(ends.sign(), torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(ends.abs(), torch.full_like(ends, 7.29e-5), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_negative_tail_keeps_its_digits(implementation, dtype):
    # Relative to each value, where eager's 1 + erf has lost them: only the results' own rounding is left, and the fit.
    pre = torch.linspace(-6, -0.5, 5_000).view(5, 1000).to(dtype)
    y = implementation.bias_gelu_fwd(pre, torch.zeros(1000, dtype=dtype), False).double()
    exact = pre.double() * exact_tail(-pre.double())
    assert ((y - exact).abs() <= 1e-4 * exact.abs() + torch.finfo(dtype).eps * exact.abs().clamp(min=2.0**-14)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_ends_are_those_of_eager(implementation, dtype):
    largest = torch.finfo(dtype).max
    pre = torch.tensor([[float("-inf"), -largest, -40.0, 0.0, 40.0, largest, float("inf"), float("nan")]], dtype=dtype)
    bias = torch.zeros(8, dtype=dtype)
    y = implementation.bias_gelu_fwd(pre, bias, False)
    dpre, dbias = implementation.bias_gelu_bwd(torch.ones_like(pre), pre, bias, False)
    v = pre.float()
    phi = 0.5 * (1 + torch.erf(v * 0.5**0.5))  # as torch's CUDA kernel has it; its CPU kernel makes NaN of infinity
    slope = phi + v * torch.exp(-0.5 * v * v) / (2 * torch.pi) ** 0.5
    assert phi.isnan().any()
    torch.testing.assert_close(y, (v * phi).to(dtype), rtol=0, atol=0, equal_nan=True)
    for result in (dpre, dbias[None]):
        torch.testing.assert_close(result, slope.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES)
def test_chunks_and_what_lies_beside_the_last_row(implementation, dtype):
    # Rows that are no multiple of a tile or a chunk; an infinite bias has no slope, which reaches no other column.
    pre, dy, bias = torch.randn(199, 300).to(dtype), torch.randn(199, 300).to(dtype), torch.randn(300).to(dtype)
    bias[7] = float("inf")
    dpre, dbias = implementation.bias_gelu_bwd(dy, pre, bias, False)
    assert dpre[:, 7].isnan().all()
    others = torch.arange(300) != 7

    def gradients(to):
        v = pre[:, others].to(to) + bias[others].to(to)
        slope = torch.ops.aten.gelu_backward(dy[:, others].to(to), v)
        return slope, slope.sum(0)

    for name, mine, eager, exact in zip(
        ("dpre", "dbias"),
        (dpre[:, others], dbias[others]),
        gradients(dtype),
        gradients(torch.float64),
        strict=True,
    ):
        assert_within_budget(mine, eager, exact, name)


def test_sums_have_the_same_bits_without_counters(implementation, monkeypatch):
    pre, dy, bias = torch.randn(300, 40).bfloat16(), torch.randn(300, 40).bfloat16(), torch.randn(40).bfloat16()
    *_, found = implementation.bias_gelu_bwd(dy, pre, bias, False)
    monkeypatch.setattr(counters, "of", lambda x, count: None)
    assert torch.equal(implementation.bias_gelu_bwd(dy, pre, bias, False)[1], found)


@pytest.mark.parametrize("ends", [0, 1])
def test_the_table_says_whether_sums_end_in_the_kernel(implementation, ends):
    pre, dy, bias = torch.randn(300, 40).bfloat16(), torch.randn(300, 40).bfloat16(), torch.randn(40).bfloat16()
    entries = [entry for entry in cheap_erf.TABLES.entries if entry.table == "backward"]
    with tables.override({entry: {**entry.tile, "ends": ends} for entry in entries}):
        *_, found = implementation.bias_gelu_bwd(dy, pre, bias, False)
        with launch.recording(90) as launches:
            cheap_erf.bias_gelu_bwd(*(t.to("meta") for t in (dy, pre, bias)), False)
    assert len(launches) == 2 - ends
    *_, usual = implementation.bias_gelu_bwd(dy, pre, bias, False)
    torch.testing.assert_close(found, usual, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("rows", "chunk"), [(128, 16), (16384, 64), (65536, 128)])
def test_how_rows_are_split(triton_ops, rows, chunk):
    pre, bias = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((rows, 3072), (3072,)))
    with launch.recording(90) as launches:
        cheap_erf.bias_gelu_bwd(pre, pre, bias, False)
    (first,) = launches  # the last sums end in it
    assert dict(first.constants)["CHUNK"] == chunk
    assert first.grid == (12, rows // chunk)


def test_other_types_and_the_tanh_form_are_the_owners(triton_ops):
    pre, bias = torch.empty(64, 256, device="meta"), torch.empty(256, device="meta")
    for dtype, tanh, kernel in (
        (torch.float32, False, "bias_gelu_fwd_kernel"),
        (torch.bfloat16, True, "bias_gelu_fwd_kernel"),
        (torch.bfloat16, False, "cheap_gelu_fwd_kernel"),
    ):
        with launch.recording(90) as launches:
            cheap_erf.bias_gelu_fwd(pre.to(dtype), bias.to(dtype), tanh)
        assert [one.kernel.__name__ for one in launches] == [kernel]
