"""Padding: every pattern of it, masks given in other forms, and properties that hold whatever the numbers are."""

import pytest
import torch
from bert_cases import (
    BATCH,
    HIDDEN,
    SEQLEN,
    assert_same,
    batch_of,
    feed_forward_rows,
    head_inputs,
    loss_of,
    mask_of,
    outcome,
    outputs_at_tokens,
    pair,
)
from transformers.models.bert import modeling_bert as hf

import bertfast

UNPADDED = "fast, padding removed"
SPLIT = "fast, padding removed but from sequences that begin with it"


def hidden(model, **inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


@pytest.fixture(params=[True, False], ids=["unpad", "padded"])
def fast(request):
    return pair(options={"unpad": request.param})[1]


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_what_padding_holds_does_not_matter(fast, padding):
    inputs = batch_of(padding)
    real = inputs["attention_mask"].bool()
    other = inputs | {"input_ids": torch.where(real, inputs["input_ids"], 5)}
    assert torch.equal(hidden(fast, **inputs)[real], hidden(fast, **other)[real])


def test_permuting_the_batch_permutes_the_result(fast):
    inputs = batch_of("right")
    order = torch.tensor([2, 0, 3, 1])
    permuted = {name: value[order] for name, value in inputs.items()}
    real = permuted["attention_mask"].bool()
    assert_same(hidden(fast, **permuted)[real], hidden(fast, **inputs)[order][real])


@pytest.mark.parametrize("side", ["right", "both"])
def test_more_padding_changes_nothing(fast, side):
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    more = {name: torch.nn.functional.pad(value, (0, 9)) for name, value in inputs.items()}
    wide = hidden(fast, **more)
    assert_same(wide[:, :SEQLEN][real], hidden(fast, **inputs)[real])
    if side == "both":  # positions move with the tokens only where they are given
        moved = {name: torch.nn.functional.pad(value, (4, 5)) for name, value in inputs.items()}
        positions = torch.arange(SEQLEN + 9).sub(4).clamp(0)[None]
        shifted = hidden(fast, **moved, position_ids=positions)
        assert_same(shifted[:, 4 : SEQLEN + 4][real], wide[:, :SEQLEN][real])


def test_a_batch_equals_its_single_sequences(fast):
    inputs = batch_of("right")
    together = hidden(fast, **inputs)
    for i, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = hidden(fast, **{name: value[i : i + 1, :length] for name, value in inputs.items()})
        assert_same(together[i, :length], alone[0], f"sequence {i}")


def test_unpadded_equals_padded_and_leaves_zeros():
    inputs = batch_of("holes")
    real = inputs["attention_mask"].bool()
    unpadded, padded = (pair(options={"unpad": unpad})[1] for unpad in (True, False))
    got = hidden(unpadded, **inputs)
    assert_same(got[real], hidden(padded, **inputs)[real])
    assert not got[~real].any()
    assert outcome(padded, "BertEncoder") == {"kept padded: unpad=False": 1}
    assert outcome(padded, "BertLayer") == {"fast": 1}


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.float32])
def test_dtypes_of_a_two_dimensional_mask(mask_dtype):
    stock, fast = pair()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    inputs["attention_mask"] = inputs["attention_mask"].to(mask_dtype)
    assert_same(hidden(fast, **inputs)[real], hidden(stock, **inputs)[real])


def four_dimensional(kind: str, implementation: str):
    """A mask [B, 1, S, S] or [B, 1, 1, S], and whether it only hides padding."""
    keys = mask_of("right").bool()[:, None, None, :]
    if kind == "key padding, one row":
        mask = keys
    elif kind == "key padding, all rows":
        mask = keys.expand(-1, -1, SEQLEN, -1).clone()
    elif kind == "window":
        distance = (torch.arange(SEQLEN)[:, None] - torch.arange(SEQLEN)).abs()
        mask = (distance <= 3).expand(BATCH, 1, -1, -1)
    elif kind == "bias":
        return torch.randn(BATCH, 1, SEQLEN, SEQLEN, generator=torch.Generator().manual_seed(7))
    if implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["key padding, one row", "key padding, all rows", "window", "bias"])
def test_four_dimensional_masks(kind, implementation):
    stock, fast = pair(attn_implementation=implementation)
    inputs = batch_of("none") | {"attention_mask": four_dimensional(kind, implementation)}
    real = mask_of("right" if kind.startswith("key") else "none").bool()
    assert_same(hidden(fast, **inputs)[real], hidden(stock, **inputs)[real])
    assert (UNPADDED in outcome(fast, "BertEncoder")) == kind.startswith("key")
    assert next(iter(outcome(fast, "BertLayer"))).startswith("fast")


def test_gradients_under_a_four_dimensional_bias():
    stock, fast = pair()
    inputs = batch_of("none") | {"attention_mask": four_dimensional("bias", "sdpa")}
    weight = torch.randn(BATCH, SEQLEN, HIDDEN)
    for model in (stock, fast):
        (model(**inputs).last_hidden_state * weight).sum().backward()
    for (name, want), got in zip(stock.named_parameters(), fast.parameters(), strict=True):
        if want.grad is not None and not name.endswith("key.bias"):
            assert_same(got.grad, want.grad, name, tolerance=1e-4)


def test_boolean_mask_under_eager_is_stock_behaviour():
    stock, fast = pair(attn_implementation="eager")
    inputs = batch_of("none") | {"attention_mask": four_dimensional("window", "sdpa")}
    assert_same(hidden(fast, **inputs), hidden(stock, **inputs))
    assert any("boolean 4-D mask under eager" in how for how in outcome(fast, "BertLayer"))


def test_left_padding_keeps_the_pooler_of_stock():
    stock, fast = pair()
    inputs = batch_of("left")
    with torch.no_grad():
        want, got = stock(**inputs), fast(**inputs)
    assert_same(got.pooler_output, want.pooler_output)
    assert any("pooler reads position 0" in how for how in outcome(fast, "BertEncoder"))


def test_left_padding_is_removed_where_no_pooler_reads_it():
    stock, fast = pair(hf.BertForTokenClassification)
    inputs = batch_of("left")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert_same(fast(**inputs).logits[real], stock(**inputs).logits[real])
    assert outcome(fast, "BertEncoder") == {UNPADDED: 1}


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("unpad", [True, False])
def test_a_sequence_of_padding_alone_gives_no_nan(unpad, pooler):
    fast = pair(options={"unpad": unpad})[1]
    if not pooler:
        fast.pooler = None
        bertfast.optimize(fast, unpad=unpad)  # looks again at who reads position 0
    inputs = batch_of("right")
    inputs["attention_mask"][1] = 0
    result = fast(**inputs).last_hidden_state
    result.sum().backward()
    assert result.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fast.parameters())


def test_an_empty_mask_everywhere_gives_no_nan():
    fast = pair()[1]
    inputs = batch_of("right")
    inputs["attention_mask"][:] = 0
    assert hidden(fast, **inputs).isfinite().all()


def test_wrong_masks_are_stocks_errors():
    stock, fast = pair()
    inputs = batch_of("none") | {"attention_mask": torch.ones(BATCH, 1, 3, SEQLEN, dtype=torch.bool)}
    for model in (stock, fast):
        with pytest.raises(RuntimeError):
            hidden(model, **inputs)


@pytest.mark.parametrize("head", [hf.BertModel, hf.BertForSequenceClassification])
@pytest.mark.parametrize("train", [False, True])
def test_one_sequence_of_padding_alone_does_not_keep_the_others_padded(monkeypatch, head, train):
    """Its rows alone are computed with their padding, since the pooler looks at one; the numbers are stock's."""
    stock, fast = pair(head, train=train)
    inputs = head_inputs(head, "right")
    inputs["attention_mask"] = torch.tensor([[1] * 3 + [0] * 9] * 3 + [[0] * 12])
    rows = feed_forward_rows(monkeypatch)
    with torch.enable_grad():
        want, got = stock(**inputs), fast(**inputs)
    real = inputs["attention_mask"].bool()
    for name, value in outputs_at_tokens(want, inputs["attention_mask"]).items():
        assert_same(outputs_at_tokens(got, inputs["attention_mask"])[name], value, name)
    for outputs in (want, got):
        loss_of(outputs, inputs["attention_mask"]).backward()
    for (name, value), ours in zip(stock.named_parameters(), fast.parameters(), strict=True):
        if value.grad is not None and not name.endswith("key.bias"):
            assert_same(ours.grad, value.grad, name, tolerance=1e-4)
    last = 3 if head is hf.BertForSequenceClassification else int(real.sum())
    assert rows == [int(real.sum()), last, 1, 1]  # the last sequence as one of [1, 12, E]
    assert outcome(fast, "BertEncoder") == {SPLIT: 1}
