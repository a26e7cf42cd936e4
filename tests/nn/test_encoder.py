"""What the encoder does beside running its layers: the rows that are read, and layers computed again in backward."""

import copy

import pytest
import torch

from bertfast import nn as fast
from bertfast.testing import assert_within_budget, rms_error

BOUNDS = torch.tensor([0, 9, 11, 16], dtype=torch.int32)
LAYOUT = {"cu_seqlens": BOUNDS, "max_seqlen": 9}


@pytest.fixture
def encoder():
    return fast.BertEncoder(3, 64, 2, 128, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)


@pytest.fixture
def x():
    return torch.randn(16, 64)


@pytest.mark.parametrize("gradient", [True, False])
def test_the_rows_that_are_read_are_those_of_all(encoder, x, gradient):
    encoder.eval()
    read = torch.tensor([0, 3, 9, 15])
    with torch.set_grad_enabled(gradient):
        got, want = encoder(x, **LAYOUT, read=read), encoder(x, **LAYOUT)[read]
    exact = copy.deepcopy(encoder).double()(x.double(), **LAYOUT)[read]
    assert_within_budget(got.detach(), want.detach(), exact.detach(), measure=rms_error)


def test_rows_in_any_order_with_repeats_where_gradients_are_wanted(encoder, x):
    read = torch.tensor([15, 3, 3, 0])
    encoder.eval()
    got, want = encoder(x, **LAYOUT, read=read), encoder(x, **LAYOUT)[read]
    exact = copy.deepcopy(encoder).double()(x.double(), **LAYOUT)[read]
    assert_within_budget(got.detach(), want.detach(), exact.detach(), measure=rms_error)


def test_padded_tokens_have_no_rows_to_read(encoder, x):
    read = torch.tensor([0])
    for mask in (None, torch.ones(1, 16)):
        with pytest.raises(ValueError, match="read names rows of packed tokens"):
            encoder(x[None], mask, read=read)
    for module in (encoder.layer[0], encoder.layer[0].attention):
        with pytest.raises(ValueError, match="read names rows of packed tokens"):
            module(x[None], read=read)


@pytest.mark.parametrize("layout", [LAYOUT, {"attention_mask": torch.ones(1, 16)}, {}])
def test_checkpointed_layers_draw_the_same_dropout(encoder, x, layout):
    tokens = x if layout is LAYOUT else x[None]
    other = copy.deepcopy(encoder)
    other.gradient_checkpointing = True
    found = []
    for each in (encoder, other):
        torch.manual_seed(0)
        leaf = tokens.clone().requires_grad_()
        y = each(leaf, **layout)
        y.square().sum().backward()
        found.append([y, leaf.grad, *(p.grad for p in each.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)  # another dropped element is off by a tenth and more


def test_embeddings_give_their_word_table_to_a_decoder():
    embeddings = fast.BertEmbeddings(99, 64, 20, hidden_dropout_prob=0.0)
    ids = torch.tensor([[3, 5, 3]])
    y, word = embeddings(ids, tied=True)
    assert torch.equal(y, embeddings(ids))
    assert torch.equal(word, embeddings.word_embeddings.weight)
    (y.sum() + word[7].sum()).backward()
    rows = embeddings.word_embeddings.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert rows == [3, 5, 7]
