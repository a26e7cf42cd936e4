"""bertfast.nn against Hugging Face's modules: same names, same numbers, padded and packed, and the weight cache."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert as hf

from bertfast import nn as fast
from bertfast import ops
from bertfast.nn import prepack

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}
CONFIG = BertConfig(**SIZES, num_hidden_layers=2, vocab_size=99, attn_implementation="sdpa")


def encoders():
    theirs, ours = hf.BertEncoder(CONFIG), fast.BertEncoder(2, **SIZES)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval(), ours.eval()


def test_embeddings_interchange():
    theirs, ours = hf.BertEmbeddings(CONFIG).eval(), fast.BertEmbeddings(99, 64).eval()
    ours.load_state_dict(theirs.state_dict())
    ids, segments = torch.randint(0, 99, (3, 7)), torch.randint(0, 2, (3, 7))
    torch.testing.assert_close(ours(ids, segments), theirs(ids, segments), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="need position_ids"):
        ours(ids[0])


@pytest.mark.parametrize("grad", [False, True])
def test_encoder_padded_and_packed(grad):
    theirs, ours = encoders()
    x = torch.randn(3, 9, 64)
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    with torch.set_grad_enabled(grad):
        stock = theirs(x, mask[:, None, None, :].expand(3, 1, 9, 9)).last_hidden_state
        padded = ours(x, mask)
        packing = ops.pack(mask)
        packed = ours(ops.unpad(x, packing), cu_seqlens=packing.cu_seqlens, max_seqlen=packing.max_seqlen)
    torch.testing.assert_close(padded[mask], stock[mask], rtol=1e-4, atol=1e-5)
    assert torch.equal(packed, padded[mask])
    assert not padded[~mask].any()


def test_training_repeats_from_a_seed():
    _, ours = encoders()
    ours.train()
    x, mask = torch.randn(2, 8, 64), torch.ones(2, 8)

    def step():
        torch.manual_seed(3)
        ours.zero_grad()
        ours(x, mask).square().sum().backward()
        return [p.grad.clone() for p in ours.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))


def test_layer_norm_and_errors():
    norm = fast.LayerNorm(33)
    x = torch.randn(4, 5, 33)
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (33,), eps=1e-12), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="last dimension"):
        fast.LayerNorm((3, 4))
    with pytest.raises(ValueError, match="not a multiple"):
        fast.BertAttention(64, 3)
    with pytest.raises(ValueError, match="hidden_act must be one of"):
        fast.BertMLP(8, 16, hidden_act="relu")
    with pytest.raises(ValueError, match="packed tokens are"):
        fast.BertLayer(64, 2, 96)(torch.randn(4, 64), cu_seqlens=torch.tensor([0, 4], dtype=torch.int32))


def product(linears, x):
    return torch.cat([linear(x) for linear in linears], 1)


def in_place(linear):
    with torch.no_grad():
        linear.weight.mul_(2)


def through_data(linear):
    linear.weight.data.mul_(2)


def one_bias(linear):
    linear.bias.data += 1


def loaded(linear):
    linear.load_state_dict(nn.Linear(32, 16).state_dict())


def replaced(linear):
    linear.weight = nn.Parameter(torch.randn(16, 32))


@pytest.mark.parametrize("change", [in_place, through_data, one_bias, loaded, replaced])
def test_prepacked_weights_follow_changes(change):
    linears, x = tuple(nn.Linear(32, 16) for _ in range(3)), torch.randn(5, 32)
    with torch.no_grad():
        torch.testing.assert_close(prepack.fused_linear(x, linears), product(linears, x), rtol=1e-5, atol=1e-5)
    change(linears[1])
    with torch.inference_mode():
        torch.testing.assert_close(prepack.fused_linear(x, linears), product(linears, x), rtol=1e-5, atol=1e-5)


def test_prepacked_weights_are_not_copied():
    linear, x = nn.Linear(32, 16), torch.randn(5, 32)
    with torch.no_grad():
        prepack.fused_linear(x, (linear,), "gelu")
    assert prepack.memory(linear) == (32 * 16 + 16) * 4
    for copied in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert prepack.memory(copied) == 0
    prepack.clear(linear)
    assert prepack.memory(linear) == 0


def test_two_threads_share_a_module():
    linear, x = nn.Linear(64, 64), torch.randn(9, 64)
    expected, wrong = linear(x).detach(), []

    def work():
        with torch.no_grad():
            for _ in range(50):
                if not torch.allclose(prepack.fused_linear(x, (linear,)), expected, atol=1e-5):
                    wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
