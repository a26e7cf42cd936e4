"""attn_implementation="bertfast" in models whose layers `optimize` does not know, and in BERT, beside sdpa."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertModel,
    LayoutLMConfig,
    LayoutLMModel,
    ModernBertConfig,
    ModernBertModel,
    SplinterConfig,
    SplinterModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)
from transformers_cases import config_of, outcomes, stock_model

import bertfast
from bertfast.testing import assert_within_budget, rms_error

FAST, UNPADDED = "fast", "fast, padding removed"
SEQLEN = 196
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
CONVOLUTIONS = {"conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3)}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    bertfast.register_attention()
    yield
    bertfast.register_attention()


def right_padding(lengths: tuple[int, ...]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def modernbert() -> tuple[Any, dict[str, Tensor], Tensor]:
    config = ModernBertConfig(
        vocab_size=50,
        max_position_embeddings=SEQLEN,
        local_attention=16,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        **SIZES,
    )
    real = right_padding((SEQLEN, 20, 40))
    return (
        ModernBertModel(config),
        {"input_ids": torch.randint(1, 50, (3, SEQLEN)), "attention_mask": real.long()},
        real,
    )


def vit() -> tuple[Any, dict[str, Tensor], Tensor]:
    model = ViTModel(ViTConfig(image_size=112, patch_size=8, num_channels=1, **SIZES))
    return model, {"pixel_values": torch.randn(2, 1, 112, 112)}, torch.ones(2, 197, dtype=torch.bool)


def wav2vec2() -> tuple[Any, dict[str, Tensor], Tensor]:
    options = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    model = Wav2Vec2Model(Wav2Vec2Config(**SIZES, **CONVOLUTIONS, **options))
    mask = right_padding((2000, 700, 900)).long()
    real = model._get_feature_vector_attention_mask(199, mask)
    return model, {"input_values": torch.randn(3, 2000), "attention_mask": mask}, real.bool()


def trio(stock: Any, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """With our attention, with sdpa, and sdpa in float64 of the same weights."""
    stock.set_attn_implementation("sdpa")
    stock = stock.to(dtype).eval()
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation("bertfast")
    return ours, stock, copy.deepcopy(stock).double()


def states(model: Any, inputs: dict[str, Any], real: Tensor) -> Tensor:
    dtype = next(model.parameters()).dtype
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        return model(**given).last_hidden_state[real]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "calls"),
    [
        pytest.param(
            modernbert,
            {UNPADDED: 1, FAST: 1},
            marks=pytest.mark.tool("transformers", 'attn_implementation="bertfast": ModernBERT', "fast"),
        ),
        pytest.param(
            vit, {FAST: 2}, marks=pytest.mark.tool("transformers", 'attn_implementation="bertfast": ViT', "fast")
        ),
        pytest.param(
            wav2vec2,
            {UNPADDED: 2},
            marks=pytest.mark.tool("transformers", 'attn_implementation="bertfast": wav2vec2', "fast"),
        ),
    ],
)
def test_families_that_optimize_does_not_know(family, calls, dtype):
    """ModernBERT has a layer over a window, whose mask is more than padding, and one over everything."""
    model, inputs, real = family()
    models = trio(model, dtype)
    assert_within_budget(*(states(each, inputs, real) for each in models))
    assert outcomes(models[0]) == calls


def bert(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any, Any]:
    return trio(stock_model("bert", max_position_embeddings=SEQLEN, **options), dtype)


def batch(mask: Tensor | None) -> dict[str, Any]:
    inputs = {"input_ids": torch.randint(1, 30, (3, SEQLEN))}
    return inputs if mask is None else inputs | {"attention_mask": mask}


def masks() -> dict[str, tuple[Tensor | None, Tensor, str]]:
    """Of every kind: the mask, the positions that are compared, and what our attention does."""
    real, everything = right_padding((SEQLEN, 20, 40)), torch.ones(3, SEQLEN, dtype=torch.bool)
    mostly = right_padding((SEQLEN, SEQLEN - 1, 180))
    window = everything[:, None, None].expand(3, 1, SEQLEN, SEQLEN).tril(60)
    numbers = torch.where(window, 0.0, torch.finfo(torch.float32).min)
    empty = real.clone()
    empty[1] = False
    blind = numbers.clone()
    blind[1, 0, 3] = torch.finfo(torch.float32).min
    return {
        "none": (None, everything, FAST),
        "ones": (everything.long(), everything, FAST),
        "int64 padding": (real.long(), real, UNPADDED),
        "bool padding": (real, real, UNPADDED),
        "numbers, cast to bool": (real.float() * 0.5, real, UNPADDED),
        "little padding": (mostly, everything, FAST),
        "left padding": (real.flip(1), everything, FAST),
        "a sequence of padding alone": (empty, everything, FAST),
        "4-D bool": (window, everything, FAST),
        "4-D numbers": (numbers, everything, FAST),
        "4-D numbers, a query without keys": (blind, everything, "sdpa: a query may attend to nothing"),
    }


@pytest.mark.parametrize("kind", list(masks()))
@pytest.mark.tool("transformers", 'attn_implementation="bertfast": BERT with any mask', "fast")
def test_masks(kind):
    mask, compared, expected = masks()[kind]
    models, inputs = bert(), batch(mask)
    assert_within_budget(*(states(each, inputs, compared) for each in models))
    assert outcomes(models[0]) == {expected: 2}


def test_a_mask_of_three_dimensions_is_refused_as_by_sdpa():
    mask = right_padding((SEQLEN, 20, 40))[:, None].expand(3, SEQLEN, SEQLEN)
    for model in bert()[:2]:
        with pytest.raises(RuntimeError):
            model(**batch(mask))


def test_padding_may_be_computed_as_sdpa_does():
    bertfast.register_attention(unpad=False)
    real = right_padding((SEQLEN, 20, 40))
    models, inputs = bert(), batch(real)
    everything = torch.ones_like(real)
    assert_within_budget(*(states(each, inputs, everything) for each in models))
    assert outcomes(models[0]) == {FAST: 2}


def gradients(model: Any, inputs: dict[str, Tensor], real: Tensor) -> Tensor:
    outputs = model(**inputs).last_hidden_state[real]
    (outputs * torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("lengths", [(SEQLEN, 20, 40), (SEQLEN, SEQLEN, 180)], ids=["packed", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients(lengths, dtype):
    real = right_padding(lengths)
    models, inputs = bert(dtype), batch(real)
    assert_within_budget(*(gradients(each.train(), inputs, real) for each in models), measure=rms_error)
    assert "sdpa" not in " ".join(outcomes(models[0]))


@pytest.mark.parametrize("lengths", [(SEQLEN, 20, 40), (SEQLEN, SEQLEN, 180)], ids=["packed", "padded"])
def test_dropout(lengths):
    """The same from a seed, with and without gradients and from checkpoints; of stock's mean."""
    real = right_padding(lengths)
    ours, stock, _ = bert(attention_probs_dropout_prob=0.3)
    inputs = batch(real)
    ours.train(), stock.train()
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        ours.zero_grad()
        runs.append(gradients(ours, inputs, real))
        ours.gradient_checkpointing_enable({"use_reentrant": True})
    assert torch.equal(*runs)
    ours.gradient_checkpointing_disable()
    samples = [torch.stack([states(each, inputs, real) for _ in range(30)]) for each in (ours, stock)]
    # Each mean of 30 has a standard error of spread / 5.5; the two differ by sqrt(2) of that.
    difference = (samples[0].mean(0) - samples[1].mean(0)) / samples[1].std(0)
    assert difference.square().mean().sqrt() < 1.5 * (2 / 30) ** 0.5


def test_autocast():
    """Rotary positions leave queries and keys in float32 and values in bfloat16; torch casts all three."""
    model, inputs, real = modernbert()
    ours, stock, exact = trio(model, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [states(each, inputs, real) for each in (ours, stock)]
    assert_within_budget(*(states.float() for states in found), states(exact, inputs, real), measure=rms_error)
    assert outcomes(ours) == {UNPADDED: 1, FAST: 1}


@pytest.mark.tool("transformers", 'attn_implementation="bertfast" and optimize', "fast")
def test_an_optimised_model_with_this_attention(tmp_path):
    stock_model("bert", max_position_embeddings=SEQLEN).save_pretrained(tmp_path)
    fast = bertfast.optimize(BertModel.from_pretrained(tmp_path, attn_implementation="bertfast").eval())
    real = right_padding((SEQLEN, 20, 40))
    inputs = batch(real.long())
    _, stock, exact = bert()
    assert_within_budget(*(states(each, inputs, real) for each in (fast, stock, exact)))
    assert outcomes(fast, "Model") == {"fast, from ids to hidden states": 1}
    gradients(fast.train(), inputs, real)
    assert set(outcomes(fast, "Encoder")) == {UNPADDED}


@pytest.mark.tool("transformers", 'attn_implementation="bertfast" under torch.compile', "fast")
def test_compile():
    """In bfloat16; in float32 a compiled graph has torch's function, which takes as long."""
    real = right_padding((SEQLEN, 20, 40))
    models, inputs = bert(torch.bfloat16), batch(real)
    called = []

    def backend(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    compiled = torch.compile(models[0], backend=backend, fullgraph=True)
    assert_within_budget(*(states(each, inputs, real) for each in (compiled, *models[1:])))
    assert called.count("bertfast.attention_padded_fwd.default") == 2


@pytest.mark.tool("transformers", 'attn_implementation="bertfast" where transformers refuses sdpa', "refused")
def test_a_model_without_sdpa_is_refused():
    model = SplinterModel(SplinterConfig(vocab_size=40, **SIZES))
    model.set_attn_implementation("bertfast")
    with pytest.raises(
        ValueError, match=r'no other attention of SplinterSelfAttention than attn_implementation="eager"'
    ):
        model(torch.randint(1, 30, (2, 5)))


@pytest.mark.parametrize("padded", [True, False])
def test_an_attention_that_does_not_say_whether_it_is_causal(padded):
    """LayoutLM's; sdpa takes it for causal where there is no mask, and transformers therefore makes one always."""
    models = trio(LayoutLMModel(LayoutLMConfig(vocab_size=40, max_position_embeddings=SEQLEN, **SIZES)), torch.float32)
    real = right_padding((SEQLEN, 20, 40)) | (not padded)
    assert_within_budget(*(states(each, batch(real.long()), real) for each in models))
    assert outcomes(models[0]) == {FAST: 2}


def test_decoders_keep_the_attention_of_torch():
    config = config_of("bert", max_position_embeddings=SEQLEN, is_decoder=True)
    ours, stock, _ = trio(BertModel(config), torch.float32)
    real = right_padding((SEQLEN, 20, 40))
    inputs = batch(real) | {"use_cache": torch.tensor(False)}
    assert torch.equal(states(ours, inputs, real), states(stock, inputs, real))
    assert outcomes(ours) == {"sdpa: it is causal": 2}
