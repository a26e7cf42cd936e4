"""bertfast.nn: the modules against Hugging Face's BERT with the same state dict, padded and packed, trained and not."""

import copy
import itertools

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert import modeling_bert as hf

from bertfast import nn as fast
from bertfast import ops

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
LENGTHS = torch.tensor([9, 2, 5])
MASK = torch.arange(9) < LENGTHS[:, None]


def config(dropout=0.0, **options):
    return BertConfig(
        vocab_size=99,
        num_hidden_layers=2,
        max_position_embeddings=20,
        initializer_range=0.2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="sdpa",
        **SIZES,
        **options,
    )


def rates(dropout=0.0):
    return {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}


def encoders(dropout=0.0, **options):
    torch.manual_seed(0)
    stock = hf.BertModel(config(dropout, **options)).encoder
    ours = fast.BertEncoder(2, **SIZES, **rates(dropout), **options)
    assert set(ours.state_dict()) == set(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def assert_same(ours, stock, tolerance=2e-5):
    assert ours.shape == stock.shape
    assert float((ours - stock).detach().abs().max()) <= tolerance * float(stock.detach().abs().max())


def packed(x):
    packing = ops.pack(MASK)
    return ops.unpad(x, packing), {"cu_seqlens": packing.cu_seqlens, "max_seqlen": packing.max_seqlen}


def states(*shape):
    return torch.randn(*(shape or (3, 9, 64)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("gradient", [True, False])
def test_encoder_against_stock(gradient, activation):
    stock, ours = encoders(hidden_act=activation)
    x = states()
    stock_mask = MASK[:, None, None, :]
    with torch.set_grad_enabled(gradient):
        want = stock(x, attention_mask=stock_mask).last_hidden_state
        got = ours(x, attention_mask=MASK)
        tokens, layout = packed(x)
        assert_same(got[MASK], want[MASK])
        assert_same(ours(tokens, **layout), want[MASK])
        assert_same(ours(x), stock(x).last_hidden_state)
    assert not got[~MASK].any()
    if gradient:
        weight = states(3, 9, 64).roll(1)
        (want * weight)[MASK].sum().backward()
        (got * weight)[MASK].sum().backward()
        theirs = dict(stock.named_parameters())
        for name, parameter in ours.named_parameters():
            if not name.endswith("key.bias"):
                assert_same(parameter.grad, theirs[name].grad, 1e-4)


def test_layer_attention_and_mlp_padded_equal_packed():
    _, encoder = encoders()
    layer, x = encoder.layer[0], states()
    tokens, layout = packed(x)
    for module in (layer, layer.attention):
        assert_same(module(tokens, **layout), module(x, attention_mask=MASK)[MASK])
    mlp = fast.BertMLP(64, 128).eval()
    assert_same(mlp(tokens), mlp(x)[MASK])


def test_names_go_to_the_stock_layer_and_back():
    layer = fast.BertLayer(64, 2, 128)
    stock = hf.BertLayer(config())
    stock.load_state_dict(layer.state_dict())
    layer.load_state_dict(stock.state_dict())
    stock.eval(), layer.eval()
    assert_same(layer(states()), stock(states()))


def test_embeddings_against_stock():
    torch.manual_seed(0)
    stock = hf.BertEmbeddings(config()).eval()
    ours = fast.BertEmbeddings(99, 64, 20, hidden_dropout_prob=0.0).eval()
    ours.load_state_dict(stock.state_dict())
    ids, types = torch.randint(0, 99, (3, 9)), torch.randint(0, 2, (3, 9))
    assert_same(ours(ids, types), stock(ids, types))
    positions = torch.arange(9).expand(3, -1)
    assert_same(ours(ids[MASK], types[MASK], positions[MASK]), stock(ids, types)[MASK])
    with pytest.raises(ValueError, match="position_ids"):
        ours(ids[MASK])


def test_layer_norm():
    norm = fast.LayerNorm(64)
    stock = torch.nn.LayerNorm(64, eps=1e-12)
    stock.load_state_dict(norm.state_dict())
    assert_same(norm(states()), stock(states()))
    with pytest.raises(ValueError, match="weight and a bias"):
        fast.LayerNorm(64, elementwise_affine=False)


def test_dropout_repeats_and_evaluation_has_none():
    _, encoder = encoders(dropout=0.2)
    x = states()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(encoder(x, attention_mask=MASK))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    encoder.eval()
    assert torch.equal(encoder(x, attention_mask=MASK), encoder(x, attention_mask=MASK))


def test_sequences_do_not_see_each_other():
    _, encoder = encoders()
    tokens, layout = packed(states())
    together = encoder(tokens, **layout)
    bounds = layout["cu_seqlens"].tolist()
    for begin, end in itertools.pairwise(bounds):
        assert_same(encoder(tokens[None, begin:end])[0], together[begin:end])


def test_a_frozen_encoder_needs_no_no_grad():
    _, encoder = encoders()
    encoder.eval().requires_grad_(False)
    got = encoder(states(), attention_mask=MASK)
    assert not got.requires_grad
    x = states().requires_grad_()
    encoder(x, attention_mask=MASK).sum().backward()
    assert x.grad is not None
    assert not x.grad[~MASK].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    _, encoder = encoders()
    want = copy.deepcopy(encoder).double()(states().double(), attention_mask=MASK)
    got = encoder.to(dtype)(states().to(dtype), attention_mask=MASK)
    assert got.dtype == dtype
    assert_same(got.double(), want, 0.05 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_residual_stream(amp):
    _, encoder = encoders()
    want = encoder(states(), attention_mask=MASK)
    with torch.autocast("cpu", dtype=amp), torch.no_grad():
        got = encoder(states(), attention_mask=MASK)
    assert got.dtype == torch.float32
    assert_same(got, want, 0.05)


def test_padding_alone_gives_zeros():
    _, encoder = encoders()
    mask = MASK.clone()
    mask[1] = False
    assert not encoder(states(), attention_mask=mask)[1].any()
    assert not encoder(states(), attention_mask=torch.zeros_like(mask)).any()


def test_compiles_without_a_break(backend):
    _, encoder = encoders()
    compiled = torch.compile(encoder, fullgraph=True, backend=backend)
    assert_same(compiled(states(), attention_mask=MASK), encoder(states(), attention_mask=MASK))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (states(9, 64), {}, "packed ones need cu_seqlens"),
        (states(), {"cu_seqlens": torch.tensor([0, 9], dtype=torch.int32), "max_seqlen": 9}, "packed tokens are"),
        (states(9, 64), {"cu_seqlens": torch.tensor([0, 9], dtype=torch.int32)}, "max_seqlen"),
    ],
)
def test_wrong_layouts(x, options, message):
    with pytest.raises(ValueError, match=message):
        fast.BertLayer(64, 2, 128)(x, **options)


def test_wrong_construction():
    with pytest.raises(ValueError, match="multiple"):
        fast.BertAttention(64, 3)
    with pytest.raises(ValueError, match="relu"):
        fast.BertMLP(64, 128, hidden_act="relu")
