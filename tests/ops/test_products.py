"""Our own products of training beside torch's, from every layout, dtype and way of joining that they take."""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F

from bertfast import _ext
from bertfast.ops import products
from bertfast.testing import assert_within_budget, rms_error

# M, K, N: one row, odd sizes around panels of 64 and blocks of 6, words that do not fill a vector, a side that is not
# written at once (70000 x 64 words are more than 16 MB), and many rows.
SIZES = [(1, 2, 90), (7, 16, 9), (65, 31, 130), (200, 77, 64), (154, 768, 300), (5, 70000, 140), (2500, 48, 40)]


# "cpu": test_isa.py runs these under every build.
@pytest.fixture(params=["ours", "torch", "widened"], ids=["cpu", "torch", "widened"])
def owner(request, monkeypatch):
    """Every branch, whatever processor this is."""
    monkeypatch.setattr(products, "preferred", lambda: request.param == "ours")
    monkeypatch.setattr(products, "widens", lambda: request.param == "widened")
    monkeypatch.setattr(products, "_MANY_ROWS", 0)
    monkeypatch.setattr(products, "_FEW", 0)
    if request.param == "ours" and not torch.ops.bertfast_cpu.can_multiply(torch.ones(2, 2), [torch.ones(2, 2)], 0):
        pytest.skip("this build of the kernels multiplies by torch's products")
    return request.param


def matrix(rows, cols, dtype, turned):
    return torch.randn(cols, rows).to(dtype).t() if turned else torch.randn(rows, cols).to(dtype)


@pytest.mark.parametrize(
    "dtypes", [(torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.bfloat16, torch.float32, torch.float32)]
)
@pytest.mark.parametrize("size", SIZES)
def test_parity(owner, size, dtypes):
    rows, inner, cols = size
    left, right, result = dtypes
    for a_turned, b_turned, has_bias in itertools.product((False, True), repeat=3):
        a, b = matrix(rows, inner, left, a_turned), matrix(inner, cols, right, b_turned)
        bias = torch.randn(cols).to(right) if has_bias else None
        # A view with a gap after every row: what lies in the gap must stay.
        room = torch.full((rows, cols + 3), 7.0, dtype=result)
        products.product(a, [b], bias=bias, out=room[:, :cols])
        assert (room[:, cols:] == 7).all()
        whole = b.double()  # what widened products read; the others round float32 on its way in
        b, added = b.to(left), 0.0 if bias is None else bias.to(left)
        exact = a.double() @ (whole if owner == "widened" else b.double()) + (0.0 if bias is None else bias.double())
        assert_within_budget(room[:, :cols], (a @ b + added).to(result), exact, "c", measure=rms_error)


def test_ours_takes_what_training_needs():
    # Otherwise the tests above would compare torch with torch. An odd sum of bfloat16 pairs is torch's, unless both
    # sides lie across it.
    if not torch.ops.bertfast_cpu.can_multiply(torch.ones(2, 2), [torch.ones(2, 2)], 0):
        pytest.skip("this build of the kernels multiplies by torch's products")
    takes = torch.ops.bertfast_cpu.can_multiply
    assert all(
        takes(matrix(4, 3, torch.float32, a), [matrix(3, 5, torch.float32, b)], 0)
        for a, b in itertools.product((False, True), repeat=2)
    )
    if _ext.load().build_info()["bfloat16"] == "pairs" and torch.ops.bertfast_cpu.can_pack(torch.bfloat16, 2):
        for right in (torch.bfloat16, torch.float32):
            assert takes(matrix(4, 3, torch.bfloat16, True), [matrix(3, 5, right, False)], 0)
            assert not takes(matrix(4, 3, torch.bfloat16, False), [matrix(3, 5, right, False)], 0)
            assert takes(matrix(4, 6, torch.bfloat16, False), [matrix(6, 5, right, True)], 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [(64, 64, 64), (128, 64, 10), (5, 7), (6, 3)])
def test_joined(owner, parts, dtype):
    for along, turned in itertools.product((0, 1), (False, True)):
        b = [
            matrix(n, 12, torch.float32, turned) if along == 0 else matrix(12, n, torch.float32, turned) for n in parts
        ]
        a = torch.randn(9, sum(parts) if along == 0 else 12).to(dtype)
        bias = torch.randn(sum(parts)) if along else None
        whole = torch.cat(b, along).to(dtype)
        eager, exact = a @ whole, a.double() @ whole.double()
        if bias is not None:
            eager, exact = eager + bias.to(dtype), exact + bias.double()
        assert_within_budget(products.product(a, b, along=along, bias=bias), eager, exact, "c", measure=rms_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_are_torchs(monkeypatch, dtype):
    """Of which our kernels would spend more on the order of the weights than they gain; joined ones are not copied."""
    if not torch.ops.bertfast_cpu.can_multiply(torch.ones(2, 2, dtype=dtype), [torch.ones(2, 2, dtype=dtype)], 0):
        pytest.skip("this build of the kernels multiplies by torch's products")
    monkeypatch.setattr(products, "preferred", lambda: True)
    monkeypatch.setattr(products, "widens", lambda: False)
    by_torch = []

    def recorded(function):
        def call(*args, **options):
            by_torch.append(args)
            return function(*args, **options)

        return call

    monkeypatch.setattr(torch, "mm", recorded(torch.mm))
    monkeypatch.setattr(torch, "addmm", recorded(torch.addmm))
    weights, bias = [torch.randn(64, 64).to(dtype) for _ in range(3)], torch.randn(192).to(dtype)
    for tokens, count in ((31, 3), (32, 0)):
        x = torch.randn(tokens, 64).to(dtype)
        y = products.product(x, [w.t() for w in weights], along=1, bias=bias)
        whole = torch.cat(weights).t()
        exact = x.double() @ whole.double() + bias.double()
        assert len(by_torch) == count
        by_torch.clear()
        assert_within_budget(y, x @ whole + bias, exact, "y", measure=rms_error)
        dw = products.product(y.t(), [x])
        assert len(by_torch) == (count > 0)
        by_torch.clear()
        assert_within_budget(dw, y.t() @ x, y.double().t() @ x.double(), "dw", measure=rms_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_nothing(owner, dtype):
    a, b, bias = torch.randn(70, 64).to(dtype), [torch.randn(64, 128), torch.randn(64, 64)], torch.randn(192)
    plain = products.product(a, b, along=1, bias=bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = products.product(a, b, along=1, bias=bias)
    assert found.dtype == dtype
    assert torch.equal(found, plain)


def test_odd_layouts(owner):
    x, w, b = torch.randn(5, 64), torch.randn(96, 64), torch.randn(96)
    for bias in (torch.randn(192)[::2], torch.randn(1).expand(96)):
        torch.testing.assert_close(products.linear(x, w, bias), F.linear(x, w, bias), rtol=1e-4, atol=1e-4)
    for weight in (torch.randn(64).expand(96, 64), torch.randn(64, 96).t(), torch.randn(96, 128)[:, ::2]):
        torch.testing.assert_close(products.linear(x, weight, b), F.linear(x, weight, b), rtol=1e-4, atol=1e-4)
    out = torch.empty(96, 5).t()
    assert products.matmul(x, w.t(), out=out) is out
    torch.testing.assert_close(out, x @ w.t(), rtol=1e-4, atol=1e-4)


def test_bad_shapes(owner):
    x = torch.randn(5, 64)
    for call in (
        lambda: products.linear(x, torch.randn(2, 3, 64)),
        lambda: products.linear(x, torch.randn(96, 2000)),
        lambda: products.linear(x, torch.randn(96, 64), torch.randn(95)),
        lambda: products.matmul(x, torch.randn(2000, 96)),
        lambda: products.product(x, [torch.randn(32, 4), torch.randn(32, 5)]),
        lambda: products.product(x, [torch.randn(32, 4), torch.randn(16, 4)]),
        lambda: products.product(x, [torch.randn(64, 4)] * 2, along=1, bias=torch.randn(9)),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            call()


def test_out_of_bounds_is_refused():
    a, b = torch.randn(4, 6), torch.randn(6, 8)
    product = torch.ops.bertfast_cpu.product
    if not torch.ops.bertfast_cpu.can_multiply(a, [b], 0):
        pytest.skip("this build of the kernels multiplies by torch's products")
    for arguments in (
        (a, [b[:5]], 0, None, torch.empty(4, 8)),
        (a, [], 0, None, torch.empty(4, 8)),
        (a, [b], 2, None, torch.empty(4, 8)),
        (a, [b], 0, None, torch.empty(3, 8)),
        (a, [b], 0, None, torch.empty(8, 4).t()),
        (a, [b], 0, None, torch.empty(4, 8, dtype=torch.float64)),
        (a, [b], 0, torch.empty(7), torch.empty(4, 8)),
        (a[:, ::2], [b[:3]], 0, None, torch.empty(4, 8)),
    ):
        with pytest.raises(ValueError, match="product"):
            product(*arguments)


def test_nan_and_infinity_stay_in_their_row(owner):
    a, b = torch.randn(9, 40), torch.randn(40, 70)
    a[2, 3], a[4, 5] = float("nan"), float("inf")
    c = products.matmul(a, b)
    assert c[2].isnan().all()
    assert not c[4].isfinite().any()
    assert c[[0, 1, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_threads_at_once(owner, dtype):
    # The second one finds the shared memory for reordered sides taken.
    sides = [(matrix(300, 200, dtype, True), matrix(200, 260, dtype, False)) for _ in range(2)]
    alone = [products.matmul(a, b) for a, b in sides]
    found = [[], []]

    def work(i):
        found[i].extend(products.matmul(*sides[i]) for _ in range(30))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for (a, b), one, many in zip(sides, alone, found, strict=True):
        assert len(many) == 30
        for other in many:
            assert_within_budget(other, one, a.double() @ b.double(), measure=rms_error)
            assert owner != "ours" or torch.equal(one, other)  # of our own products bits are promised
