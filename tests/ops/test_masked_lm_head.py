"""masked_lm_loss, the whole head, against torch's own functions in float64."""

import pytest
import torch
import torch.nn.functional as F

from bertfast import _library
from bertfast.ops import masked_lm_loss
from bertfast.ops.masked_lm_loss import op
from bertfast.testing import assert_within_budget, leaves, rms_error

HEAD = ["dense_weight", "dense_bias", "norm_weight", "norm_bias", "decoder_weight", "decoder_bias"]
EPS = 1e-12


def head(size, vocabulary, dtype, tokens=(3, 11)):
    hidden = torch.randn(*tokens, size).to(dtype)
    table = (2 * torch.randn(vocabulary, size) / size**0.5).to(dtype)
    shapes = [(size, size), (size,), (size,), (size,)]
    parameters = [(torch.randn(*s) / s[-1] ** 0.5).to(dtype) for s in shapes]
    labels = torch.where(torch.rand(tokens) < 0.3, torch.randint(0, vocabulary, tokens), -100)
    labels.view(-1)[4] = 7
    return [hidden, *parameters, table, torch.randn(vocabulary).to(dtype)], labels


def ours(tensors, labels, **options):
    return masked_lm_loss(tensors[0], labels, **dict(zip(HEAD, tensors[1:], strict=True)), eps=EPS, **options)


def eager(tensors, labels):
    hidden, dense_weight, dense_bias, norm_weight, norm_bias, table, bias = tensors
    y = F.gelu(F.linear(hidden, dense_weight, dense_bias))
    y = F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, EPS)
    logits = F.linear(y, table, bias).flatten(0, -2)
    return F.cross_entropy(logits if hidden.dtype == torch.float64 else logits.float(), labels.flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", ["looked up", "given", "with empty slots"])
def test_head_parity(dtype, given):
    tensors, labels = head(48, 1031, dtype)
    places = (labels.flatten() != -100).nonzero()[:, 0]
    empty = torch.full((3,), -1)
    positions = {"looked up": None, "given": places, "with empty slots": torch.cat([empty, places, empty])}[given]
    mine, theirs, exact = leaves(tensors), leaves(tensors), leaves(tensors, torch.float64)
    loss, _, count = ours(mine, labels, positions=positions)
    other, oracle = eager(theirs, labels), eager(exact, labels)
    for result in (loss, other, oracle):
        result.backward()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert count == len(places)
    # One number: its error is a draw, which the roundings of what it is a mean over bound.
    torch.testing.assert_close(loss.double(), oracle, rtol=2 * torch.finfo(dtype).eps, atol=0.0)
    for name, m, t, o in zip(["hidden", *HEAD], mine, theirs, exact, strict=True):
        assert_within_budget(m.grad, t.grad, o.grad, name, rms_error)


def test_head_gradcheck():
    tensors, labels = head(6, 11, torch.float64, tokens=(7,))
    assert torch.autograd.gradcheck(lambda *t: ours(t, labels)[0], leaves(tensors))
    positions = torch.tensor([4, -1, 1, 0])
    assert torch.autograd.gradcheck(
        lambda *t: ours(t, labels, positions=positions, approximate="tanh")[0], leaves(tensors)
    )


@pytest.mark.parametrize("positions", [None, torch.tensor([-1, -1]), torch.tensor([], dtype=torch.int64)])
def test_no_masked_token(positions):
    tensors, labels = head(16, 97, torch.float32)
    mine = leaves(tensors)
    loss, correct, count = ours(mine, torch.full_like(labels, -100), positions=positions)
    loss.backward()
    assert (loss, correct, count) == (0, 0, 0)
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in mine)


def test_accuracy_is_counted():
    tensors, labels = head(16, 97, torch.float32)
    hidden, dense_weight, dense_bias, norm_weight, norm_bias, table, bias = tensors
    y = F.layer_norm(F.gelu(F.linear(hidden, dense_weight, dense_bias)), (16,), norm_weight, norm_bias, EPS)
    guess = F.linear(y, table, bias).argmax(-1)
    labels[0, :6] = guess[0, :6]
    labels[1, :4] = (guess[1, :4] + 1) % 97
    labels[1, 4:], labels[0, 6:], labels[2] = -100, -100, -100
    _, correct, count = ours(tensors, labels)
    assert (correct.dtype, count.dtype) == (torch.int64, torch.int64)
    assert (int(correct), int(count)) == (6, 10)


def test_tied_weight_sums_both_gradients():
    tensors, labels = head(16, 97, torch.float64)
    ids = torch.randint(0, 97, labels.shape)

    def step(loss):
        table = tensors[5].detach().requires_grad_()
        tied = [F.embedding(ids, table), *tensors[1:5], table, tensors[6]]
        loss(tied).backward()
        return table.grad

    torch.testing.assert_close(step(lambda t: ours(t, labels)[0]), step(lambda t: eager(t, labels)))


def test_ignore_index():
    tensors, labels = head(16, 97, torch.float32)
    expected = ours(tensors, labels)
    other = labels.masked_fill(labels == -100, -1)
    for positions in (None, torch.arange(labels.numel())):
        for a, b in zip(ours(tensors, other, ignore_index=-1, positions=positions), expected, strict=True):
            torch.testing.assert_close(a, b)
        with pytest.raises(IndexError, match="outside the vocabulary"):
            ours(tensors, labels, ignore_index=-1, positions=positions)


def test_autocast():
    tensors, labels = head(48, 1031, torch.float32)
    tensors = [*tensors[:-1], tensors[-1].bfloat16().float()]  # the decoder's bias is not rounded to autocast's dtype
    mine, narrow = leaves(tensors), leaves([t.bfloat16() for t in tensors])
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = ours(mine, labels)
        assert ours([tensors[0].bfloat16(), *tensors[1:]], labels)[0].isfinite()  # what a Linear before it gives
    expected, _, _ = ours([*narrow[:3], *mine[3:5], *narrow[5:]], labels)
    torch.testing.assert_close(loss, expected, rtol=2 * torch.finfo(torch.bfloat16).eps, atol=0.0)
    loss.backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in mine)


def test_compile(backend):
    tensors, labels = head(16, 97, torch.float32)
    positions = torch.cat([(labels.flatten() != -100).nonzero()[:, 0], torch.tensor([-1])])
    mine, theirs = leaves(tensors), leaves(tensors)
    compiled = torch.compile(lambda *t: ours(t, labels, positions=positions), fullgraph=True, backend=backend)
    loss, correct, count = compiled(*mine)
    expected = ours(theirs, labels, positions=positions)
    for a, b in zip((loss, correct, count), expected, strict=True):
        torch.testing.assert_close(a, b)
    loss.backward()
    expected[0].backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_logits_are_kept_only_for_backward_and_while_they_are_small(monkeypatch):
    tensors, labels = head(16, 97, torch.float32)
    kept = []
    real = _library.op

    def spying(name):
        call = real(name)
        return (lambda *t: (kept.append(t[-1]), call(*t))[1]) if name == "linear_cross_entropy_fwd" else call

    monkeypatch.setattr(_library, "op", spying)
    count = int((labels != -100).sum())
    for limit in (4 * 97 * count, 4 * 97 * count - 1):
        monkeypatch.setattr(op, "KEPT_BYTES", limit)
        ours(leaves(tensors), labels)
    monkeypatch.setattr(op, "KEPT_BYTES", 1 << 30)
    ours(tensors, labels)
    with torch.no_grad():
        ours(leaves(tensors), labels)
    assert kept == [True, False, False, False]


def test_bad_inputs():
    tensors, labels = head(16, 97, torch.float32)
    labels[1, 2] = 97
    with pytest.raises(IndexError, match=r"label 97 at place 13 is outside the vocabulary of 97"):
        ours(tensors, labels)
    for over in (33, 1000):
        with pytest.raises(IndexError, match=rf"position {over} in slot 1 is past the 33 tokens"):
            ours(tensors, labels, positions=torch.tensor([2, over]))
    with pytest.raises(ValueError, match=r"hidden must be \[B, S, E\]"):
        ours([tensors[0][0, 0], *tensors[1:]], labels[0, 0])
    with pytest.raises(ValueError, match="has no tokens"):
        ours([tensors[0][:0], *tensors[1:]], labels[:0], positions=torch.tensor([-1]))
    with pytest.raises(ValueError, match="decoder_bias must be given"):
        ours([*tensors[:6], None], labels)
    with pytest.raises(ValueError, match="one label a token"):
        ours(tensors, labels[:2])
    with pytest.raises(ValueError, match="labels must be int64"):
        ours(tensors, labels.int())
    with pytest.raises(ValueError, match="positions must be int64"):
        ours(tensors, labels, positions=torch.zeros(2))
    with pytest.raises(ValueError, match=r"positions must be \[M\]"):
        ours(tensors, labels, positions=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not fit"):
        ours([*tensors[:6], tensors[6][1:]], labels)
    with pytest.raises(ValueError, match="norm's parameters"):
        ours([*tensors[:3], tensors[3][1:], *tensors[4:]], labels)
    with pytest.raises(ValueError, match="approximate must be"):
        ours(tensors, labels.clamp(max=96), approximate="erf")
