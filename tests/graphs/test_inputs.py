"""The buffers of a captured call: bounds that cover all rows, and zeros where nobody's tokens are."""

import random

import pytest
import torch
from graph_cases import tokens_of

from bertfast.graphs import buckets
from bertfast.graphs.inputs import Inputs

CPU = torch.device("cpu")


def same(t):
    return t


def test_one_call():
    inputs = Inputs(buckets.bucket(100, 3, 40, None), CPU, segments=True)
    tokens = tokens_of(40, 20, 39, segments=True)
    inputs.fill(tokens, None, same)
    assert inputs.tokens.bounds.tolist() == [0, 40, 60, 99, 99, 104]
    assert inputs.tokens.cu_seqlens.tolist() == [0, 40, 60, 99, 99]
    assert inputs.tokens.max_seqlen == 64
    assert inputs.tokens.shape == (104,)
    for buffer, own in (
        (inputs.tokens.input_ids, tokens.input_ids),
        (inputs.tokens.position_ids, tokens.position_ids),
        (inputs.tokens.token_type_ids, tokens.token_type_ids),
    ):
        assert buffer.tolist() == [*own.tolist(), *[0] * 5]
    assert inputs.tokens.first.tolist() == [0, 40, 60, 99]
    assert inputs.nbytes == 3 * 104 * 8 + 2 * 6 * 4


def test_a_long_rest_is_cut():
    """From 961 rows on a bucket has 1,024, and its sequences hold 16 at most."""
    bucket = buckets.bucket(970, 97, 16, None)
    inputs = Inputs(bucket, CPU, segments=False)
    inputs.fill(tokens_of(*[10] * 97), None, same)
    lengths = inputs.tokens.bounds.diff().tolist()
    assert lengths == [10] * 97 + [0] * 31 + [6, 16, 16, 16]
    assert bucket.rest == 4


@pytest.mark.parametrize("seed", range(5))
def test_whatever_came_before(seed):
    draw = random.Random(seed)
    bucket = buckets.bucket(200, 12, 33, 24)
    inputs, storage = Inputs(bucket, CPU, segments=True), None
    for number in range(60):
        lengths = [draw.randint(0, 33) for _ in range(draw.randint(9, 16))]
        tokens = tokens_of(*lengths, segments=True, seed=number)
        count = sum(lengths)
        if not 0 < count <= bucket.tokens or bucket.tokens - count >= 16:  # of another bucket
            continue
        read = torch.randint(0, count, (draw.randint(1, 24),))
        inputs.fill(tokens, read, same)
        bounds = inputs.tokens.bounds
        assert torch.equal(bounds[: len(lengths) + 1], tokens.bounds)
        assert (bounds[len(lengths) : bucket.sequences + 1] == count).all()
        assert bounds[-1] == bucket.tokens
        assert int(bounds.diff().min()) >= 0
        assert int(bounds.diff().max()) <= bucket.longest
        assert torch.equal(inputs.tokens.input_ids[:count], tokens.input_ids)
        assert not inputs.tokens.input_ids[count:].any()
        assert not inputs.tokens.token_type_ids[count:].any()
        assert torch.equal(inputs.read()[: read.shape[0]], read)
        assert inputs.read().shape == (24,)
        assert storage in (None, bounds.data_ptr()), "a graph reads its buffers by address"
        storage = bounds.data_ptr()
    assert storage is not None
