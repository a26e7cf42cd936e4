"""chunk_size_feed_forward: optimised models stay fast, cut their feed-forward too, and raise an error where stock does."""

import copy

import pytest
import torch
from bert_cases import assert_same
from family_cases import (
    BATCH,
    SEQLEN,
    UNPADDED,
    WHOLE,
    calls_of,
    compare,
    has_relative_positions,
    inputs_of,
    models_of,
    real_of,
)

import bertfast
from bertfast.convert import chunking
from bertfast.convert.families import FAMILIES
from bertfast.nn import core

SIZE = 4
ROWS = BATCH * SIZE  # of stock's chunk
# MPNet's layers do not read the option.
READERS = [name for name, family in FAMILIES.items() if not has_relative_positions(family)]


@pytest.fixture
def parts(monkeypatch):
    """A list that gets the rows of each part that a feed-forward is cut into later, where tiny batches are worth cutting."""
    monkeypatch.setattr(chunking, "LEAST_ROWS", 1)
    rows = []
    whole = core.mlp_block

    def mlp_block(x, *args, **options):
        rows.append(x.shape[0])
        return whole(x, *args, **options)

    monkeypatch.setattr(core, "mlp_block", mlp_block)  # a layer calls it by its own name for it
    return rows


def chunked(name, head="Model", size=SIZE, **options):
    family = FAMILIES[name]
    return models_of(
        family, family.model.__name__ if head == "Model" else head, chunk_size_feed_forward=size, **options
    )


def cut(rows):
    """`rows` of each of two layers in chunks."""
    return [min(ROWS, rows - begin) for begin in range(0, rows, ROWS)] * 2


@pytest.mark.tool("transformers", "chunk_size_feed_forward", "fast")
@pytest.mark.parametrize("name", READERS)
def test_chunks_stay_fast(name, parts):
    family, models, real = FAMILIES[name], chunked(name), real_of("right")
    inputs = inputs_of(family, "Model", "right")
    compare(models, inputs, real)
    layers = calls_of(models.fast)
    assert layers[family.layer.__name__] == {UNPADDED: 4}
    assert layers[family.encoder.__name__] == {UNPADDED: 2}
    assert layers[family.model.__name__] == {WHOLE: 1, "module by module: gradients are enabled": 1}
    assert parts == cut(int(real.sum()))  # of training: in inference C++ cuts
    note = "chunk_size_feed_forward is set: fast layers cut their feed-forward too"
    assert sum(line.startswith(note) for line in bertfast.report(models.fast).notes) == 1


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_layers_that_are_called_chunk_too(name, parts):
    """Without copies of the weights packed ones are called one by one, and for all hidden states padded ones."""
    family = FAMILIES[name]
    inputs, real = inputs_of(family, "Model", "right"), real_of("right")
    models = chunked(name, options={"prepack": False}, dtype=torch.bfloat16)
    with torch.no_grad():
        models.fast(**inputs)
        assert parts == cut(int(real.sum()))
        parts.clear()
        models.fast(**inputs, output_hidden_states=True)
        assert parts == cut(BATCH * SEQLEN)
    assert calls_of(models.fast)[family.layer.__name__] == {UNPADDED: 2, "fast": 2}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_chunked_and_whole_are_alike_at_padding_too(name, grad, parts):
    """As transformers' own test of the option has it."""
    models, inputs = chunked(name), inputs_of(FAMILIES[name], "Model", "right")
    whole = copy.deepcopy(models.fast)
    for module in whole.modules():
        if "chunk_size_feed_forward" in module.__dict__:
            module.chunk_size_feed_forward = 0
    with torch.set_grad_enabled(grad):
        states = models.fast(**inputs)[0]
        assert parts == (cut(int(real_of("right").sum())) if grad else [])  # without gradients C++ cuts, in its own way
        assert_same(states, whole(**inputs)[0])


def test_a_pass_without_gradients_drops_what_one_with_them_drops(parts):
    dropout = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    fast, inputs = chunked("bert", **dropout).fast.train(), inputs_of(FAMILIES["bert"], "Model", "right")
    outputs = []
    for grad in (False, True):
        torch.manual_seed(3)
        with torch.set_grad_enabled(grad):
            outputs.append(fast(**inputs)[0])
    assert_same(*outputs)
    assert not torch.equal(fast(**inputs)[0], outputs[0])
    assert parts == 3 * cut(int(real_of("right").sum()))


@pytest.mark.parametrize("mode", ["inference", "gradients", "padded"])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_lengths_that_chunks_do_not_fill(name, mode):
    models, family = chunked(name), FAMILIES[name]
    inputs = inputs_of(family, "Model", "right")
    with torch.set_grad_enabled(mode == "gradients"):
        models.fast(
            **inputs, output_hidden_states=mode == "padded"
        )  # what is kept of it must not let the next one through
        for model in (models.stock, models.fast):
            with pytest.raises(ValueError, match=f"multiple of the chunk size {SIZE}"):
                model(**{key: value[:, :10] for key, value in inputs.items()}, output_hidden_states=mode == "padded")
    reason = f"chunks of {SIZE} positions do not fill 10, for which stock raises an error"
    assert calls_of(models.fast)[family.layer.__name__][reason] == 1


@pytest.mark.parametrize("size", [0, -1, 3, 5, True, 2.0, None], ids=repr)
def test_sizes_of_one_layer(size):
    """Set after the first call, on the second layer."""
    models, inputs = chunked("bert"), inputs_of(FAMILIES["bert"], "Model", "right")
    results = []
    for model in (models.stock, models.fast):
        with torch.no_grad():
            model(**inputs)
            model.encoder.layer[1].chunk_size_feed_forward = size
            try:
                results.append(model(**inputs)[0][real_of("right")])
            except (TypeError, ValueError) as error:
                results.append(type(error))
    if isinstance(results[0], type):
        assert results[0] is results[1]
    else:
        assert_same(results[1], results[0])
    assert calls_of(models.fast)["BertModel"][WHOLE] == (2 if type(size) is int and size != 5 else 1)


def test_batches_as_the_dimension_of_chunks():
    models, inputs = chunked("bert"), inputs_of(FAMILIES["bert"], "Model", "right")
    models.fast.encoder.layer[0].seq_len_dim = 0
    with torch.no_grad():
        assert_same(models.fast(**inputs)[0], models.stock(**inputs)[0])
    assert any("another dimension" in outcome for outcome in calls_of(models.fast)["BertLayer"])


def test_a_gpu_leaves_it_to_stock():
    layer = chunked("bert").fast.encoder.layer[0]
    assert chunking.reason(layer, torch.device("cpu"), SEQLEN) is None
    assert (
        chunking.reason(layer, torch.device("cuda"), SEQLEN)
        == "chunk_size_feed_forward is set, which no GPU kernel follows"
    )
