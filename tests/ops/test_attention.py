"""attention and attention_padded against a float64 oracle: eager softmax attention, one sequence at a time."""

import functools

import pytest
import torch

from bertfast import _ext
from bertfast.ops import attention, attention_padded, rng
from bertfast.testing import assert_within_budget, leaves, rms_error

# One key, less than a vector, an empty sequence, one past a vector, past two blocks of queries, odd and long; all at once.
LENGTHS = (1, 7, 0, 33, 129, 199)
# 32, 64 and 128 are what models have; 24 has a tail in every vector width, 256 is the largest head the kernels take.
HEADS = {24: 3, 32: 3, 64: 2, 128: 2, 256: 1}
# Sequences of one tile, which the Triton kernels take another way; and what is quick enough in Triton's interpreter: two
# whole tiles of 32 and one row more, or, in 16 bits, one row more than a tile of 128.
SHORT = (1, 7, 0, 31)
INTERPRETED = {torch.float32: (7, 0, 65), torch.bfloat16: (7, 0, 129), torch.float16: (7, 0, 129)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def interpreted(implementation):
    return type(implementation).__name__ == "TritonOps" and not torch.cuda.is_available()


def bounds(lengths=LENGTHS):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def softmax_attention(qkv, scale, mask=None, keep=None, rate=1.0):
    """qkv [S, 3, H, D] -> [S, H, D]; rows without a key give zeros."""
    q, k, v = qkv.permute(1, 2, 0, 3)
    scores = q @ k.transpose(-1, -2) * scale
    if mask is not None:
        mask = mask.expand(scores.shape)
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        scores = scores if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
        scores = scores.masked_fill(~allowed, float("-inf")).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
        p = scores.softmax(-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    else:
        p = scores.softmax(-1)
    p = p if keep is None else p * keep / rate
    return (p @ v).transpose(0, 1)


def packed_oracle(qkv, lengths, keep=None, rate=1.0):
    parts = [
        softmax_attention(
            x, qkv.shape[-1] ** -0.5, None, None if keep is None else keep[i, :, : len(x), : len(x)], rate
        )
        for i, x in enumerate(qkv.split(list(lengths)))
    ]
    return torch.cat(parts)


def padded_oracle(qkv, mask=None, keep=None, rate=1.0):
    batch, seqlen, _, heads, size = qkv.shape
    full = None if mask is None else mask.expand(batch, heads, seqlen, seqlen)
    rows = [
        softmax_attention(
            qkv[b], size**-0.5, None if full is None else full[b], None if keep is None else keep[b], rate
        )
        for b in range(batch)
    ]
    return torch.stack(rows)


def packed(ops, qkv, dout, lengths=LENGTHS, p=0.0, state=None):
    args = (bounds(lengths), max(lengths), qkv.shape[-1] ** -0.5, p, state)
    out, lse = ops.attention_fwd(qkv, *args)
    return out, lse, ops.attention_bwd(dout, qkv, out, lse, *args)


def padded(ops, qkv, dout, mask=None, p=0.0, state=None):
    args = (mask, qkv.shape[-1] ** -0.5, p, state)
    out, lse = ops.attention_padded_fwd(qkv, *args)
    return out, lse, ops.attention_padded_bwd(dout, qkv, out, lse, *args)


def assert_parity(ours, oracle, qkv, dout):
    """Output and gradient within the budget; `oracle` runs in qkv's dtype and in float64. Products of two libraries: root mean
    squares, as bertfast.testing says; one element that saw another key is thousands of times over them."""
    results = []
    for dtype in (qkv.dtype, torch.float64):
        (leaf,) = leaves([qkv], dtype)
        y = oracle(leaf)
        y.backward(dout.to(dtype))
        results.append((y.detach(), leaf.grad))
    for name, mine, eager, exact in zip(("out", "dqkv"), ours, *results, strict=True):
        assert mine.dtype == qkv.dtype
        assert_within_budget(mine, eager, exact, name, rms_error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", HEADS)
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("lengths", [LENGTHS, SHORT], ids=["long", "short"])
def test_parity_packed(implementation, size, dtype, p, lengths):
    heads = HEADS[size]
    if interpreted(implementation) and lengths is LENGTHS:
        lengths, heads = INTERPRETED[dtype], min(heads, 2)
    qkv, dout = (torch.randn(sum(lengths), *shape, heads, size).to(dtype) for shape in ((3,), ()))
    state = rng.new_rng("cpu") if p else None
    keep = rng.keep_attention(state, len(lengths), heads, max(lengths), max(lengths), p) if p else None
    out, lse, dqkv = packed(implementation, qkv, dout, lengths, p=p, state=state)
    assert lse.dtype == torch.float32
    assert lse.shape == (heads, sum(lengths))
    exact = [torch.logsumexp(q @ k.mT * size**-0.5, -1) for q, k, _ in qkv_of(qkv.double(), lengths)]
    torch.testing.assert_close(lse.double(), torch.cat(exact, -1), rtol=1e-5, atol=1e-5)
    oracle = functools.partial(packed_oracle, lengths=lengths, keep=keep, rate=rng.keep_rate_attention(p) if p else 1.0)
    assert_parity((out, dqkv), oracle, qkv, dout)


def qkv_of(qkv, lengths):
    """(q, k, v), each [H, S, D], of every sequence."""
    return [x.permute(1, 2, 0, 3) for x in qkv.split(list(lengths))]


@pytest.mark.parametrize("seqlen", [17, 40])
def test_bias_in_the_load(triton_ops, seqlen):
    # One tile and several; the launchers' option, in no op's schema.
    from bertfast.ops.attention import triton as launchers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    qkv, bias = torch.randn(seqlen, 3, 2, 24, device=device), torch.randn(3, 2, 24, device=device)
    dout, cu = torch.randn(seqlen, 2, 24, device=device), bounds((seqlen,)).to(device)
    results = []
    for given, option in ((qkv, bias), (qkv + bias, None)):
        out, lse = launchers.forward(given, cu, seqlen, 0.2, 0.0, None, bias=option)
        results.append((out, lse, launchers.backward(dout, given, out, lse, cu, seqlen, 0.2, 0.0, None, bias=option)))
    for folded, apart in zip(*results, strict=True):
        torch.testing.assert_close(folded, apart)


def masks(batch, heads, seqlen):
    """Every broadcast that callers use, named; the second sequence has no key at all in `empty`, the third row in `rows`."""
    keys = torch.arange(seqlen) < torch.tensor([[seqlen], [seqlen // 2]])[:batch]
    rows = torch.rand(batch, 1, seqlen, seqlen) > 0.5
    rows[:, :, 2] = False
    empty = keys.clone()
    empty[1] = False
    lowest = torch.finfo(torch.float32).min
    return {
        "none": None,
        "keys": keys[:, None, None],
        "expanded": keys[:, None, None].expand(batch, 1, seqlen, seqlen),
        "additive": torch.zeros(batch, 1, 1, seqlen).masked_fill(~keys[:, None, None], lowest),
        "rows": rows,
        "rows_additive": torch.randn(batch, 1, seqlen, seqlen).masked_fill(~rows, float("-inf")),
        "empty": empty[:, None, None],
        "empty_additive": torch.zeros(batch, 1, 1, seqlen).masked_fill(~empty[:, None, None], lowest),
        "queries": torch.rand(batch, heads, seqlen, 1) > 0.3,
        "bias": torch.randn(heads, seqlen, seqlen),
        "lower_triangle": torch.ones(seqlen, seqlen).tril().bool(),
        "bfloat16": torch.zeros(seqlen).masked_fill(~keys[1], torch.finfo(torch.bfloat16).min).bfloat16(),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", masks(2, 2, 8))
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_parity_padded(implementation, name, dtype, p):
    batch, size = 2, 32
    seqlen, heads = (33, 2) if interpreted(implementation) else (65, 3)  # a tile or two of 32, and one row more
    mask = masks(batch, heads, seqlen)[name]
    qkv, dout = (torch.randn(batch, seqlen, *shape, heads, size).to(dtype) for shape in ((3,), ()))
    state = rng.new_rng("cpu") if p else None
    keep = rng.keep_attention(state, batch, heads, seqlen, seqlen, p) if p else None
    out, lse, dqkv = padded(implementation, qkv, dout, mask, p, state)
    assert lse.shape == (batch, heads, seqlen)
    oracle = functools.partial(padded_oracle, mask=mask, keep=keep, rate=rng.keep_rate_attention(p) if p else 1.0)
    assert_parity((out, dqkv), oracle, qkv, dout)
    if name.startswith("empty"):
        assert not out[1].any()
        assert not dqkv[1].any()


def test_parity_of_large_scores(implementation):
    # exp underflows for most keys. Near ties make the worst element of one draw a matter of luck whatever the kernel, so
    # many sequences are pooled and root mean squares compared.
    lengths = (40,) * 64
    qkv, dout = torch.randn(sum(lengths), 3, 2, 64) * 12, torch.randn(sum(lengths), 2, 64)
    out, _, dqkv = packed(implementation, qkv, dout, lengths)
    results = []
    for dtype in (torch.float32, torch.float64):
        (leaf,) = leaves([qkv], dtype)
        y = packed_oracle(leaf, lengths)
        y.backward(dout.to(dtype))
        results.append((y.detach(), leaf.grad))
    for ours, eager, exact in zip((out, dqkv), *results, strict=True):
        error, eager_error = ((x - exact).square().mean().sqrt() for x in (ours, eager))
        assert error <= 2 * eager_error


def test_parity_of_partial_sums():
    # Products are summed in short runs; one running sum has 1.6 times this error, which the budget would let pass.
    ops, qkv, dout = torch.ops.bertfast, torch.randn(428, 3, 4, 64), torch.randn(428, 4, 64)
    if _ext.why_absent() is not None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    out, _, dqkv = packed(ops, qkv, dout, (129, 199, 100))
    exact_out, _, exact_dqkv = packed(torch.ops.bertfast_reference, qkv.double(), dout.double(), (129, 199, 100))
    assert (out - exact_out).square().mean().sqrt() < 3.5e-8
    assert (dqkv - exact_dqkv).square().mean().sqrt() < 3.5e-8


def test_dropout_is_the_written_scheme(implementation):
    # With values = identity the output is the dropped probabilities themselves; with uniform p they show the kept keys.
    batch, size, heads, p = 3, 64, 2, 0.3
    qkv = torch.zeros(batch, size, 3, heads, size)
    qkv[:, :, 2] = torch.eye(size)[:, None]
    state = rng.new_rng("cpu")
    keep, rate = rng.keep_attention(state, batch, heads, size, size, p), rng.keep_rate_attention(p)
    dout = torch.ones(batch, size, heads, size)
    out, _, dqkv = padded(implementation, qkv, dout, None, p, state)
    torch.testing.assert_close(out.transpose(1, 2), keep / (size * rate))
    # dv[j] = sum over queries of the dropped probability of key j: backward drops the same.
    torch.testing.assert_close(dqkv[:, :, 2, :, 0].transpose(1, 2), (keep / (size * rate)).sum(2))
    assert abs(keep.float().mean() - rate) < 0.01
    flat, _, dflat = packed(implementation, qkv.flatten(0, 1), dout.flatten(0, 1), (size,) * batch, p, state)
    torch.testing.assert_close(flat, out.flatten(0, 1))
    torch.testing.assert_close(dflat, dqkv.flatten(0, 1))


def test_nan_is_not_hidden(implementation):
    qkv = torch.randn(9, 3, 1, 32)
    qkv[4, 1] = float("nan")
    out, _, _ = packed(implementation, qkv, torch.ones(9, 1, 32), (3, 6))
    assert not out[:3].isnan().any()
    assert out[3:].isnan().all()


def test_repeats_whatever_the_threads(threads):
    qkv, dout, state = torch.randn(sum(LENGTHS), 3, 2, 64), torch.randn(sum(LENGTHS), 2, 64), rng.new_rng("cpu")
    results = []
    for count in (2, 2, 1, 5):
        threads(count)
        results.append(packed(torch.ops.bertfast, qkv, dout, p=0.1, state=state))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_views_and_half():
    base = torch.randn(2, 3, 17, 2, 32, requires_grad=True)  # [H.., 3, ..]: qkv comes as a view that is not contiguous
    qkv = base.permute(2, 1, 3, 0, 4).flatten(2, 3)
    y = attention(qkv, bounds((17,)), 17)
    y.transpose(0, 1).square().sum().backward()  # and so does the gradient
    (leaf,) = leaves([base])
    expected = packed_oracle(leaf.permute(2, 1, 3, 0, 4).flatten(2, 3), (17,))
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(base.grad, leaf.grad, rtol=1e-4, atol=1e-4)
    half = attention(qkv.detach().half(), bounds((17,)), 17)  # taken by the reference
    torch.testing.assert_close(half.float(), y, rtol=5e-3, atol=5e-3)


def test_gradcheck():
    state, cu = rng.new_rng("cpu"), bounds((3, 0, 4))
    flat, batch = torch.randn(7, 3, 2, 4, dtype=torch.float64), torch.randn(2, 3, 3, 2, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, False, False]])[:, None, None]
    for p, s in ((0.0, None), (0.4, state)):
        drop = {"dropout_p": p, "rng": s}
        assert torch.autograd.gradcheck(lambda x, drop=drop: attention(x, cu, 4, **drop), leaves([flat]))
        assert torch.autograd.gradcheck(lambda x, drop=drop: attention_padded(x, mask, **drop), leaves([batch]))


def test_opcheck():
    state, cu, mask = rng.new_rng("cpu"), bounds((3, 5)), torch.randn(2, 1, 4, 4)
    for p, s in ((0.0, None), (0.2, state)):
        for ops, shape, args in (
            ("attention", (8,), (cu, 5, 0.3, p, s)),
            ("attention_padded", (2, 4), (mask, 0.3, p, s)),
        ):
            (qkv,) = leaves([torch.randn(*shape, 3, 2, 8)])
            forward, backward = (getattr(torch.ops.bertfast, f"{ops}_{way}").default for way in ("fwd", "bwd"))
            torch.library.opcheck(forward, (qkv, *args))
            out, lse = (t.detach() for t in forward(qkv, *args))
            torch.library.opcheck(backward, (torch.randn_like(out), qkv.detach(), out, lse, *args))


def test_compile(backend):
    cu, state = bounds((3, 5)), rng.new_rng("cpu")
    for function, shape in (
        (lambda x: attention(x, cu, 5, dropout_p=0.1, rng=state), (8,)),
        (lambda x: attention_padded(x, torch.tensor([True, True, True, False])), (2, 4)),
    ):
        plain, compiled = leaves([torch.randn(*shape, 3, 2, 8)] * 2)
        y = torch.compile(function, fullgraph=True, backend=backend)(compiled)
        y.square().sum().backward()
        function(plain).square().sum().backward()
        assert torch.equal(y, function(plain))
        assert torch.equal(compiled.grad, plain.grad)


def test_nothing_to_do(implementation):
    out, lse, dqkv = packed(implementation, torch.randn(0, 3, 2, 32), torch.randn(0, 2, 32), (0, 0))
    assert (out.shape, lse.shape, dqkv.shape) == ((0, 2, 32), (2, 0), (0, 3, 2, 32))


@pytest.mark.parametrize(
    ("cu", "longest", "message"),
    [
        ([0, 4], 4, "rise from 0"),
        ([1, 6], 6, "rise"),
        (
            [0, 5, 3, 6],
            6,
            "falls from 5 to 3 at sequence 1|rise from 0 to the tokens of qkv; found wrong at sequence 1",
        ),
        ([0, 2, 6], 3, "max_seqlen is (3|less)"),
        ([0, 9], 9, "rise"),
        ([0], 6, "rise"),
    ],
)
def test_bad_bounds(implementation, cu, longest, message):
    with pytest.raises(ValueError, match=message):
        implementation.attention_fwd(
            torch.ones(6, 3, 1, 8), torch.tensor(cu, dtype=torch.int32), longest, 1.0, 0.0, None
        )


@pytest.mark.parametrize("times", [1, 12], ids=["one tile", "tiles"])
@pytest.mark.parametrize(
    ("cu", "longest", "good", "message"),
    [
        ([0, 4], 4, [], "rise from 0"),
        ([0, 2, 4], 2, [0, 1], "rise from 0"),
        ([1, 6], 6, [], "rise from 0"),
        ([3, 5, 6], 2, [5], "rise from 0"),
        ([0, 9], 9, [], "rise from 0"),
        ([0, -3, 6], 6, [], "rise from 0"),
        ([0, 2, 6], 3, [0, 1], "max_seqlen is less"),
        ([0, 2, 6], 0, [], "max_seqlen is less"),
    ],
)
def test_bad_bounds_leave_nan(triton_ops, monkeypatch, cu, longest, good, message, times):
    # What the kernels do where nobody looks first, as on a GPU: every row but those of good sequences is NaN, the memory of
    # no other is touched, and the mailbox says why. Rows of the six tokens stand for `times` rows each.
    from bertfast.ops.attention import triton as launchers
    from bertfast.triton import mailbox

    monkeypatch.setattr(launchers, "_check", lambda *_: None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    qkv, dout = (torch.randn(6 * times, *shape, 2, 8, device=device) for shape in ((3,), ()))
    args = (torch.tensor(cu, dtype=torch.int32, device=device) * times, longest * times, 0.3, 0.0, None)
    wanted = torch.ones(6, dtype=torch.bool)
    wanted[good] = False
    wanted = wanted.repeat_interleave(times)
    out, lse = launchers.forward(qkv, *args)
    with pytest.raises(ValueError, match=message):
        _synchronised_check(mailbox, device)
    dqkv = launchers.backward(dout, qkv, out, lse, *args)
    with pytest.raises(ValueError, match=message):
        _synchronised_check(mailbox, device)
    for name, rows in (("out", out), ("lse", lse.T), ("dqkv", dqkv)):
        nan = rows.isnan().flatten(1)
        assert torch.equal(nan.all(1).cpu(), wanted), name
        assert torch.equal(nan.any(1).cpu(), wanted), name


def _synchronised_check(mailbox, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    mailbox.check(device)


def test_scale_that_is_not_positive(implementation):
    qkv, dout, cu = torch.randn(9, 3, 2, 16), torch.randn(9, 2, 16), bounds((9,))
    for scale in (-0.5, 0.0):
        out, lse = implementation.attention_fwd(qkv, cu, 9, scale, 0.0, None)
        dqkv = implementation.attention_bwd(dout, qkv, out, lse, cu, 9, scale, 0.0, None)
        (leaf,) = leaves([qkv])
        expected = softmax_attention(leaf, scale)
        expected.backward(dout)
        torch.testing.assert_close(out, expected.detach())
        torch.testing.assert_close(dqkv, leaf.grad, rtol=1e-4, atol=1e-5)


def test_bad_arguments():
    qkv, cu = torch.ones(6, 3, 1, 8), bounds((6,))
    for args, message in (
        ((qkv[:, :2], cu, 6), "qkv must be"),
        ((qkv.long(), cu, 6), "floating point"),
        ((qkv, cu.long(), 6), "int32"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(*args)
    with pytest.raises(ValueError, match="rng must be given"):
        attention(qkv, cu, 6, dropout_p=0.1)
    for mask, message in ((torch.ones(5).bool(), "broadcast"), (torch.ones(6).long(), "bool or floating")):
        with pytest.raises(ValueError, match=message):
            attention_padded(qkv[None], mask)


@pytest.mark.parametrize(
    ("dropout_p", "size", "tile"), [(0.0, 64, (128, 64)), (0.1, 64, (64, 128)), (0.0, 32, (64, 128))]
)
def test_long_sequences_take_another_tile_without_dropout(triton_ops, dropout_p, size, tile):
    from bertfast.ops.attention import triton as launchers
    from bertfast.triton import launch

    qkv = torch.empty(1024, 3, 12, size, dtype=torch.bfloat16, device="meta")
    cu = torch.empty(3, dtype=torch.int32, device="meta")
    state = torch.empty(2, dtype=torch.int64, device="meta") if dropout_p else None
    with launch.recording(90) as launches:
        launchers.forward(qkv, cu, 512, 0.125, dropout_p, state)
    (one,) = launches
    constants = dict(one.constants)
    assert ((constants["BLOCK_M"], constants["BLOCK_N"]), one.warps, one.stages) == (tile, 4, 3)
    assert one.grid == (-(-512 // tile[0]) * 12 * 2,)
