"""The candidate of linear with products in Gluon: results, edges, parts of tiles, what is the owner's, and launches made again."""

import pytest
import torch
import torch.nn.functional as F
from gluon_cases import ON_GPU, WIDTHS, at_width, product_launches, runs_kernels, takes_all
from test_linear import test_parity_inside_a_layer  # noqa: F401  with the candidate as the implementation

from bertfast.testing import assert_within_budget, rms_error

pytest.importorskip("triton")
from bertfast.ops.linear import gluon, gluon_launch
from bertfast.triton import launch, repeats

# Rows, K, N: one tile, edges in every direction, more tiles than programs, one row; and a real size where it takes no seconds.
SIZES = [(128, 64, 128), (300, 200, 264), (1, 8, 16), (391, 136, 520)] + [(4100, 768, 2304)] * ON_GPU
# Tokens, N, K of gradients: one short step, several tiles in parts, whole tiles in rounds and parts beside them, and no parts.
WEIGHTS = [(40, 128, 64), (700, 264, 200), (500, 392, 520), (200, 128, 512)] + [(4100, 2304, 768)] * ON_GPU


@pytest.fixture(params=["triton"])
def implementation(candidate_ops):
    return candidate_ops


@pytest.fixture(params=WIDTHS)
def alone(request, monkeypatch):
    """The kernel, with tiles of so many columns, takes every size; nothing is left to the owner."""
    owners = {"owner": ("linear_fwd",), "torch_products": ("linear_add_dx", "linear_dweight")}
    takes_all(monkeypatch, gluon, **owners)
    monkeypatch.setattr(gluon, "LEAST_TOKENS", 1)
    with at_width(gluon.TABLES, request.param):
        yield request.param


def matrix(rows, cols, dtype=torch.bfloat16):
    return torch.randn(rows, cols).to(dtype)


def weight_of(n, k, dtype, transposed):
    weight = (torch.randn(n, k) / k**0.5).to(dtype)
    return weight.t().contiguous().t() if transposed else weight


# Each size and each form is a kernel of its own, a second to compile on a GPU: so not every one with every other.
@runs_kernels
@pytest.mark.parametrize(
    ("has_bias", "transposed", "dtype"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (True, True, torch.float16)],
)
@pytest.mark.parametrize("size", SIZES)
def test_product(implementation, alone, size, has_bias, transposed, dtype):
    t, k, n = size
    x, weight = matrix(t, k, dtype), weight_of(n, k, dtype, transposed)
    bias = torch.randn(n).to(dtype) if has_bias else None
    y = implementation.linear_fwd(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_within_budget(y, F.linear(x, weight, bias), exact, "y", measure=rms_error)


@runs_kernels
@pytest.mark.parametrize(("wide", "transposed"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("size", SIZES)
def test_added(implementation, alone, size, transposed, wide):
    if wide and alone != 128:
        pytest.skip("float32 slices of 256 columns do not fit")
    t, n, k = size
    dy, weight = matrix(t, n), weight_of(n, k, torch.bfloat16, transposed)
    before = matrix(t, k, torch.float32 if wide else torch.bfloat16)
    total = before.clone()
    assert implementation.linear_add_dx(dy, weight, total) is None
    exact = before.double() + dy.double() @ weight.double()
    # One rounding of the sum, where eager rounds the product before.
    assert_within_budget(total, exact.to(total.dtype), exact, "total", measure=rms_error)


@runs_kernels
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size", WEIGHTS)
def test_weight_gradient(implementation, alone, size, wide):
    t, n, k = size
    dy, x, kind = matrix(t, n), matrix(t, k), torch.float32 if wide else torch.bfloat16
    dweight, dbias = implementation.linear_dweight(dy, x, kind, True)
    assert dweight.dtype == dbias.dtype == kind
    exact, sums = dy.double().t() @ x.double(), dy.double().sum(0)
    assert_within_budget(dweight, exact.float().to(kind), exact, "dweight", measure=rms_error)
    assert_within_budget(dbias, sums.float().to(kind), sums, "dbias", measure=rms_error)
    if not wide:
        again, absent = implementation.linear_dweight(dy, x, kind, False)
        assert torch.equal(again, dweight)  # the same order of additions
        assert absent.shape == (0,)


@runs_kernels
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_row(implementation, alone, special):
    x, weight = matrix(300, 72), weight_of(264, 72, torch.bfloat16, False)
    x[257, 3] = special
    y = implementation.linear_fwd(x, weight, None)
    others = torch.arange(300) != 257
    assert not y[257].isfinite().any()
    assert torch.equal(y[others], implementation.linear_fwd(x.nan_to_num(0, 0, 0), weight, None)[others])
    dy = matrix(300, 136)
    dy[299, 5] = special
    dweight, dbias = implementation.linear_dweight(dy, x.nan_to_num(0, 0, 0), torch.bfloat16, True)
    bad = torch.arange(136) == 5
    assert not dweight[bad].isfinite().any()
    assert dweight[~bad].isfinite().all()
    assert torch.equal(dbias.isfinite(), ~bad)


@pytest.mark.parametrize("programs", [1, 2, 3, 5, 7])
@pytest.mark.skipif(ON_GPU, reason="the number of programs is the GPU's")
def test_parts_for_any_number_of_programs(implementation, alone, programs, monkeypatch):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: programs)
    dy, x = matrix(500, 392), matrix(500, 264)
    dweight, dbias = implementation.linear_dweight(dy, x, torch.float32, True)
    exact, sums = dy.double().t() @ x.double(), dy.double().sum(0)
    assert_within_budget(dweight, exact.float(), exact, "dweight", measure=rms_error)
    assert_within_budget(dbias, sums.float(), sums, "dbias", measure=rms_error)


@pytest.mark.parametrize(
    ("sizes", "programs", "grid"),
    [((16384, 768, 768), 132, 576), ((16384, 3072, 768), 132, 192), ((16384, 4096, 1024), 132, None)],
)
def test_how_a_weight_gradient_is_divided(triton_ops, sizes, programs, grid):
    """36 tiles in parts; 132 of 144 whole and 12 in parts, 8 rows a program; 256 tiles of 264 places all whole."""
    t, n, k = sizes
    dy, x = (torch.empty(t, size, dtype=torch.bfloat16, device="meta") for size in (n, k))
    with launch.recording(90) as launches:
        gluon.linear_dweight(dy, x, torch.bfloat16, False)
    assert launches[0].grid == (programs,)
    assert [one.grid for one in launches[1:]] == ([] if grid is None else [(grid,)])


def forms(dtype=torch.bfloat16, k=768, tokens=16384):
    x, weight = (torch.empty(*size, dtype=dtype, device="meta") for size in ((tokens, k), (2304, k)))
    dy = torch.empty(tokens, 2304, dtype=dtype, device="meta")
    return {
        gluon.linear_fwd: (x, weight, None),
        gluon.linear_add_dx: (dy, weight, x),
        gluon.linear_dweight: (dy, x, dtype, False),
    }


@pytest.mark.parametrize("function", list(forms()), ids=lambda function: function.__name__)
def test_what_is_the_owners(triton_ops, function):
    assert product_launches(function, *forms()[function]) == 1
    for arch in (80, 100):
        assert product_launches(function, *forms()[function], arch=arch) == 0
    for other in (forms(torch.float32), forms(torch.float64), forms(k=769), forms(tokens=100), forms(tokens=0)):
        assert product_launches(function, *other[function]) == 0


def test_rows_that_are_not_aligned_are_the_owners():
    whole = torch.randn(64, 136).bfloat16()
    assert gluon_launch.is_aligned(whole)
    assert gluon_launch.is_aligned(whole.t())
    for view in (whole[:, :128], whole[1:, 4:], whole.view(-1)[4:].view(-1, 4)):
        assert not gluon_launch.is_aligned(view)


@runs_kernels
@pytest.mark.skipif(ON_GPU, reason="calls launchers on tensors of the CPU")
def test_launches_are_made_again_on_other_tensors(implementation, alone):
    def tensors():
        dweight, dbias = torch.full((264, 200), torch.nan).bfloat16(), torch.full((264,), torch.nan).bfloat16()
        return matrix(500, 264), matrix(500, 200), dweight, dbias

    dy, x, *_ = tensors()
    with repeats.noting() as made:
        dweight, dbias = gluon.linear_dweight(dy, x, torch.bfloat16, True)
    again = repeats.repeat(made, (dy, x, dweight, dbias), (), scratch=2)
    dy, x, dweight, dbias = tensors()
    again(dy, x, dweight, dbias)
    assert torch.equal(dweight, gluon.linear_dweight(dy, x, torch.bfloat16, False)[0])
    assert dbias.isfinite().all()

    weight, y = weight_of(264, 200, torch.bfloat16, True), torch.empty(500, 264).bfloat16()
    with repeats.noting() as made:
        first = gluon.linear_fwd(x, weight, None)
    repeats.repeat(made, (x, weight, first), ())(x, weight, y)
    assert torch.equal(y, first)
