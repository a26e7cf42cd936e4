"""pack, unpad and repad against the indexing that one would write in eager PyTorch, on half-full batches."""

import pytest
import torch
import torch.nn.functional as F

from bertfast.ops import pack, repad, unpad

# B, S, E: a batch of sentences, of paragraphs, and one with MiniLM's width.
SHAPES = [(32, 128, 768), (8, 512, 768), (32, 128, 384)]
CASES = [(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]


def case_id(case) -> str:
    shape, dtype = case
    return f"{'x'.join(map(str, shape))}-{str(dtype).removeprefix('torch.')}"


def make(case):
    (batch, seqlen, size), dtype = case
    lengths = torch.linspace(1, seqlen, batch).long()
    return torch.arange(seqlen)[None] < lengths[:, None], torch.randn(batch, seqlen, size).to(dtype)


def eager_pack(mask):
    indices = mask.flatten().nonzero().flatten()
    lengths = mask.sum(1, dtype=torch.int32)
    return indices, F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), int(lengths.max())


def bertfast_move(case, direction, backward):
    mask, x = make(case)
    packing = pack(mask)
    function, x = (unpad, x) if direction == "unpad" else (repad, unpad(x, packing))
    return step(lambda t: function(t, packing), x, backward)


def eager_move(case, direction, backward):
    mask, x = make(case)
    indices, rows = eager_pack(mask)[0], x.flatten(0, 1)
    if direction == "unpad":
        return step(lambda t: t[indices], rows, backward)
    return step(lambda t: torch.zeros(rows.shape, dtype=t.dtype).index_put((indices,), t), rows[indices], backward)


def step(function, x, backward):
    if not backward:
        return lambda: function(x)
    x = x.detach().requires_grad_()
    y = function(x)
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)


@pytest.mark.parametrize("make_step", [bertfast_move, eager_move], ids=["bertfast", "eager"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("direction", ["unpad", "repad"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_move(benchmark, case, direction, backward, make_step):
    benchmark.group = f"{direction} {'backward' if backward else 'forward'} {case_id(case)}"
    benchmark(make_step(case, direction, backward))


@pytest.mark.parametrize("function", [pack, eager_pack], ids=["bertfast", "eager"])
@pytest.mark.parametrize("case", CASES[::2], ids=case_id)
def test_pack(benchmark, case, function):
    benchmark.group = f"pack {case_id(case)}"
    benchmark(function, make(case)[0])
