"""The candidate of fp8_linear in Gluon: results with both ways of adding up, edges, additions, and what is the owner's."""

import pytest
import torch
from gluon_cases import ON_GPU, at_width, product_launches, runs_kernels, takes_all

from bertfast.testing import assert_within_budget, rms_error

pytest.importorskip("triton")
from bertfast.ops.fp8_linear import gluon

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Rows, K, N: one tile, edges in every direction, more tiles than programs and several steps.
SIZES = [(128, 128, 128), (300, 176, 264), (391, 400, 520)] + [(4100, 768, 2304)] * ON_GPU
SCALES = (torch.tensor(0.03), torch.tensor(0.5))


@pytest.fixture
def alone(monkeypatch):
    """The kernel takes every size; nothing is left to the owner."""
    takes_all(monkeypatch, gluon, owner=("fp8_linear", "fp8_linear_add"))
    with at_width(gluon.TABLES, 128):
        yield


def operands(size, kind):
    rows, k, n = size
    return torch.randn(rows, k).to(kind), torch.randn(n, k).to(E4M3)


def multiplied(a, b, kind):
    return (a.to(kind) * SCALES[0].to(kind)) @ (b.to(kind) * SCALES[1].to(kind)).t()


@runs_kernels
@pytest.mark.parametrize(("fast", "kind", "bias"), [(True, E4M3, True), (False, E5M2, False), (False, E4M3, True)])
@pytest.mark.parametrize("size", SIZES)
def test_product(candidate_ops, alone, size, fast, kind, bias):
    a, b = operands(size, kind)
    added = torch.randn(size[2]).bfloat16() if bias else None
    y = candidate_ops.fp8_linear(a, b, *SCALES, added, torch.bfloat16, fast)
    exact = multiplied(a, b, torch.float64) + (0 if added is None else added.double())
    if ON_GPU and fast:  # tensor cores keep 14 bits of a sum
        torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=2**-7 * float(exact.abs().max()))
    else:
        assert_within_budget(y, exact.bfloat16(), exact, "y", measure=rms_error)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_added(candidate_ops, alone, size, dtype):
    a, b = operands(size, E5M2)
    before = torch.randn(size[0], size[2]).to(dtype)
    total = before.clone()
    assert candidate_ops.fp8_linear_add(a, b, *SCALES, total) is None
    exact = before.double() + multiplied(a, b, torch.float64)
    eager = before.float() + multiplied(a, b, torch.float32)
    assert_within_budget(total, eager.to(dtype), exact, "total", measure=rms_error)


@pytest.mark.parametrize(
    ("what", "launched"),
    [
        ("as it is", 1),
        ("row scales", 0),
        ("float32 result", 0),
        ("e5m2 weights", 0),
        ("odd columns", 0),
        ("few tiles", 0),
        ("another architecture", 0),
    ],
)
def test_what_is_the_owners(triton_ops, what, launched):
    rows = 128 if what == "few tiles" else 16384
    columns = 768 + (what == "odd columns")
    a, b = torch.empty(rows, 768, dtype=E4M3), torch.empty(columns, 768, dtype=E5M2 if what == "e5m2 weights" else E4M3)
    scales = (torch.ones(rows, 1), torch.ones(columns, 1)) if what == "row scales" else SCALES
    dtype = torch.float32 if what == "float32 result" else torch.bfloat16
    arch = 100 if what == "another architecture" else 90
    count = product_launches(lambda *args: gluon.fp8_linear(*args, None, dtype, True), a, b, *scales, arch=arch)
    assert count == launched


def test_each_way_of_adding_up_is_compiled(triton_ops):
    from bertfast.triton import launch

    a, b = (torch.empty(16384, 768, dtype=E4M3, device="meta") for _ in range(2))
    scale = torch.empty((), device="meta")
    with launch.recording(90) as launches:
        for fast in (True, False):
            gluon.fp8_linear(a, b[:768], scale, scale, None, torch.bfloat16, fast)
    assert [dict(one.constants)["FULL"] for one in launches] == [False, True]
    assert all(dict(one.constants)["BLOCK_K"] == 128 for one in launches)
