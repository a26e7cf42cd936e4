"""average_over_accumulation: gradients that do not depend on how a step is cut into micro-batches."""

import copy
import pickle

import pytest
import torch
from bert_cases import HEADS, batch_of, head_inputs, outcome, pair
from torch import Tensor
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.convert.families import FAMILIES
from bertfast.testing import assert_within_budget, rms_error

AVERAGED = "loss averaged over the labels of the whole step"
ON = {"average_over_accumulation": True}
LABELLED = tuple(head for head in HEADS if head not in (hf.BertModel, hf.BertForQuestionAnswering, hf.BertLMHeadModel))


def gradients(model, inputs: dict[str, Tensor], pieces: int, **given) -> Tensor:
    """All gradients of a step over so many micro-batches, each told the number of labels in the step."""
    model.zero_grad()
    items = inputs["labels"].ne(-100).sum()
    for micro_batch in zip(*(value.chunk(pieces) for value in inputs.values()), strict=True):
        outputs = model(**dict(zip(inputs, micro_batch, strict=True)), num_items_in_batch=items, **given)
        outputs[0].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def step_of(head: type) -> dict[str, Tensor]:
    """Rows of 12, 3, 7 and 1 labels; as many each for the pre-training head, whose other loss is weighed by them."""
    return head_inputs(head, "none" if head is hf.BertForPreTraining else "right")


@pytest.mark.parametrize(
    ("head", "masked_head"),
    [*((head, False) for head in LABELLED), (hf.BertForMaskedLM, True), (hf.BertForPreTraining, True)],
    ids=lambda value: getattr(value, "__name__", "masked" if value else ""),
)
def test_gradients_do_not_depend_on_the_cut(head, masked_head):
    stock, fast = pair(head, train=True, options={**ON, "masked_head": masked_head})
    inputs, exact = step_of(head), copy.deepcopy(stock).double()
    whole = gradients(exact, inputs, 1)
    pieces = min(4, len(inputs["labels"]))
    assert_within_budget(gradients(fast, inputs, pieces), gradients(stock, inputs, 1), whole, measure=rms_error)
    assert outcome(fast, head.__name__)[AVERAGED] == pieces
    # What stock does, and we without the option: the sum of the means.
    by_default = bertfast.optimize(fast, masked_head=masked_head)
    cut = gradients(copy.deepcopy(stock).double(), inputs, pieces)
    assert_within_budget(
        gradients(by_default, inputs, pieces), gradients(stock, inputs, pieces), cut, measure=rms_error
    )
    assert float(cut.norm()) > 1.5 * float(whole.norm())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bert"])
def test_token_labels_of_other_families(name):
    family = FAMILIES[name]
    torch.manual_seed(0)
    (head,) = (each for each in family.fast_averaged if each.__name__.endswith("ForTokenClassification"))
    stock = head(family.tiny(num_labels=3, initializer_range=0.2)).train()
    fast, exact = bertfast.optimize(copy.deepcopy(stock), **ON), copy.deepcopy(stock).double()
    real = torch.arange(8) < torch.tensor([8, 2, 5, 3])[:, None]
    labels = torch.randint(0, 3, (4, 8)).masked_fill(~real, -100)
    inputs = {"input_ids": torch.randint(2, 50, (4, 8)), "attention_mask": real.long(), "labels": labels}
    assert_within_budget(*(gradients(m, inputs, n) for m, n in ((fast, 4), (stock, 1), (exact, 1))), measure=rms_error)


def test_a_micro_batch_without_labels_counts_nothing():
    """Stock's mean over no labels is NaN."""
    stock, fast = pair(hf.BertForTokenClassification, train=True, options=ON)
    inputs = step_of(hf.BertForTokenClassification)
    inputs["labels"][1] = -100
    got = gradients(fast, inputs, 4)
    assert_within_budget(
        got, gradients(stock, inputs, 1), gradients(copy.deepcopy(stock).double(), inputs, 1), measure=rms_error
    )


def test_regression_and_tuples():
    stock, fast = pair(hf.BertForSequenceClassification, train=True, options=ON, num_labels=1)
    inputs = batch_of("right") | {"labels": torch.randn(4)}
    got = gradients(fast, inputs, 4, return_dict=False)
    exact = copy.deepcopy(stock).double()
    assert_within_budget(
        got,
        gradients(stock, inputs, 1),
        gradients(exact, inputs | {"labels": inputs["labels"].double()}, 1),
        measure=rms_error,
    )


def test_calls_that_give_no_number_are_as_stock():
    stock, fast = pair(hf.BertForTokenClassification, options=ON)
    inputs = head_inputs(hf.BertForTokenClassification, "right")
    assert float(fast(**inputs).loss.detach()) == pytest.approx(float(stock(**inputs).loss.detach()), rel=1e-5)
    assert fast(**batch_of("right"), num_items_in_batch=7).loss is None
    assert AVERAGED not in outcome(fast, "BertForTokenClassification")


def test_copies_options_and_restore(tmp_path):
    _, fast = pair(hf.BertForMaskedLM, train=True, options=ON)
    assert "averaged over the labels" in str(bertfast.report(fast))
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    bertfast.optimize(fast, masked_head=True, **ON)
    inputs = head_inputs(hf.BertForMaskedLM, "right")
    for model in (*copies, fast):
        cut, whole = (gradients(model, inputs, pieces) for pieces in (4, 1))
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)
    fast.save_pretrained(tmp_path)
    assert hf.BertForMaskedLM.from_pretrained(tmp_path).config.architectures == ["BertForMaskedLM"]
    for model in (*copies, fast):
        assert type(bertfast.restore(model)) is hf.BertForMaskedLM
        assert "_bertfast" not in model.__dict__


def test_without_such_a_head():
    stock = pair(hf.BertForQuestionAnswering)[0]
    with pytest.raises(
        bertfast.UnsupportedModelError, match=r"loss is a mean over labels.*BertForQuestionAnswering.*not changed"
    ):
        bertfast.optimize(stock, **ON)
    assert type(stock.bert) is hf.BertModel
