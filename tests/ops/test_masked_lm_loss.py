"""linear_cross_entropy, the half of masked_lm_loss over the vocabulary, against torch's own functions in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from bertfast import _ext
from bertfast.ops import products as matrix_products
from bertfast.ops.masked_lm_loss import chunked, reference
from bertfast.testing import assert_within_budget, leaves, rms_error, rounding_step

# M, E, V: nothing, one row, a few; vocabularies that are a multiple of nothing, of less than one step of the kernel, of a few, of
# whole ones only.
SIZES = [(0, 16, 97), (1, 64, 97), (7, 48, 1031), (19, 32, 4801), (19, 16, 8192)]
ALL = (True, True, True)  # gradients that are needed


def make(rows, size, vocabulary, dtype):
    labels = torch.randint(0, vocabulary, (rows,))
    labels[2::5] = -100
    x, weight, bias = torch.randn(rows, size), 2 * torch.randn(vocabulary, size) / size**0.5, torch.randn(vocabulary)
    return (x.to(dtype), weight.to(dtype), bias.to(dtype)), labels


def products(events):
    return sum(e.name in ("aten::mm", "bertfast_cpu::product") for e in events.events())


def stock(x, weight, bias, labels):
    logits = F.linear(x, weight, bias)
    return F.cross_entropy(logits if x.dtype == torch.float64 else logits.float(), labels, reduction="none")


def stock_step(inputs, labels, dloss):
    loss = stock(*inputs, labels)
    loss.backward(dloss.to(loss.dtype))
    return [loss.detach(), *[t.grad for t in inputs]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep", [True, False])
def test_parity(implementation, size, dtype, keep, monkeypatch):
    # Eager's own product; test_products.py judges ours.
    for other in ("preferred", "widens"):
        monkeypatch.setattr(matrix_products, other, lambda: False)
    inputs, labels = make(*size, dtype)
    dloss = torch.randn(size[0])
    loss, lse, argmax, kept = implementation.linear_cross_entropy_fwd(*inputs, labels, keep)
    before = kept.clone()
    gradients = implementation.linear_cross_entropy_bwd(dloss, *inputs, labels, lse, kept, *ALL)
    assert torch.equal(kept, before)  # backward may run twice
    assert kept.shape == ((size[0], reference.padded(size[2])) if keep else (0,))
    exact = stock_step(leaves(inputs, torch.float64), labels, dloss)
    theirs = stock_step(leaves(inputs), labels, dloss)
    assert loss.dtype == lse.dtype == torch.float32
    for name, mine, e, o in zip(["loss", "dx", "dweight", "dbias"], (loss, *gradients), theirs, exact, strict=True):
        assert name == "loss" or mine.dtype == dtype
        if name == "loss" and size[0] == 1 and dtype != torch.float32:
            # One number, where eager may be right by luck: two logits, each rounded once.
            assert (mine - o).abs() <= 2 * rounding_step(dtype) * F.linear(
                *[t.double() for t in inputs[:2]]
            ).abs().max()
            continue
        # Two libraries' products: root mean square, as bertfast.testing says.
        assert_within_budget(mine, e, o, name, rms_error)
    logits = F.linear(*[t.double() for t in inputs])
    used = labels != -100
    torch.testing.assert_close(lse[used].double(), logits.logsumexp(1)[used], rtol=1e-2, atol=1e-2)
    chosen = logits[used].gather(1, argmax[used][:, None])[:, 0]  # among near ties, whichever rounding put first
    torch.testing.assert_close(chosen, logits[used].amax(1), rtol=2e-2, atol=0.0)
    assert (lse[~used] == 0).all()
    assert (argmax[~used] == -1).all()


def test_rows_that_count_for_nothing(implementation):
    inputs, labels = make(6, 16, 97, torch.float32)
    labels[:] = -100
    inputs[0][1] = float("nan")
    loss, lse, argmax, kept = implementation.linear_cross_entropy_fwd(*inputs, labels, True)
    dx, dweight, dbias = implementation.linear_cross_entropy_bwd(torch.ones(6), *inputs, labels, lse, kept, *ALL)
    assert torch.equal(loss, torch.zeros(6))
    assert torch.equal(argmax, torch.full((6,), -1))
    assert not dx.any()
    assert not dbias.any()
    assert not dweight[:, 0].nan_to_num(0).any()  # 0 x NaN of the row itself is the product's


def test_ties_and_extremes(implementation):
    # Logits are the bias: huge ones must not overflow, the first of equal ones is the guess.
    x, weight = torch.zeros(3, 16), torch.randn(9001, 16)
    bias = torch.full((9001,), -3e4)
    bias[[4103, 4500, 9000]] = 3e4
    labels = torch.tensor([4103, 9000, 0])
    loss, lse, argmax, kept = implementation.linear_cross_entropy_fwd(x, weight, bias, labels, False)
    assert torch.equal(argmax, torch.full((3,), 4103))
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.0, 6e4]) + math.log(3), atol=4e-3, rtol=0)
    _, _, dbias = implementation.linear_cross_entropy_bwd(torch.ones(3), x, weight, bias, labels, lse, kept, *ALL)
    torch.testing.assert_close(dbias[[0, 4103, 4500, 9000]], torch.tensor([-1.0, 0, 1, 0]), atol=4e-3, rtol=0)


def test_views(implementation):
    (x, weight, bias), labels = make(7, 12, 97, torch.float32)
    plain = implementation.linear_cross_entropy_fwd(x, weight, bias, labels, True)
    odd = (x.t().contiguous().t(), weight.t().contiguous().t(), bias.repeat_interleave(2)[::2])
    strided = labels.repeat_interleave(2)[::2]
    for mine, other in zip(implementation.linear_cross_entropy_fwd(*odd, strided, True), plain, strict=True):
        torch.testing.assert_close(mine, other)
    one = torch.ones(1)
    expected = implementation.linear_cross_entropy_bwd(one.repeat(7), x, weight, bias, labels, plain[1], plain[3], *ALL)
    got = implementation.linear_cross_entropy_bwd(one.expand(7), *odd, strided, plain[1], plain[3], *ALL)
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("label", [97, -1, -101, 2**40])
def test_bad_label(implementation, label):
    inputs, labels = make(7, 16, 97, torch.float32)
    labels[4] = label
    with pytest.raises(IndexError, match=r"(place|slot) 4"):
        implementation.linear_cross_entropy_fwd(*inputs, labels, False)


def test_gradcheck():
    inputs, labels = make(7, 5, 11, torch.float64)
    fwd = torch.ops.bertfast.linear_cross_entropy_fwd
    for keep in (True, False):
        assert torch.autograd.gradcheck(lambda *t, keep=keep: fwd(*t, labels, keep)[0], leaves(inputs))


def test_opcheck():
    inputs, labels = make(7, 16, 97, torch.float32)
    ops = torch.ops.bertfast
    for keep in (True, False):
        _, lse, _, kept = ops.linear_cross_entropy_fwd(*inputs, labels, keep)
        torch.library.opcheck(ops.linear_cross_entropy_fwd.default, (*leaves(inputs), labels, keep))
        for needs in (ALL, (True, False, False), (False, True, False)):
            saved = (*inputs, labels, lse, kept)
            torch.library.opcheck(ops.linear_cross_entropy_bwd.default, (torch.randn(7), *saved, *needs))


def test_subsets_of_gradients():
    inputs, labels = make(7, 16, 97, torch.float32)
    for wanted in range(3):
        tensors = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
        loss = torch.ops.bertfast.linear_cross_entropy_fwd(*tensors, labels, True)[0].sum()
        with profile() as events:
            loss.backward()
        assert products(events) == (0 if wanted == 2 else 1)
        assert [t.grad is not None for t in tensors] == [i == wanted for i in range(3)]


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("keep", [True, False])
def test_only_needed_gradients_are_computed(implementation, needs, keep):
    inputs, labels = make(7, 16, 97, torch.float32)
    _, lse, _, kept = implementation.linear_cross_entropy_fwd(*inputs, labels, keep)
    saved = (torch.randn(7), *inputs, labels, lse, kept)
    every = implementation.linear_cross_entropy_bwd(*saved, *ALL)
    with profile() as events:
        found = implementation.linear_cross_entropy_bwd(*saved, *needs)
    for mine, expected, needed in zip(found, every, needs, strict=True):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected if needed else expected.new_empty(0))
    assert products(events) == needs[0] + needs[1] + (not keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", [True, False])
def test_parity_of_chunks(implementation, dtype, keep, monkeypatch):
    if implementation is torch.ops.bertfast_reference:
        pytest.skip("the reference has no chunks")
    for module in (chunked, pytest.importorskip("bertfast.ops.masked_lm_loss.triton")):
        monkeypatch.setattr(module, "LOGITS_BYTES", 5 * 128 * 4)
    test_parity(implementation, (19, 32, 97), dtype, keep, monkeypatch)


def test_sums_over_many_rows(monkeypatch):
    # One running sum of so many rows is 5 times as far off as eager's bias gradient.
    test_parity(torch.ops.bertfast, (1500, 8, 97), torch.float32, True, monkeypatch)


def test_parity_without_extension(monkeypatch):
    monkeypatch.setattr(chunked._ext, "load", lambda: None)
    for dtype in (torch.float32, torch.bfloat16):
        test_parity_of_chunks(torch.ops.bertfast, dtype, True, monkeypatch)


def test_passes_refuse_what_they_would_misread():
    if _ext.load() is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    (_, _, bias), labels = make(7, 16, 97, torch.float32)
    logits, row = torch.randn(7, 97), torch.empty(7)
    statistics, gradient = (
        torch.ops.bertfast_cpu.cross_entropy_statistics,
        torch.ops.bertfast_cpu.cross_entropy_gradient,
    )
    statistics(logits, bias, labels, row, row.clone(), labels.clone())
    for bad in (logits.double(), logits[:, :96], logits[:6], logits.t().contiguous().t()):
        with pytest.raises(ValueError, match="cross_entropy"):
            statistics(bad, bias, labels, row, row.clone(), labels.clone())
    with pytest.raises(ValueError, match="cross_entropy"):
        statistics(logits, bias, labels, row[:6], row.clone(), labels.clone())
    for dlogits, dbias in ((logits[:6].clone(), bias), (logits.bfloat16(), bias), (logits.clone(), bias[:96])):
        with pytest.raises(ValueError, match="cross_entropy"):
            gradient(logits, bias, labels, row, row, 0, dlogits, dbias.clone())


def test_label_outside_is_no_number_in_the_pass_itself():
    if _ext.load() is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    labels = torch.tensor([3, 97, -1, 2**40])
    loss, lse, argmax = torch.empty(4), torch.empty(4), torch.empty(4, dtype=torch.int64)
    torch.ops.bertfast_cpu.cross_entropy_statistics(torch.randn(4, 97), torch.randn(97), labels, loss, lse, argmax)
    for found in (loss, lse):
        assert found.isnan().tolist() == [False, True, True, True]
    assert ((argmax >= 0) & (argmax < 97)).all()


@pytest.mark.parametrize("elements", [0, 5, 3 << 19])
def test_asking_for_huge_pages_changes_nothing(elements):
    if _ext.load() is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    whole = torch.arange(elements, dtype=torch.float32)
    part = whole[1:]
    torch.ops.bertfast_cpu.expect_whole_use(part)
    assert torch.equal(whole, torch.arange(elements, dtype=torch.float32))


def test_reference_checks_only_where_looking_is_free():
    labels = torch.tensor([5], device="meta")
    reference.check_labels(labels, 3)
