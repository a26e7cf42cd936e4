"""Row ops and feed-forward halves, forward and forward plus backward, against the same maths in eager PyTorch.

BERT-base at 2048 tokens. Compare the "ours" and "eager" rows of a group within one run; run with `make micro`.
"""

import pytest
import torch
import torch.nn.functional as F

from bertfast import ops
from bertfast.ops.rng import new_rng

TOKENS, HIDDEN, FEED_FORWARD, VOCABULARY = 2048, 768, 3072, 30522


def add_norm():
    x, residual = torch.randn(2, TOKENS, HIDDEN).unbind()
    return (x, residual, torch.ones(HIDDEN), torch.zeros(HIDDEN), torch.zeros(HIDDEN)), (
        lambda x, r, w, b, bias: ops.dropout_add_norm(x, r, w, b, bias=bias, dropout_p=0.1, rng=new_rng("cpu")),
        lambda x, r, w, b, bias: F.layer_norm(F.dropout(x + bias, 0.1) + r, (HIDDEN,), w, b, 1e-12),
    )


def embeddings():
    ids = torch.randint(0, VOCABULARY, (TOKENS // 128, 128))
    segments = torch.randint(0, 2, ids.shape)
    positions = torch.arange(128)
    tables = [torch.randn(n, HIDDEN) for n in (VOCABULARY, 512, 2)]
    return (*tables, torch.ones(HIDDEN), torch.zeros(HIDDEN)), (
        lambda *t: ops.embedding_sum_norm(ids, *t, segment_ids=segments, dropout_p=0.1, rng=new_rng("cpu")),
        lambda word, position, segment, w, b: F.dropout(
            F.layer_norm(word[ids] + segment[segments] + position[positions], (HIDDEN,), w, b, 1e-12), 0.1
        ),
    )


def linear_gelu():
    x, w, b = torch.randn(TOKENS, HIDDEN), torch.randn(FEED_FORWARD, HIDDEN) / 30, torch.randn(FEED_FORWARD)
    return (x, w, b), (ops.linear_gelu, lambda x, w, b: F.gelu(F.linear(x, w, b)))


def packing():
    mask = torch.arange(128) < torch.linspace(1, 128, TOKENS // 128)[:, None]
    x = torch.randn(TOKENS // 128, 128, HIDDEN)

    def ours(x):
        packing = ops.pack(mask)
        return ops.repad(ops.unpad(x, packing), packing)

    def eager(x):
        indices = mask.flatten().nonzero().flatten()
        rows = x.flatten(0, 1)[indices]
        return torch.zeros(mask.numel(), HIDDEN).index_put((indices,), rows).view_as(x)

    return (x,), (ours, eager)


@pytest.mark.parametrize("side", ["ours", "eager"])
@pytest.mark.parametrize("work", ["forward", "forward and backward"])
@pytest.mark.parametrize("case", [add_norm, embeddings, linear_gelu, packing], ids=lambda f: f.__name__)
def bench_rows(benchmark, case, work, side):
    torch.manual_seed(0)
    inputs, functions = case()
    function = functions[0 if side == "ours" else 1]
    backward = work != "forward"
    inputs = [t.requires_grad_(backward) for t in inputs]
    benchmark.group = f"{case.__name__}, {work}"

    def run():
        y = function(*inputs)
        if backward:
            torch.autograd.grad(y.sum(), inputs)

    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
