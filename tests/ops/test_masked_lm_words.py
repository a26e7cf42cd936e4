"""Products over a word table with zeros below it: the same results, and nothing more to launch than the copy."""

import pytest
import test_masked_lm_loss as whole
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bertfast.ops.masked_lm_loss import words
from bertfast.testing import assert_within_budget, rms_error

HALVES = [torch.bfloat16, torch.float16]
triton_alone = pytest.mark.parametrize("implementation", ["triton"], indirect=True)


@pytest.fixture
def any_rows(monkeypatch):
    monkeypatch.setattr(words, "LEAST_ROWS", 1)


@triton_alone
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "pieces"])
def test_parity_of_padded_words(implementation, any_rows, dtype, keep, pieces, monkeypatch):
    from bertfast.ops.masked_lm_loss import triton as launchers

    if pieces:
        monkeypatch.setattr(launchers, "LOGITS_BYTES", 5 * 1088 * 2)
    whole.test_parity(implementation, (19, 48, 1031), dtype, keep, monkeypatch)


@triton_alone
@pytest.mark.parametrize("keep", [True, False])
def test_numbers_beside_the_vocabulary_are_not_read(implementation, any_rows, keep):
    # Infinite rows make NaN of the padding's zeros; rows that count for nothing keep them to themselves.
    inputs, labels = whole.make(6, 16, 97, torch.bfloat16)
    labels[:] = torch.tensor([5, -100, 96, 0, 33, -100])
    inputs[0][1] = float("inf")
    plain = [t[labels != -100] if t.shape[0] == 6 else t for t in (*inputs, labels)]
    loss, lse, argmax, kept = implementation.linear_cross_entropy_fwd(*inputs, labels, keep)
    expected = implementation.linear_cross_entropy_fwd(*plain, keep)
    assert torch.equal(loss[labels != -100], expected[0])
    assert torch.equal(argmax[labels != -100], expected[2])
    dx, dweight, dbias = implementation.linear_cross_entropy_bwd(torch.ones(6), *inputs, labels, lse, kept, *whole.ALL)
    assert not dx[labels == -100].any()
    assert dx.isfinite().all()
    assert dbias.isfinite().all()
    assert dweight.shape == (97, 16)


@pytest.mark.parametrize(
    ("rows", "vocabulary", "size", "dtype", "copied"),
    [
        (256, 30522, 768, torch.bfloat16, True),
        (256, 30522, 768, torch.float16, True),
        (255, 30522, 768, torch.bfloat16, False),  # the copy would cost more than it gains
        (256, 30528, 768, torch.bfloat16, False),
        (256, 30522, 768, torch.float32, False),  # no tensor cores within the budget
        (256, 30522, 772, torch.bfloat16, False),  # slow whatever the words
    ],
)
def test_when_words_are_copied(rows, vocabulary, size, dtype, copied):
    weight = torch.empty(vocabulary, size, dtype=dtype, device="meta")
    result = words.aligned_words(weight, rows)
    assert (result is not weight) is copied
    assert result.shape == (30528 if copied else vocabulary, size)


def test_zeros_lie_below_the_words(poisoned):
    weight = torch.randn(97, 16).bfloat16()
    result = words.aligned_words(weight, 256)
    assert torch.equal(result[:97], weight)
    assert torch.equal(result[97:], torch.zeros(31, 16).bfloat16())


class Calls(TorchDispatchMode):
    """What torch is asked to do, views and empty tensors left out: (name, shape of what is written, elements)."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name not in ("empty", "new_empty", "empty_like", "slice", "t", "transpose", "select", "view", "alias"):
            self.found.append((name, tuple(result.shape) if isinstance(result, torch.Tensor) else ()))
        return result


def test_only_the_copy_is_added(triton_ops):
    from bertfast.ops.masked_lm_loss import triton as launchers
    from bertfast.triton import launch

    rows, vocabulary, size = 1229, 30522, 768

    def calls(dtype):
        inputs = [torch.empty(*shape, dtype=dtype, device="meta") for shape in ((rows, size), (vocabulary, size))]
        bias, labels = (torch.empty(n, dtype=t, device="meta") for n, t in ((vocabulary, dtype), (rows, torch.int64)))
        with launch.recording(90) as launches, Calls() as forward:
            _, lse, _, kept = launchers.linear_cross_entropy_fwd(*inputs, bias, labels, True)
        with launch.recording(90) as more, Calls() as backward:
            dloss = torch.empty(rows, device="meta")
            launchers.linear_cross_entropy_bwd(dloss, *inputs, bias, labels, lse, kept, *whole.ALL)
        return forward.found, backward.found, [one.kernel.__name__ for one in launches + more]

    forward, backward, kernels = calls(torch.bfloat16)
    copy = [("new_zeros", (30528 - vocabulary, size)), ("cat", (30528, size))]
    assert forward == [*copy, ("mm", (rows, 30528))]
    assert backward == [*copy, ("mm", (rows, size)), ("mm", (30528, size))]
    plain = calls(torch.float32)
    assert plain[0] == [("mm", (rows, vocabulary)), ("zero_", (rows, 30528 - vocabulary))]
    assert plain[1] == [("mm", (rows, size)), ("mm", (vocabulary, size))]
    assert plain[2] == kernels


@pytest.mark.parametrize("rows", [255, 300])
def test_logits_of_all_words(rows):
    x, weight, bias = torch.randn(rows, 64).bfloat16(), torch.randn(97, 64).bfloat16(), torch.randn(97).bfloat16()
    logits = words.word_logits(x, weight, bias)
    assert logits.shape == (rows, 97)
    assert logits.stride() == ((97, 1) if rows < 256 else (128, 1))
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert_within_budget(logits, F.linear(x, weight, bias), exact, "logits", rms_error)
