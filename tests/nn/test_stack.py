"""Inference of all layers in one call: the same numbers as eager layers, of the weights as they are now, or not taken at all."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from bertfast import _ext
from bertfast import nn as bnn
from bertfast.nn import prepack, stack
from bertfast.nn.parts import Kind, parts_of
from bertfast.ops import packed_linear
from bertfast.testing import assert_within_budget, rms_error

AVAILABLE = packed_linear.available(torch.float32, 64)
needs_kernels = pytest.mark.skipif(not AVAILABLE, reason="no C++ extension, or no product of ours on this processor")
# layers, E, H, F and lengths: one token; heads of 32; heads of 26 and tails everywhere; more tokens than one piece of the
# feed-forward half; an empty sequence among others.
SIZES = [
    (2, 64, 2, 128, (1,)),
    (3, 96, 3, 192, (1, 17, 64, 3)),
    (2, 130, 5, 78, (5, 31, 2)),
    (1, 32, 2, 64, (300, 1, 512, 7)),
    (2, 64, 1, 96, (4, 0, 9)),
]


def make(layers=2, hidden=64, heads=2, inner=128, *, dtype=torch.float32, act="gelu"):
    torch.manual_seed(layers + hidden)
    encoder = bnn.BertEncoder(layers, hidden, heads, inner, act, layer_norm_eps=1e-5)
    for parameter in encoder.parameters():  # away from zeros and ones, where a lost or swapped one would not show
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return encoder.to(dtype).eval()


def packed(lengths, hidden, dtype=torch.float32):
    torch.manual_seed(7)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return torch.randn(int(bounds[-1]), hidden).to(dtype), bounds, max(lengths)


def eager(encoder, x, bounds, longest=None):
    """The formula in plain PyTorch at x's dtype, sequence by sequence."""
    for layer in encoder.layer:
        projections, output = layer.attention.self, layer.attention.output
        heads = layer.attention.num_attention_heads
        context = []
        for sequence in x.tensor_split(bounds[1:-1].tolist()):
            q, k, v = (
                F.linear(sequence, p.weight.to(x.dtype), p.bias.to(x.dtype))
                .view(len(sequence), heads, x.shape[-1] // heads)
                .transpose(0, 1)
                for p in (projections.query, projections.key, projections.value)
            )
            found = F.scaled_dot_product_attention(q[None], k[None], v[None])[0] if len(sequence) else q
            context.append(found.transpose(0, 1).reshape(sequence.shape))
        x = _add_norm(output, torch.cat(context), x)
        up = layer.intermediate.dense
        x = _add_norm(
            layer.output,
            F.gelu(F.linear(x, up.weight.to(x.dtype), up.bias.to(x.dtype)), approximate=layer.approximate),
            x,
        )
    return x


def _add_norm(output, x, residual):
    dense, norm = output.dense, output.LayerNorm
    weight, bias, gamma, beta = (p.to(x.dtype) for p in (dense.weight, dense.bias, norm.weight, norm.bias))
    return F.layer_norm(F.linear(x, weight, bias) + residual, norm.normalized_shape, gamma, beta, norm.eps)


def call(encoder, x, bounds, longest):
    with torch.no_grad():
        return encoder(x, cu_seqlens=bounds, max_seqlen=longest)


def check(encoder, batch, *, taken=True):
    """The encoder's result is that of its weights now, and whether one call computed it."""
    with torch.no_grad():
        expected = eager(encoder, *batch)
    torch.testing.assert_close(call(encoder, *batch), expected, rtol=1e-4, atol=1e-4)
    assert (stack.memory(encoder) > 0) == taken


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("size", SIZES)
def test_parity_of_a_stack(size, act, dtype):
    *shape, lengths = size
    if not all(packed_linear.available(dtype, inputs) for inputs in shape[1::2]):
        pytest.skip(f"this processor has no kernel of ours for {dtype}")
    encoder = make(*shape, dtype=dtype, act=act)
    batch = packed(lengths, shape[1], dtype)
    y = call(encoder, *batch)
    assert stack.memory(encoder) > 0
    assert y.dtype == dtype
    with torch.no_grad():
        oracle = eager(encoder, batch[0].double(), *batch[1:])
        assert_within_budget(y, eager(encoder, *batch), oracle, measure=rms_error)


def test_padded_and_packed_batches_agree():
    encoder, (x, bounds, longest) = make(), packed((5, 5, 5), 64)
    y = call(encoder, x, bounds, longest)
    mask = torch.ones(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x.view(3, 5, 64)).view(15, 64), y)
        torch.testing.assert_close(encoder(x.view(3, 5, 64), mask).view(15, 64), y)
        mask[1, 3:] = 0
        part = encoder(x.view(3, 5, 64), mask)
    assert not part[1, 3:].any()
    torch.testing.assert_close(part[0], y[:5])


@needs_kernels
def test_a_result_is_new_memory_and_the_input_stays():
    encoder, (x, bounds, longest) = make(), packed((9, 4), 64)
    before = x.clone()
    first = call(encoder, x, bounds, longest)
    kept = first.clone()
    call(encoder, torch.randn_like(x), bounds, longest)
    assert torch.equal(first, kept)
    assert torch.equal(x, before)
    wide = torch.randn(13, 128)
    wide[:, ::2] = x
    assert torch.equal(call(encoder, wide[:, ::2], bounds, longest), first)


def half(p):
    p.mul_(0.5)


def half_unseen(p):
    p.data.mul_(0.5)


def columns(p):
    p.data[..., 1:] = 0.25  # an even stride through the matrix would see column 0 alone


def replace(p):
    p.data = torch.randn(p.shape)


def transpose(p):
    p.data = p.data.t() if p.dim() == 2 else p.data.flip(0)  # the same address and version


def shift(p):
    p.data = torch.randn(p.numel() + 1)[1:].view(p.shape)


NAMES = [
    "attention.self.key.weight",
    "attention.self.value.bias",
    "attention.output.dense.weight",
    "attention.output.LayerNorm.weight",
    "output.LayerNorm.bias",
]


@needs_kernels
@pytest.mark.parametrize("edit", [half, half_unseen, columns, replace, transpose, shift])
@pytest.mark.parametrize("name", NAMES)
def test_edits_are_noticed(edit, name):
    encoder, batch = make(), packed((5, 8), 64)
    check(encoder, batch)
    with torch.no_grad():
        edit(encoder.layer[1].get_parameter(name))
    check(encoder, batch)
    with torch.no_grad():
        edit(encoder.layer[1].get_parameter(name))  # of whatever layout the first edit left
    check(encoder, batch)


@needs_kernels
def test_new_parameters_and_state_dicts_are_noticed():
    encoder, batch = make(), packed((5, 8), 64)
    check(encoder, batch)
    other = make(3).layer[:2].state_dict()
    encoder.layer.load_state_dict(other)
    check(encoder, batch)
    encoder.layer.load_state_dict({name: value * 0.5 for name, value in other.items()}, assign=True)
    check(encoder, batch)
    encoder.layer[0].output.dense.weight = nn.Parameter(torch.randn(64, 128))
    check(encoder, batch)
    encoder.layer[0].output.LayerNorm.eps = 0.5
    check(encoder, batch)
    encoder.layer.append(make(1).layer[0])
    check(encoder, batch)


@needs_kernels
def test_optimizer_steps_are_noticed():
    encoder, batch = make(), packed((5, 8), 64)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.05)
    for _ in range(3):
        check(encoder, batch)
        eager(encoder, *batch).square().sum().backward()
        optimizer.step()
    check(encoder, batch)


@needs_kernels
def test_inference_mode():
    with torch.inference_mode():
        encoder, batch = make(), packed((5, 8), 64)  # no version counters
        check(encoder, batch)
        encoder.layer[0].output.dense.weight.mul_(0.5)
        check(encoder, batch)


@needs_kernels
def test_old_storage_is_let_go():
    encoder, batch = make(), packed((5, 8), 64)
    check(encoder, batch)
    old = weakref.ref(encoder.layer[0].output.dense.weight.untyped_storage())
    encoder.double()
    call(encoder, batch[0].double(), *batch[1:])  # no kernel takes it, and yet the copies go
    gc.collect()
    assert old() is None
    assert stack.memory(encoder) == 0


@needs_kernels
def test_copies_know_nothing_of_the_cache():
    encoder, batch = make(), packed((5, 8), 64)
    before = set(encoder.__dict__)
    check(encoder, batch)
    assert set(encoder.__dict__) == before
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert prepack.memory(twin) == 0
        with torch.no_grad():
            twin.layer[0].output.dense.weight.mul_(2)
        check(twin, batch)
    check(encoder, batch)


@needs_kernels
def test_memory_and_lifetime():
    encoder, batch = make(), packed((5, 8), 64)  # whole panels: nothing is added
    check(encoder, batch)
    assert prepack.memory(encoder) == sum(p.nbytes for p in encoder.parameters())
    prepack.clear(encoder)
    assert prepack.memory(encoder) == 0
    check(encoder, batch)
    gone, size = weakref.ref(encoder), len(stack._cache)
    del encoder
    gc.collect()
    assert gone() is None
    assert len(stack._cache) == size - 1


@needs_kernels
def test_threads():
    """Readers race for the first build after each edit: every result has the bits of a lone call."""
    encoder, batch = make(), packed((5, 8, 40), 64)
    found: list[torch.Tensor] = []

    def read():
        for _ in range(10):
            found.append(call(encoder, *batch))
            stack.memory(encoder)

    for _ in range(4):
        with torch.no_grad():
            encoder.layer[1].output.dense.weight.mul_(-1)
        found.clear()
        workers = [threading.Thread(target=read) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        alone = call(encoder, *batch)
        assert len(found) == 40
        assert all(torch.equal(y, alone) for y in found)
        check(encoder, batch)


# All threads on every sequence; a share of them for each thread, in a feed-forward half of one piece and of two; with sequences of
# none between them.
@needs_kernels
@pytest.mark.parametrize("lengths", [(70, 130, 1), (100,) * 12, (299, 301, 300) * 4, (0, 160, 0, 0, 160, 160) * 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads(threads, lengths, dtype):
    if not packed_linear.available(dtype, 96):
        pytest.skip(f"no product of {dtype} on this processor")
    encoder, (x, bounds, longest) = make(2, 96, 3, 192, dtype=dtype), packed(lengths, 96, dtype)
    read, kind = torch.arange(0, len(x), 7), Kind(3, 32**-0.5, "none")
    whole, rows = [], []
    for count in (1, 2, 3):
        threads(count)
        whole.append(call(encoder, x, bounds, longest))
        with torch.no_grad():
            rows.append(stack.find(encoder.layer, x, kind).forward(x, bounds, longest, read))
    assert all(torch.equal(result, whole[0]) for result in whole)
    assert all(torch.equal(result, rows[0]) and torch.equal(result, whole[0][read]) for result in rows)


@needs_kernels
def test_forked_by_a_data_loader():
    encoder, batch = make(), packed((5, 8), 64)
    expected = call(encoder, *batch)
    loader = DataLoader([batch] * 3, batch_size=None, num_workers=1, multiprocessing_context="fork",
                        collate_fn=lambda b: call(encoder, *b), timeout=1800)  # fmt: skip
    found = list(loader)
    assert len(found) == 3
    assert all(torch.equal(y, expected) for y in found)


def train(encoder):
    encoder.train()


def monte_carlo(encoder):
    encoder.layer[1].attention.self.dropout.train()


def replaced(encoder):
    class Lora(nn.Linear):
        pass

    new = Lora(64, 128)
    encoder.layer[0].intermediate.dense = new


def uneven(encoder):
    encoder.layer[1].intermediate.dense = nn.Linear(64, 32)
    encoder.layer[1].output.dense = nn.Linear(32, 64)


def mixed(encoder):
    encoder.layer[1].approximate = "tanh"


@pytest.mark.parametrize("change", [train, monte_carlo, replaced, uneven, mixed])
def test_not_taken(change):
    encoder, batch = make(), packed((5, 8), 64)
    change(encoder)
    y = call(encoder, *batch)
    assert stack.memory(encoder) == 0
    with torch.no_grad():
        expected = eager(encoder, *batch)
    if change in (train, monte_carlo):
        assert not torch.allclose(y, expected, atol=1e-3)  # dropout was done
    else:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_gradients_and_autocast_are_not_taken():
    encoder, (x, bounds, longest) = make(), packed((5, 8), 64)
    y = encoder(x, cu_seqlens=bounds, max_seqlen=longest)
    y.sum().backward()
    assert encoder.layer[0].attention.self.query.weight.grad is not None
    frozen = make().requires_grad_(False)
    assert not frozen(x, cu_seqlens=bounds, max_seqlen=longest).requires_grad
    assert frozen(x.clone().requires_grad_(), cu_seqlens=bounds, max_seqlen=longest).requires_grad
    cast = make()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast(x, cu_seqlens=bounds, max_seqlen=longest)
    assert stack.memory(encoder) == stack.memory(cast) == 0
    assert (stack.memory(frozen) > 0) == AVAILABLE


@pytest.mark.parametrize("kind", ["forward", "pre", "global", "patched"])
def test_hooks_run(kind):
    encoder, batch = make(), packed((5, 8), 64)
    seen: list[nn.Module] = []
    target = encoder.layer[1].attention
    if kind == "patched":
        own = target.forward
        target.forward = lambda *args, **options: (seen.append(target), own(*args, **options))[1]
        call(encoder, *batch)
    else:
        register = {
            "forward": target.register_forward_hook,
            "pre": target.register_forward_pre_hook,
            "global": nn.modules.module.register_module_forward_hook,
        }[kind]
        handle = register(lambda module, *_: seen.append(module))
        call(encoder, *batch)
        handle.remove()
    assert target in seen


@needs_kernels
@pytest.mark.parametrize("rows", ["first", "last", "some", "all", "none"])
@pytest.mark.parametrize("size", [s for s in SIZES if sum(s[-1]) > 1])
def test_rows_that_are_read(size, rows):
    """The last layer of some rows is the rows of the whole last layer."""
    *shape, lengths = size
    encoder, (x, bounds, longest) = make(*shape), packed(lengths, shape[1])
    full = [i for i, length in enumerate(lengths) if length]
    read = {
        "first": bounds[:-1][full].long(),
        "last": bounds[1:][full].long() - 1,
        "some": torch.arange(0, len(x), 3),
        "all": torch.arange(len(x)),
        "none": torch.arange(0),
    }[rows]
    kind = Kind(shape[2], (shape[1] // shape[2]) ** -0.5, "none")
    kept = x.clone()
    with torch.no_grad():
        y = stack.find(encoder.layer, x, kind).forward(x, bounds, longest, read)
        assert torch.equal(x, kept)
        torch.testing.assert_close(y, eager(encoder, x, bounds)[read], rtol=1e-4, atol=1e-4)


@needs_kernels
def test_rows_that_cannot_be_read():
    encoder, (x, bounds, longest) = make(), packed((5, 8), 64)
    with torch.no_grad():
        native = stack.find(encoder.layer, x, Kind(2, 0.25, "none"))
        for read, error, message in (
            ([0, 13], IndexError, "row 13 at position 1 of read is outside the 13 tokens"),
            ([-1, 2], IndexError, "row -1 at position 0"),
            ([3, 3], ValueError, "must rise, but row 3 follows row 3"),
        ):
            with pytest.raises(error, match=message):
                native.forward(x, bounds, longest, torch.tensor(read))
        with pytest.raises(ValueError, match=r"read must be int64 \[R\]"):
            native.forward(x, bounds, longest, torch.tensor([1]).int())


@needs_kernels
def test_bad_bounds():
    encoder, (x, _, _) = make(), packed((5, 8), 64)
    for bounds, message in (
        ([0, 5], "rise from 0 to the 13 tokens"),
        ([0, 9, 5, 13], "falls from 9 to 5"),
        ([0, 13], "max_seqlen is 8 but a sequence has 13"),
    ):
        with pytest.raises(ValueError, match=message):
            call(encoder, x, torch.tensor(bounds, dtype=torch.int32), 8)
    with pytest.raises(ValueError, match="must be int32"):
        call(encoder, x, torch.tensor([0, 5, 13]), 8)


@needs_kernels
def test_the_extension_refuses_what_it_cannot_read():
    make_encoder = _ext.load().Encoder
    good = parts_of(make(1).layer[0]).parameters()

    def build(parameters, heads=2, activation=1):
        return make_encoder(torch.float32, False, heads, 0.125, activation, [parameters], [(1e-5, 1e-5)])

    encoder = build(good)
    with pytest.raises(ValueError, match=r"x must be \[T, 64\]"):
        encoder.forward(torch.randn(3, 65), torch.tensor([0, 3], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match=r"x must be \[T, 64\]"):
        encoder.forward(torch.randn(3, 64).bfloat16(), torch.tensor([0, 3], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="has 15 parameters, not 16"):
        build(good[:-1])
    with pytest.raises(ValueError, match="parameter 0 of layer 0 must be float32 or bfloat16"):
        build([good[0].double(), *good[1:]])
    with pytest.raises(ValueError, match="do not make 3 heads"):
        build(good, heads=3)
    with pytest.raises(ValueError, match="second feed-forward weight has shape"):
        build([*good[:12], torch.randn(64, 64), *good[13:]])
    assert not encoder.is_current(good[:-1])
    assert not encoder.is_current([None, *good[1:]])
