"""tied_embedding_sum_norm: gradients are those of using the word table itself; one that somebody else holds is not overwritten."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from bertfast import ops
from bertfast.ops.embedding_sum_norm import embedding_sum_norm, tied_embedding_sum_norm
from bertfast.testing import assert_within_budget, leaves

EPS = 1e-12
VOCABULARY, POSITIONS, PAD, SIZE, TOKENS = 61, 32, 0, 16, 30


def make(dtype=torch.float32, tokens=TOKENS):
    ids = torch.randint(0, VOCABULARY, (tokens,))
    ids[::3] = 5
    ids[1] = PAD
    rest = torch.arange(tokens) % POSITIONS, torch.randint(0, 2, (tokens,))
    tables = [torch.randn(n, SIZE).to(dtype) for n in (VOCABULARY, POSITIONS, 2)]
    return (ids, *rest), (*tables, torch.randn(SIZE).to(dtype), torch.randn(SIZE).to(dtype))


def check_adds(implementation, dtype, tokens=TOKENS):
    ids, parameters = make(dtype, tokens)
    _, mean, rstd = implementation.embedding_sum_norm_fwd(*ids, *parameters, PAD, EPS, 0.0, None)
    dy = torch.randn(tokens, SIZE).to(dtype)
    given = torch.randn(VOCABULARY, SIZE).to(dtype)
    args = (dy, *ids, *parameters[:-1], mean, rstd, PAD, 0.0, None)
    device = "cuda" if torch.cuda.is_available() and type(implementation).__name__ == "TritonOps" else "cpu"
    dword = given.clone().to(device)
    others = implementation.embedding_sum_norm_tied_bwd(dword, *args)
    dword = dword.cpu()
    word, *wanted = implementation.embedding_sum_norm_bwd(*args)
    torch.testing.assert_close(list(others), wanted)
    absent = torch.ones(VOCABULARY, dtype=torch.bool)
    absent[ids[0]] = False
    absent[PAD] = True
    assert torch.equal(dword[absent], given[absent])

    def run(t):
        z = F.embedding(ids[0], t[0], padding_idx=PAD) + t[1][ids[1]] + t[2][ids[2]]
        F.layer_norm(z, (SIZE,), t[3], t[4], EPS).backward(dy.to(z.dtype))
        return t[0].grad + given

    assert_within_budget(dword, run(leaves(parameters)), run(leaves(parameters, torch.float64)), "dword")
    assert_within_budget(dword, given + word, given.double() + run(leaves(parameters, torch.float64)) - given, "sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_adds_to_what_is_there(implementation, dtype):
    check_adds(implementation, dtype)


def test_adds_from_chunks(triton_ops, poisoned, monkeypatch):
    from bertfast.ops.embedding_sum_norm import segments
    from bertfast.triton import tables

    monkeypatch.setattr(segments, "DIRECT_TOKENS", 0)
    with tables.override({e: {**e.tile, "chunk": 4} for e in segments.TABLES.entries if e.table == "chunks"}):
        check_adds(triton_ops, torch.float32, 60)


class Decoder(torch.autograd.Function):
    """y W^T; says where in memory its gradient of W was."""

    places: ClassVar[list[int]] = []

    @staticmethod
    def forward(ctx, y, weight):
        ctx.save_for_backward(y, weight)
        return y @ weight.t()

    @staticmethod
    def backward(ctx, d):
        y, weight = ctx.saved_tensors
        dweight = d.t() @ y
        Decoder.places.append(dweight.data_ptr())
        return d @ weight, dweight


def gradients(tie, use, passes=1, decoder=Decoder.apply):
    """(gradients of all parameters, what `use` gave): use(y, decoder's weight, decoder) makes the loss."""
    torch.manual_seed(3)
    (ids, positions, segments), parameters = make()
    parameters = leaves(parameters)
    options = {"position_ids": positions, "segment_ids": segments, "padding_idx": PAD}
    if tie:
        y, weight = tied_embedding_sum_norm(ids, *parameters, **options)
        assert weight is not parameters[0]
        assert weight.data_ptr() == parameters[0].data_ptr()
    else:
        y, weight = embedding_sum_norm(ids, *parameters, **options), parameters[0]
    loss, more = use(y, weight, decoder)
    Decoder.places.clear()
    for number in range(passes):
        loss.backward(retain_graph=number < passes - 1)
    return [t.grad for t in parameters], more


def assert_same(use, **options):
    ours, more = gradients(True, use, **options)
    wanted, wanted_more = gradients(False, use, **options)
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(more, wanted_more)
    return ours


def plain(y, weight, decoder):
    return decoder(y.tanh(), weight).square().sum(), None


def test_one_gradient_in_place():
    ours, _ = gradients(True, plain)
    assert Decoder.places == [ours[0].data_ptr()]  # the decoder's, added to
    assert_same(plain)


@pytest.mark.parametrize("passes", [2, 3])
def test_several_backward_passes(passes):
    assert_same(plain, passes=passes)


def test_other_decoders():
    assert_same(plain, decoder=F.linear)
    assert_same(plain, decoder=ops.linear)

    def loss(y, weight, _):
        head = [torch.eye(SIZE), torch.ones(SIZE), torch.ones(SIZE), torch.zeros(SIZE)]
        names = "dense_weight", "dense_bias", "norm_weight", "norm_bias"
        labels = torch.arange(TOKENS)
        head = dict(zip(names, head, strict=True))
        found = ops.masked_lm_loss(y, labels, **head, decoder_weight=weight, decoder_bias=torch.zeros(VOCABULARY))
        return found[0], None

    assert_same(loss)


def test_two_decoders_and_none():
    assert_same(lambda y, w, decoder: ((decoder(y, w) + decoder(y.sin(), w)).square().sum(), None))
    assert_same(lambda y, w, decoder: (y.square().sum(), None))
    ours, wanted = (gradients(tie, lambda y, w, decoder: (w.square().sum(), None))[0] for tie in (True, False))
    assert torch.equal(ours[0], wanted[0])
    assert all(t is None for t in ours[1:])


def test_gradients_that_others_hold_stay():
    kept: list[torch.Tensor] = []

    def hooked(y, weight, decoder):
        same = weight.view_as(weight)  # in the untied graph too, this one's gradient is the decoder's alone
        same.register_hook(kept.append)
        return decoder(y.tanh(), same).square().sum(), None

    assert_same(hooked)
    torch.testing.assert_close(kept[0], kept[1])

    def shared(y, weight, decoder):
        other = torch.ones_like(weight).requires_grad_()
        kept.append(other)
        return decoder(y.tanh(), weight + other).square().sum(), None

    kept.clear()
    assert_same(shared)
    torch.testing.assert_close(kept[0].grad, kept[1].grad)

    def shared_before(y, weight, decoder):
        # `other` gets its gradient after the embedding has got its own.
        other = torch.ones_like(weight).requires_grad_()
        kept.append(other)
        late = other.view_as(other) * 1.0
        for _ in range(3):
            late = late.view_as(late)
        return decoder(y.tanh(), late + weight).square().sum(), None

    kept.clear()
    assert_same(shared_before)
    torch.testing.assert_close(kept[0].grad, kept[1].grad)

    def constant(y, weight, decoder):
        class Constant(torch.autograd.Function):
            gradient = torch.ones(VOCABULARY, SIZE)

            @staticmethod
            def forward(ctx, w):
                return w.sum()

            @staticmethod
            def backward(ctx, d):
                return Constant.gradient

        kept.append(Constant.gradient)
        return y.square().sum() + Constant.apply(weight), None

    kept.clear()
    assert_same(constant, passes=2)
    assert torch.equal(kept[0], torch.ones(VOCABULARY, SIZE))


def test_gradients_of_other_layouts():
    assert_same(lambda y, w, decoder: (y.square().sum() + w.sum(), None))  # expanded from one element
    assert_same(lambda y, w, decoder: (decoder(y, w.t().contiguous().t()).square().sum(), None))
    indices = torch.tensor([1, 5, 5])
    assert_same(lambda y, w, d: (y.square().sum() + F.embedding(indices, w, sparse=True).square().sum(), None))


def test_asked_for_and_given():
    (ids, positions, _), parameters = make()
    parameters = leaves(parameters)
    y, weight = tied_embedding_sum_norm(ids, *parameters, position_ids=positions)
    loss = y.square().sum() + (weight * 2).square().sum()
    dword, dtied = torch.autograd.grad(loss, (parameters[0], weight), retain_graph=True)
    assert torch.equal(dtied, 8 * weight)
    ours = torch.ones_like(weight)
    (again,) = torch.autograd.grad((loss, weight), parameters[0], (torch.ones(()), ours))
    assert torch.equal(ours, torch.ones_like(weight))
    torch.testing.assert_close(again, dword + 1)


def test_hook_on_the_table_sees_the_sum():
    seen: list[torch.Tensor] = []
    (ids, positions, _), parameters = make()
    parameters = leaves(parameters)
    parameters[0].register_hook(lambda g: seen.append(g.clone()))
    y, weight = tied_embedding_sum_norm(ids, *parameters, position_ids=positions)
    plain(y, weight, Decoder.apply)[0].backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], parameters[0].grad)


def test_without_gradients_it_is_the_table():
    (ids, positions, _), parameters = make()
    parameters = leaves(parameters)
    with torch.no_grad():
        assert tied_embedding_sum_norm(ids, *parameters, position_ids=positions)[1] is parameters[0]
    parameters[0].requires_grad_(False)
    y, weight = tied_embedding_sum_norm(ids, *parameters, position_ids=positions)
    assert weight is parameters[0]
    plain(y, weight, F.linear)[0].backward()
    assert parameters[0].grad is None
    assert parameters[1].grad is not None


def test_second_derivatives_are_refused():
    (ids, positions, _), parameters = make()
    parameters = leaves(parameters)
    y, weight = tied_embedding_sum_norm(ids, *parameters, position_ids=positions)
    loss = F.linear(y, weight).square().sum()
    (once,) = torch.autograd.grad(loss, parameters[0], retain_graph=True)
    (twice,) = torch.autograd.grad(loss, parameters[0], create_graph=True)
    torch.testing.assert_close(twice, once)
    with pytest.raises(RuntimeError, match="no second derivative"):
        twice.square().sum().backward()


def test_compile(backend):
    (ids, positions, _), parameters = make()
    mine, theirs, exact = leaves(parameters), leaves(parameters), leaves(parameters, torch.float64)

    def step(*t):
        y, weight = tied_embedding_sum_norm(ids, *t, position_ids=positions)
        return F.linear(y.tanh(), weight).square().sum()

    torch.compile(step, fullgraph=True, backend=backend)(*mine).backward()
    step(*theirs).backward()
    step(*exact).backward()
    for got, eager, oracle in zip(mine, theirs, exact, strict=True):  # inductor's tanh and sums are other ones
        assert_within_budget(got.grad, eager.grad, oracle.grad)


def test_opcheck():
    ids, parameters = make()
    _, mean, rstd = torch.ops.bertfast.embedding_sum_norm_fwd(*ids, *parameters, PAD, EPS, 0.0, None)
    args = (
        torch.randn(VOCABULARY, SIZE),
        torch.randn(TOKENS, SIZE),
        *ids,
        *parameters[:-1],
        mean,
        rstd,
        PAD,
        0.0,
        None,
    )
    torch.library.opcheck(torch.ops.bertfast.embedding_sum_norm_tied_bwd.default, args)
