"""GELU's passes that write FP8: each number the nearest to float64's, transposed copies, largest magnitudes, rows' scales."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from fp8_numbers import E4M3, E5M2, assert_nearest, bits

from bertfast.ops import fp8
from bertfast.testing import assert_within_budget, leaves

# Rows and columns: nothing, one row, odd, words of the transposed copy with and without a tile's end, several chunks.
SIZES = [(0, 32), (1, 70), (7, 257), (48, 130), (199, 64)]
KINDS = [torch.float32, torch.bfloat16]
FORMS = {"none": False, "tanh": True}


@pytest.fixture(params=["reference", "triton"])
def implementation(request):
    """As everywhere, without the CPU's: there the references run."""
    if request.param == "reference":
        return torch.ops.bertfast_reference
    request.getfixturevalue("poisoned")
    return request.getfixturevalue("triton_ops")


def make(size, kind):
    """dy, pre, bias."""
    return torch.randn(size).to(kind), (2 * torch.randn(size)).to(kind), torch.randn(size[1]).to(kind)


def eager(pre, bias, approximate):
    return F.gelu(pre + bias, approximate=approximate)


def gradients(dy, pre, bias, approximate, dtype):
    inputs = leaves((pre, bias), dtype)
    eager(*inputs, approximate).backward(dy.to(dtype))
    return [t.grad for t in inputs]


def allowance(kind):
    """Relative error of GELU before the cast: of the cheap erfc in 16-bit types, else of float32.

    Beside it 1e-6: eager's 1 + erf has lost the digits of the negative tail.
    """
    return 1e-5 if kind == torch.float32 else 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("approximate", "dtype"), [("none", E4M3), ("none", E5M2), ("tanh", E4M3)])
@pytest.mark.parametrize("size", SIZES)
def test_forward(implementation, size, approximate, kind, dtype):
    _, pre, bias = make(size, kind)
    scale, amax = torch.tensor(0.013), torch.tensor(0.5)
    y, yt = implementation.fp8_gelu_fwd(pre, bias, FORMS[approximate], scale, amax, dtype, True)
    exact = eager(pre.double(), bias.double(), approximate)
    assert y.dtype == yt.dtype == dtype
    assert_nearest(y, exact, 0.013, allowance(kind) * exact.abs() + 1e-6, "y")
    assert torch.equal(bits(yt), bits(y.t()))
    assert_within_budget(
        y.float() * scale, fp8.quantise(eager(pre, bias, approximate).float(), scale, dtype).float() * scale, exact
    )
    largest = max([0.5, *exact.abs().flatten().tolist()])
    assert float(amax) == pytest.approx(largest, rel=allowance(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("approximate", "dtype"), [("none", E4M3), ("none", E5M2), ("tanh", E4M3)])
@pytest.mark.parametrize("size", SIZES)
def test_backward(implementation, size, approximate, kind, dtype):
    dy, pre, bias = make(size, kind)
    scale, amax = torch.tensor(0.007), torch.tensor(0.0)
    dpre, dpret, dbias = implementation.fp8_gelu_bwd(dy, pre, bias, FORMS[approximate], scale, amax, dtype, True)
    exact, exact_dbias = gradients(dy, pre, bias, approximate, torch.float64)
    # The slope goes through zero, where its error is relative to what it is the difference of.
    assert_nearest(dpre, exact, 0.007, allowance(kind) * (exact.abs() + dy.double().abs()), "dpre")
    assert torch.equal(bits(dpret), bits(dpre.t()))
    assert float(amax) == pytest.approx(max([0.0, *exact.abs().flatten().tolist()]), rel=2 * allowance(kind))
    assert dbias.dtype == kind
    assert_within_budget(dbias, gradients(dy, pre, bias, approximate, kind)[1], exact_dbias, "dbias")


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [*SIZES, (3, 1536), (2, 2100)])
def test_rows(implementation, size, kind, dtype):
    _, pre, bias = make(size, kind)
    y, scale = implementation.fp8_gelu_rows(pre, bias, False, dtype)
    exact = eager(pre.double(), bias.double(), "none")
    assert scale.shape == (size[0], 1)
    largest = exact.abs().amax(1, keepdim=True) if size[0] else exact[:, :1]
    torch.testing.assert_close(scale.double(), largest / fp8.LARGEST[dtype], rtol=allowance(kind), atol=0)
    assert_nearest(y, exact, scale.double(), 2 * allowance(kind) * exact.abs() + 1e-6, "y")


def test_a_row_of_zeros_has_scale_1(implementation):
    y, scale = implementation.fp8_gelu_rows(torch.zeros(2, 64), torch.zeros(64), False, E4M3)
    assert y.float().count_nonzero() == 0
    assert torch.equal(scale, torch.ones(2, 1))


@pytest.mark.parametrize("rows", [7, 32])
def test_without_a_transposed_copy_and_views(implementation, rows):
    pre, dy = torch.randn(33, rows).t(), torch.randn(1, 33).expand(rows, 33)
    bias, scale = torch.randn(66)[::2], torch.tensor(0.01)
    for name, args in (("fp8_gelu_fwd", (pre, bias)), ("fp8_gelu_bwd", (dy, pre, bias))):
        amax = torch.zeros(2)
        op = getattr(implementation, name)
        whole = op(*(t.contiguous() for t in args), False, scale, amax[0], E5M2, True)
        alone = op(*args, False, scale, amax[1], E5M2, False)
        assert alone[1].shape == (0,)
        assert torch.equal(bits(whole[0]), bits(alone[0]))
        assert amax[0] == amax[1] > 0


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("rows", [5, 16])
def test_too_large_is_clamped_and_nan_stays(implementation, rows, dtype):
    pre = torch.zeros(rows, 64)
    pre[3, :2] = torch.tensor([1e30, 1e6])
    bias, scale, amax = torch.zeros(64), torch.tensor(1.0), torch.tensor(0.0)
    y, yt = implementation.fp8_gelu_fwd(pre, bias, False, scale, amax, dtype, True)
    assert y[3, :2].float().tolist() == [fp8.LARGEST[dtype]] * 2
    assert float(amax) == pytest.approx(1e30)
    pre[2, 5] = float("nan")
    y, yt = implementation.fp8_gelu_fwd(pre, bias, False, scale, amax, dtype, True)
    assert y.float().isnan().nonzero().tolist() == [[2, 5]]
    assert yt.float().isnan().nonzero().tolist() == [[5, 2]]
    assert bool(amax.isnan())
    amax = torch.tensor(0.0)
    dpre, *_, dbias = implementation.fp8_gelu_bwd(torch.ones_like(pre), pre, bias, False, scale, amax, dtype, False)
    assert dpre.float().isnan().nonzero().tolist() == [[2, 5]]
    assert dbias.isnan().nonzero().tolist() == [[5]]
    assert bool(amax.isnan())


def test_amax_is_raised_and_never_lowered(implementation):
    pre, bias, scale = torch.ones(20, 40), torch.zeros(40), torch.tensor(1.0)
    for before in (0.0, 0.3, 7.0):
        amax = torch.tensor(before)
        implementation.fp8_gelu_fwd(pre, bias, False, scale, amax, E4M3, False)
        assert float(amax) == pytest.approx(max(before, 0.8413447), rel=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_opcheck(dtype, transposed):
    dy, pre, bias = make((6, 24), torch.float32)
    ops, scaling = torch.ops.bertfast, (torch.tensor(0.01), torch.tensor(0.0), dtype, transposed)
    torch.library.opcheck(ops.fp8_gelu_fwd.default, (pre, bias, False, *scaling))
    torch.library.opcheck(ops.fp8_gelu_bwd.default, (dy, pre, bias, True, *scaling))
    torch.library.opcheck(ops.fp8_gelu_rows.default, (pre, bias, False, dtype))


COUNT = """
import torch
from bertfast.ops.fp8_gelu import triton as ops
from bertfast.triton import aot, launch

pre, bias = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((16384, 3072), (3072,)))
scale = torch.empty((), device="meta")
for call, dtype in ((ops.fp8_gelu_fwd, torch.float8_e4m3fn), (ops.fp8_gelu_bwd, torch.float8_e5m2)):
    with launch.recording(90) as launches:
        call(*([pre] if call is ops.fp8_gelu_bwd else []), pre, bias, False, scale, scale, dtype, True)
    one = launches[0]
    constants = dict(one.constants)
    elements = 4 * constants["QUADS"] * constants["COLS"] / (32 * one.warps)
    print(aot.resources(aot.compile_launch(one, 90)).sass["MUFU"] / elements)
"""


def test_gelu_is_computed_once_an_element():
    """Where stores want two layouts Triton may compute all twice, without a word: GELU is a reciprocal and an exponential."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COUNT]
    got = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert got.returncode == 0, got.stderr[-2000:]
    for line in got.stdout.split():
        assert 2 <= float(line) < 2.5
