"""Every family and head beside stock: both dtypes, every kind of batch, training and inference; and what is particular to some."""

import dataclasses
from collections import Counter, defaultdict
from itertools import product

import pytest
import torch
from family_cases import (
    BATCH,
    BATCHES,
    FIRST_ALONE,
    HEADS,
    RELATIVE,
    SEQLEN,
    UNPADDED,
    WHOLE,
    Errors,
    call,
    calls_of,
    compare,
    has_relative_positions,
    inputs_of,
    kept_padded,
    models_of,
    real_of,
)

from bertfast.convert.families import FAMILIES

RELATIVE_LAYER = "stock's layer ran, which adds the bias of relative positions"
by_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "head"), HEADS, ids=[f"{name}-{head}" for name, head in HEADS])
def test_a_head_in_every_mode(name, head, dtype):
    family = FAMILIES[name]
    models = models_of(family, head, dtype)
    for train in (False, True):
        errors = Errors(dtype)
        for batch in BATCHES:
            inputs, real = inputs_of(family, head, batch), real_of(batch)
            ours, stock, exact = (call(m, inputs, real, train) for m in (models.fast, models.stock, models.oracle))
            errors.add(ours, stock, exact, ["loss"] * reads_padding(family, models.stock, batch, train))
        errors.assert_within_budget("training" if train else "inference")
    assert calls_of(models.fast) == expected_calls(family, models.fast)


def reads_padding(family, stock, batch, train):
    """Whether a loss depends on logits at padding, which in inference are those of a zero hidden state, as documented."""
    return type(stock) in family.losses_over_padding and batch != "no mask" and not train


def expected_calls(family, fast):
    """What the modules of a model must have counted after one call of each batch, in inference and in training."""
    base, encoder, layer = (kind.__name__ for kind in (family.model, family.encoder, family.layer))
    calls = defaultdict(Counter)
    for train, batch in product((False, True), BATCHES):
        reason = kept_padded(family, fast, batch, train)
        calls[family.embeddings.__name__]["fast"] += 1
        calls[encoder][UNPADDED if reason is None else f"kept padded: {reason}"] += 1
        padded = RELATIVE_LAYER if has_relative_positions(family) else "fast"
        calls[layer][UNPADDED if reason is None else padded] += len(family.encoder_of(fast.base_model).layer)
        by_modules = "gradients are enabled" if train else RELATIVE if has_relative_positions(family) else reason
        calls[base][WHOLE if by_modules is None else f"module by module: {by_modules}"] += 1
        if type(fast).__name__ != base and type(fast) in family.fast.values():
            calls[type(fast).__name__][FIRST_ALONE] += 1
    return calls


def below(size, *shape, seed=7):
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(seed))


def padding_inside(family, inputs):
    """The padding token among real ones, the mask going by the tokens, as tokenizers make it."""
    inputs["input_ids"][:, 3::4] = family.tiny().pad_token_id
    inputs["attention_mask"] = inputs["input_ids"].ne(family.tiny().pad_token_id).long()


def attended_padding(family, inputs):
    """The padding token among real ones, and no mask: RoBERTa's positions skip it, and all tokens see it."""
    inputs["input_ids"][:, 3::4] = family.tiny().pad_token_id
    del inputs["attention_mask"]


def tokens_behind_the_mask(family, inputs):
    """Ordinary tokens where the mask says padding: RoBERTa's positions count them."""
    behind = inputs["attention_mask"] == 0
    inputs["input_ids"] = torch.where(behind, below(40, BATCH, SEQLEN) + 2, inputs["input_ids"])


def given_positions(family, inputs):
    inputs["position_ids"] = below(15, BATCH, SEQLEN)


def one_row_of_positions(family, inputs):
    inputs["position_ids"] = below(15, 1, SEQLEN)


def small_ids(family, inputs):
    inputs |= {name: value.int() for name, value in inputs.items() if name != "attention_mask"}


def no_segments(family, inputs):
    inputs.pop("token_type_ids", None)


def embeddings_given(family, inputs):
    """The words' vectors in place of their ids: RoBERTa's positions are then counted from the first place on."""
    width = family.model(family.tiny()).get_input_embeddings().embedding_dim
    del inputs["input_ids"]
    generator = torch.Generator().manual_seed(8)
    inputs["inputs_embeds"] = torch.randn(BATCH, SEQLEN, width, generator=generator)


FORMS = (
    padding_inside,
    attended_padding,
    tokens_behind_the_mask,
    given_positions,
    one_row_of_positions,
    small_ids,
    no_segments,
    embeddings_given,
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@by_family
def test_forms_of_input(name, form):
    family = FAMILIES[name]
    batch = "left" if form is tokens_behind_the_mask else "packed"
    inputs, real = inputs_of(family, "Model", batch), real_of(batch)
    form(family, inputs)
    if form is padding_inside:
        real = inputs["attention_mask"].bool()
    elif form is attended_padding:
        real = torch.ones_like(real)
    models = models_of(family, family.model.__name__, attn_implementation="eager")
    compare(models, inputs, real, left_out=["pooler_output"])
    taken = calls_of(models.fast)[family.embeddings.__name__]
    assert taken.keys() == ({"inputs_embeds was given"} if form is embeddings_given else {"fast"})


@by_family
def test_padding_rows_get_no_gradient(name):
    """The rows that stock's tables keep for padding: words', and positions' where they follow the tokens."""
    family = FAMILIES[name]
    inputs = inputs_of(family, "Model", "packed")
    attended_padding(family, inputs)
    models = models_of(family, family.model.__name__)
    for model in (models.stock, models.fast):
        call(model, inputs, real_of("no mask"), train=True)
        tables = [m for m in model.embeddings.children() if isinstance(m, torch.nn.Embedding)]
        tables = [table for table in tables if table.padding_idx is not None]
        assert len(tables) == 1 + family.positions_follow_tokens
        for table in tables:
            used = table.weight.grad.abs().sum(1) > 0
            assert not used[table.padding_idx]
            assert int(used.sum()) > 5


VARIANTS = {
    "electra without a projection": ("electra", {"embedding_size": 32}),
    "ernie with tasks": ("ernie", {"use_task_id": True, "task_type_vocab_size": 3}),
    "ernie with tasks, one type": ("ernie", {"use_task_id": True, "type_vocab_size": 1}),
    "sinusoidal distilbert": ("distilbert", {"sinusoidal_pos_embds": True}),
    "roberta with one type": ("roberta", {"type_vocab_size": 1}),
    "xlm-roberta of another padding": ("xlm_roberta", {"pad_token_id": 3, "max_position_embeddings": 20}),
    "bert without a pooler": ("bert", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant):
    name, options = VARIANTS[variant]
    family = FAMILIES[name]
    models = models_of(family, family.model.__name__, **options)
    if variant.endswith("pooler"):
        for model in models:
            model.pooler = None
    inputs = inputs_of(family, "Model", "packed")
    if family.segments:
        inputs["token_type_ids"] %= models.stock.config.type_vocab_size
    if name == "xlm_roberta":
        inputs["input_ids"] = torch.where(real_of("packed"), inputs["input_ids"], 3)
    tasks = [{}]
    if family.tasks:
        tasks = [{}, {"task_type_ids": below(3, BATCH, SEQLEN)}, {"task_type_ids": below(3, BATCH, SEQLEN), **NO_TYPES}]
    for more in tasks:
        given = {key: value for key, value in (inputs | more).items() if value is not None}
        compare(models, given, real_of("packed"), left_out=["pooler_output"])
    assert calls_of(models.fast)[family.embeddings.__name__] == {"fast": 2 * len(tasks)}
    assert calls_of(models.fast)[family.encoder.__name__] == {UNPADDED: 2 * len(tasks)}


NO_TYPES = {"token_type_ids": None}


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_wrong_task_is_refused_by_name(wrong):
    """Tasks and segments are one table to the kernel, where a task out of range would be another pair's row."""
    fast = models_of(FAMILIES["ernie"], "ErnieModel", use_task_id=True, task_type_vocab_size=3).fast
    inputs = inputs_of(FAMILIES["ernie"], "Model", "packed") | {"task_type_ids": below(3, BATCH, SEQLEN)}
    inputs["task_type_ids"][1, 0] = wrong
    for train in (False, True):
        with pytest.raises(IndexError, match=rf"task_type_ids holds {wrong} at flattened position {SEQLEN}"):
            call(fast, inputs, real_of("packed"), train)


def test_a_record_goes_by_the_folder_in_transformers():
    with pytest.raises(ValueError, match=r"'xlm-roberta', and its folder in transformers 'xlm_roberta': name"):
        dataclasses.replace(FAMILIES["xlm_roberta"], name="xlm-roberta")
