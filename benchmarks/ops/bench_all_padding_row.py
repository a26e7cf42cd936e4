"""A batch that is mostly padding, with and without one sequence of padding alone, at whose first position the pooler looks."""

import pytest
import torch

import bertfast

BATCH, SEQLEN, TOKENS = 32, 256, 16


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return bertfast.optimize(transformers.BertModel(config).eval())


@pytest.mark.parametrize("empty", [0, 1])
def bench_inference(benchmark, model, empty):
    ids = torch.randint(1, 1000, (BATCH, SEQLEN))
    mask = (torch.arange(SEQLEN) < TOKENS).repeat(BATCH, 1).long()
    mask[:empty] = 0
    benchmark.group = f"{BATCH}x{SEQLEN}, {TOKENS} tokens in a sequence"
    with torch.no_grad():
        benchmark(model, ids, attention_mask=mask)
