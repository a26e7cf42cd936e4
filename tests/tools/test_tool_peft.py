"""PEFT: LoRA beside fused products in every state that a user puts it in; what else PEFT does to a model falls back."""

import contextlib
import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

import bertfast
from bertfast.convert.families import FAMILIES
from bertfast.testing import assert_within_budget, rms_error

peft = pytest.importorskip("peft")

QUERY_AND_VALUE = {"bert": ["query", "value"], "roberta": ["query", "value"], "distilbert": ["q_lin", "v_lin"]}
EVERYTHING = {
    "bert": ["query", "key", "value", "dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
}
UNPADDED = "fast, padding removed"


def lora(targets, **options):
    """B is random too: at zero, as it begins, an adapter adds nothing."""
    return peft.LoraConfig(
        **{"target_modules": targets, "r": 4, "lora_alpha": 8, "init_lora_weights": False, **options}
    )


def models(family="bert", head=AutoModelForSequenceClassification, dtype=torch.float32, **options):
    """A stock model and its copy that is to be optimised."""
    torch.manual_seed(1)
    model = head.from_config(FAMILIES[family].tiny(initializer_range=0.2, **options)).to(dtype).eval()
    return model, copy.deepcopy(model)


def adapted(pair, *configs, order="before", **options):
    """Both models with the same adapters: "default", "second", ...; the other one optimised before or after it got them."""
    both = []
    for model, fast in zip(pair, (False, True), strict=True):
        torch.manual_seed(2)
        if fast and order == "before":
            bertfast.optimize(model)
        made = peft.get_peft_model(model, copy.deepcopy(configs[0]), **options)
        for config in configs[1:]:
            made.add_adapter("second", copy.deepcopy(config))
        if fast and order == "after":
            bertfast.optimize(made)
        both.append(made.eval())
    return both


@functools.cache
def batch(labels=False):
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(12) < torch.tensor([12, 3, 7, 1])[:, None]
    ids = torch.randint(3, 50, mask.shape, generator=generator).masked_fill(~mask, 1)
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    return inputs | {"labels": torch.tensor([0, 1, 1, 0])} if labels else inputs


def layer_outcomes(model):
    """Every outcome of the calls of layers, whatever the family."""
    kinds = {family.layer.__name__ for family in (FAMILIES[name] for name in QUERY_AND_VALUE)}
    rows = [row for row in bertfast.report(model).to_dict()["modules"] if row["kind"] in kinds]
    return {outcome for row in rows for outcome in row["calls"]}


def encoder_outcome(model):
    kinds = {family.encoder.__name__ for family in (FAMILIES[name] for name in QUERY_AND_VALUE)}
    return next(row["calls"] for row in bertfast.report(model).to_dict()["modules"] if row["kind"] in kinds)


def logits(model, **inputs):
    with torch.no_grad():
        return model(**(inputs or batch())).logits


def states(model):
    """Hidden states at real tokens. Logits are too few for their error to be more than luck."""
    with torch.no_grad():
        base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        return base.base_model(**batch()).last_hidden_state[batch()["attention_mask"].bool()]


def assert_equal_numbers(fast, stock):
    oracle = states(copy.deepcopy(stock).double())
    assert_within_budget(states(fast), states(stock), oracle, "hidden states", measure=rms_error)
    narrow = oracle.abs().max() * 8 * torch.finfo(stock.dtype).eps
    torch.testing.assert_close(logits(fast), logits(stock), rtol=1e-4, atol=max(1e-5, float(narrow)))


def step(model, seed=None):
    """Loss and the gradients of everything that is trained."""
    if seed is not None:
        torch.manual_seed(seed)
    model.train()
    model.zero_grad()
    loss = model(**batch(labels=True)).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(fast, stock, context=contextlib.nullcontext):
    """Each within a thousandth in float32, and all of them, each as large as the others, within the budget."""
    exact = step(copy.deepcopy(stock).double())
    with context():
        ours, theirs = step(fast), step(stock)
    assert list(ours) == list(theirs) == list(exact)
    assert [t.dtype for t in ours.values()] == [t.dtype for t in theirs.values()]
    scales = {name: oracle.square().mean().sqrt() for name, oracle in exact.items()}
    least = 0.01 * max(scales.values())  # that of a key's bias is nothing but rounding
    scales = {name: scale.clamp(min=least) for name, scale in scales.items()}
    whole = [torch.cat([(t.double() / scales[n]).flatten() for n, t in each.items()]) for each in (ours, theirs, exact)]
    assert_within_budget(*whole, "gradients", measure=rms_error)
    tolerance = 1e-3 if context is contextlib.nullcontext and stock.dtype is torch.float32 else 0.3
    for name, oracle in exact.items():
        error = rms_error(ours[name] / scales[name], oracle / scales[name])
        assert error <= tolerance, f"{name}: {error:.1e} of its size"


@pytest.mark.tool("PEFT", "LoRA, not merged", "fast")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("family", QUERY_AND_VALUE)
def test_inference_beside_adapters(family, order):
    stock, fast = adapted(models(family), lora(QUERY_AND_VALUE[family]), order=order)
    assert_equal_numbers(fast, stock)
    assert layer_outcomes(fast) == {UNPADDED}
    fast.config.output_hidden_states = stock.config.output_hidden_states = True
    for ours, theirs in zip(fast(**batch()).hidden_states, stock(**batch()).hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert layer_outcomes(fast) == {UNPADDED, "fast"}, "hidden states come from padded layers"


@pytest.mark.tool("PEFT", "training LoRA, with lora_dropout, checkpointing, autocast", "fast")
@pytest.mark.parametrize("family", QUERY_AND_VALUE)
def test_training_beside_adapters(family):
    stock, fast = adapted(models(family), lora(QUERY_AND_VALUE[family], task_type="SEQ_CLS"))
    assert_equal_gradients(fast, stock)
    names = {name for name in step(fast) if name != "loss"}
    assert all("lora_" in name or "classifier" in name for name in names), "the base is frozen"
    assert layer_outcomes(fast) == {UNPADDED}


@pytest.mark.parametrize("family", EVERYTHING)
@pytest.mark.parametrize("bias", ["none", "all"])
def test_adapters_beside_every_product(family, bias):
    """With biases of the base trained as well."""
    both = adapted(models(family), lora(EVERYTHING[family], bias=bias, use_rslora=True), order="after")
    assert_equal_numbers(*both[::-1])
    assert_equal_gradients(*both[::-1])
    assert layer_outcomes(both[1]) == {UNPADDED}


@pytest.mark.tool("PEFT", "target_modules='all-linear', other ranks and layers, rsLoRA, PiSSA, trained tokens", "fast")
@pytest.mark.parametrize(
    "options",
    [
        {"targets": "all-linear", "task_type": "SEQ_CLS"},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}, "layers_to_transform": [1], "use_rslora": True},
        {"init_lora_weights": "pissa", "modules_to_save": ["pooler", "classifier"]},  # the base's weights change
        {"trainable_token_indices": [4, 5]},
    ],
    ids=["all-linear", "patterns", "pissa", "tokens"],
)
def test_configs_of_lora(options):
    both = adapted(models(), lora(**{"targets": ["query", "value"], **options}))
    assert_equal_numbers(*both[::-1])
    assert_equal_gradients(*both[::-1])
    assert layer_outcomes(both[1]) == {UNPADDED}


def test_the_base_is_trained_too():
    both = adapted(models(), lora(["query", "dense"]))
    for model in both:
        model.requires_grad_(True)
    assert_equal_gradients(*both[::-1])
    assert layer_outcomes(both[1]) == {UNPADDED}


@pytest.mark.parametrize("adapters_dtype", [torch.float32, torch.bfloat16])
def test_a_bfloat16_model(adapters_dtype):
    """PEFT keeps float32 adapters beside it unless it is told not to."""
    keep = adapters_dtype is torch.float32
    stock, fast = adapted(models(dtype=torch.bfloat16), lora(EVERYTHING["bert"]), autocast_adapter_dtype=keep)
    assert next(p for n, p in fast.named_parameters() if "lora_A" in n).dtype is adapters_dtype
    assert_equal_numbers(fast, stock)
    assert_equal_gradients(fast, stock)
    assert layer_outcomes(fast) == {UNPADDED}


def test_autocast():
    stock, fast = adapted(models(), lora(EVERYTHING["bert"]))
    assert_equal_gradients(fast, stock, lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert layer_outcomes(fast) == {UNPADDED}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    stock, fast = models()
    for model in (stock, fast):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    both = adapted((stock, fast), lora(["query", "value"], lora_dropout=0.0))
    assert_equal_gradients(*both[::-1])
    dropping = adapted(models(), lora(["query", "value"], lora_dropout=0.3))[1]
    once = step(dropping, seed=5)
    dropping.gradient_checkpointing_enable({"use_reentrant": reentrant})
    dropping.enable_input_require_grads()
    again = step(dropping, seed=5)
    for name, value in once.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)
    assert layer_outcomes(dropping) == {UNPADDED}


def test_lora_dropout():
    """From a seed the same bits, with and without gradients; over many calls the mean of stock's."""
    stock, fast = adapted(models(), lora(["query", "dense"], lora_dropout=0.3))
    runs = [step(fast, seed) for seed in (4, 4, 5)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["loss"], runs[2]["loss"])
    torch.manual_seed(4)
    with torch.no_grad():
        assert torch.equal(fast(**batch(labels=True)).loss, runs[0]["loss"])
    samples = []
    for model in (stock, fast):
        model.train()
        samples.append(torch.stack([logits(model) for _ in range(200)]))
    spread = samples[0].std(0)
    error = (samples[0].mean(0) - samples[1].mean(0)) / spread
    assert error.square().mean().sqrt() < 2 * (2 / 200) ** 0.5
    torch.testing.assert_close(samples[1].std(0), spread, rtol=0.3, atol=0.0)


@pytest.mark.tool("PEFT", "merge_adapter, unmerge_adapter, merge_and_unload", "fast")
def test_merged_and_back():
    stock, fast = adapted(models(), lora(EVERYTHING["bert"]))
    before = logits(fast)
    for model in (stock, fast):
        model.merge_adapter()
    for _ in range(2):
        assert_equal_numbers(fast, stock)
    torch.testing.assert_close(logits(fast), before, rtol=1e-3, atol=1e-4)
    layer = fast.get_base_model().bert.encoder.layer[0]
    assert bertfast.report(fast).to_dict()["prepacked_bytes"] > 0
    assert type(layer.attention.self.query) is not nn.Linear, "they are still there"
    for model in (stock, fast):
        model.requires_grad_(True)  # adapters that are merged get no gradients, so the base's are looked at
    assert_equal_gradients(fast, stock)
    for model in (stock, fast):
        model.eval().unmerge_adapter()
    assert_equal_numbers(fast, stock)
    with torch.no_grad():  # what was merged has changed meanwhile
        for model in (stock, fast):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-2)
    assert_equal_numbers(fast, stock)
    unloaded = [model.merge_and_unload() for model in (stock, fast)]
    assert_equal_numbers(*unloaded[::-1])
    assert layer_outcomes(fast) == {UNPADDED}


def test_unmerged_where_merging_changed_no_number():
    """B is zero at first, so merged weights are the base's, and only PEFT's list of what is merged tells."""
    stock, fast = adapted(models(), lora(["query", "value"], init_lora_weights=True))
    for model in (stock, fast):
        model.merge_adapter()
    assert_equal_numbers(fast, stock)
    for model in (stock, fast):
        model.unmerge_adapter()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.5)
    assert_equal_numbers(fast, stock)


@pytest.mark.tool("PEFT", "disable_adapter, set_adapter, several adapters, add and delete", "fast")
def test_every_state_of_two_adapters():
    both = adapted(models(), lora(["query", "value"]), lora(["value", "dense"], r=2, lora_alpha=1))

    def same(change):
        for model in both:
            change(model)
        assert_equal_numbers(*both[::-1])

    same(lambda model: model.set_adapter("second"))
    same(lambda model: model.base_model.set_adapter(["default", "second"]))
    same(lambda model: model.base_model.model.bert.encoder.layer[0].attention.self.value.set_scale("default", 3.0))
    assert_equal_gradients(*both[::-1])
    with both[0].disable_adapter(), both[1].disable_adapter():
        same(lambda model: None)
    same(lambda model: model.merge_adapter(["default"]))
    same(lambda model: model.unmerge_adapter())
    same(lambda model: model.set_adapter("default"))
    same(lambda model: model.delete_adapter("second"))
    same(lambda model: model.add_weighted_adapter(["default"], [0.5], "blend"))
    same(lambda model: model.set_adapter("blend"))
    assert layer_outcomes(both[1]) == {UNPADDED}


def test_disabled_while_merged():
    """Stock takes them out of the weights in that very call, so it is stock's; the next one is fast again."""
    stock, fast = adapted(models(), lora(["query", "value"]))
    for model in (stock, fast):
        model.merge_adapter()
    with stock.disable_adapter(), fast.disable_adapter():
        assert_equal_numbers(fast, stock)
        assert_equal_numbers(fast, stock)
    assert_equal_numbers(fast, stock)
    assert encoder_outcome(fast)[UNPADDED] == 5, "two calls each of the second and third time, one of the first"
    assert any("merged adapters" in outcome for outcome in encoder_outcome(fast))


@pytest.mark.tool("PEFT", "save_pretrained, from_pretrained, modules_to_save, get_base_model", "fast")
def test_round_trip(tmp_path):
    config = lora(["query", "value"], modules_to_save=["classifier"])
    pair = models()
    base = copy.deepcopy(pair[0])
    stock, fast = adapted(pair, config)
    for model in (stock, fast):
        nn.init.ones_(model.get_base_model().classifier.modules_to_save["default"].bias)
    assert isinstance(fast.get_base_model(), type(base))
    fast.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(bertfast.optimize(base), tmp_path)
    assert torch.equal(logits(loaded), logits(fast))
    assert_equal_numbers(loaded, stock)
    assert layer_outcomes(loaded) == {UNPADDED}
    plain = peft.PeftModel.from_pretrained(models()[0], tmp_path)
    assert torch.equal(logits(plain), logits(stock)), "a stock model reads the same files"
    assert_equal_gradients(fast, stock)
    copied = copy.deepcopy(fast).eval()
    assert torch.equal(logits(copied), logits(fast.eval()))
    bertfast.restore(fast)
    assert torch.equal(logits(fast), logits(stock.eval()))


@pytest.mark.tool("PEFT", "LoRA on the embeddings", "falls back")
def test_adapters_on_embeddings():
    stock, fast = adapted(models(), lora(["word_embeddings", "query"]))
    assert_equal_numbers(fast, stock)
    assert_equal_gradients(fast, stock)
    rows = {row["kind"]: row for row in bertfast.report(fast).to_dict()["modules"]}
    assert "word_embeddings is peft.tuners.lora.layer.Embedding" in str(rows["BertEmbeddings"]["calls"])
    assert layer_outcomes(fast) == {UNPADDED}, "the layers are fast all the same"


@pytest.mark.tool("PEFT", "DoRA, lora_bias, AdaLoRA, other adapters of a Linear (IA3), tuned layer norms", "falls back")
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(["query"], use_dora=True), "DoraLinearVariant, not plain LoRA"),
        (lora(["query"], lora_bias=True), "has a bias"),
        (peft.IA3Config(target_modules=["query", "value"], feedforward_modules=[], init_ia3_weights=False), "ia3"),
        (peft.LoHaConfig(target_modules=["query"], r=2, init_weights=False), "Linear"),
        (
            peft.AdaLoraConfig(target_modules=["query"], init_r=4, target_r=2, total_step=9, init_lora_weights=False),
            "SVDLinear",
        ),
        (peft.LNTuningConfig(target_modules=["LayerNorm"]), "LNTuningLayer"),
        (lora(["query"], modules_to_save=["LayerNorm"]), "ModulesToSaveWrapper"),
    ],
)
def test_other_adapters(config, reason):
    stock, fast = adapted(models(), config)
    torch.testing.assert_close(logits(fast), logits(stock))
    results = [step(model) for model in (stock, fast)]
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-5)
    assert reason in str(encoder_outcome(fast))


def assert_equal_with_virtual_tokens(stock, fast):
    torch.testing.assert_close(logits(fast), logits(stock), rtol=1e-4, atol=1e-5)
    results = [step(model) for model in (stock, fast)]
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.tool(
    "PEFT", "prefix tuning, which hands layers a cache (transformers below 5.24 for PEFT 0.21)", "falls back"
)
def test_prefix_tuning():
    """PEFT 0.21 does not know the name that a cache has from transformers 5.24 on, and refuses stock's models too."""
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    stock, fast = adapted(models(num_labels=2), config)
    try:
        logits(stock)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            logits(fast)
        return
    assert_equal_with_virtual_tokens(stock, fast)
    assert all(outcome.endswith("was given") for outcome in layer_outcomes(fast))


@pytest.mark.tool("PEFT", "prompt tuning, P-tuning", "fast")
@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
        peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=8),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_prompt_tuning(config):
    """Its tokens come as embeddings, so the embeddings are stock's and the layers fast."""
    stock, fast = adapted(models(num_labels=2), config)
    assert_equal_with_virtual_tokens(stock, fast)
    assert layer_outcomes(fast) == {UNPADDED}


@pytest.mark.tool("PEFT", "adapter_names: several adapters in a batch", "falls back")
def test_mixed_batches():
    stock, fast = adapted(models(), lora(["query"]), lora(["query"]))
    names = ["default", "second", "__base__", "default"]
    torch.testing.assert_close(
        logits(fast, **batch(), adapter_names=names), logits(stock, **batch(), adapter_names=names)
    )
    assert "query has hooks" in str(encoder_outcome(fast))
    assert_equal_numbers(fast, stock)
    assert encoder_outcome(fast)[UNPADDED] == 2


def test_a_base_model_alone():
    stock, fast = adapted(models(head=AutoModel), lora(["query", "value"]))
    with torch.no_grad():
        states = [model(**batch()).last_hidden_state[batch()["attention_mask"].bool()] for model in (fast, stock)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "fast, from ids to hidden states" in str(bertfast.report(fast))


@pytest.mark.tool("PEFT", "LoRA, training on fewer than 48 tokens", "falls back")
def test_a_handful_of_tokens_in_training_is_stocks():
    stock, fast = adapted(models(), lora(QUERY_AND_VALUE["bert"]))
    few = {"input_ids": torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(4))}
    for model in (stock, fast):
        model.train()
        model(**few).logits.square().sum().backward()
    for ours, theirs in zip(fast.parameters(), stock.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert "adapters gain nothing in training on a handful of tokens" in layer_outcomes(fast)
