"""BertForMultipleChoice against transformers': scores, losses and gradients; groups of choices of different sizes; files."""

import pytest
import torch
import transformers
from model_cases import VOCAB, assert_close, assert_same_gradients, gradients, ours, pair

from bertfast import models
from bertfast.testing import assert_within_budget

HEAD = "BertForMultipleChoice"
QUESTIONS, CHOICES, LONGEST = 3, 4, 10


def batch():
    """[B, C, S], right-padded, as transformers takes it."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(1, VOCAB, (QUESTIONS, CHOICES, LONGEST), generator=draw)
    lengths = torch.randint(3, LONGEST + 1, (QUESTIONS, CHOICES, 1), generator=draw)
    place = torch.arange(LONGEST)
    return {
        "input_ids": ids,
        "attention_mask": (place < lengths).long(),
        "token_type_ids": (place >= 2).long().expand_as(ids).contiguous(),
    }


def grouped(inputs):
    """The same packed, a sequence for each choice."""
    flat = {name: value.flatten(0, 1) for name, value in inputs.items()}
    real = flat["attention_mask"].bool()
    bounds = torch.nn.functional.pad(real.sum(1).cumsum(0), (1, 0)).int()
    return {
        "input_ids": flat["input_ids"][real],
        "token_type_ids": flat["token_type_ids"][real],
        "cu_seqlens": bounds,
        "max_seqlen": LONGEST,
    }


LABELS = torch.tensor([2, 0, 3])
GROUPS = torch.arange(QUESTIONS).repeat_interleave(CHOICES)
RIGHT = torch.nn.functional.one_hot(LABELS, CHOICES).flatten()


def test_outputs_losses_and_gradients_are_transformers():
    stock, mine = pair(HEAD, torch.float64)
    inputs = batch()
    want, got = stock(**inputs, labels=LABELS), mine(**inputs, labels=LABELS)
    packed = mine(**grouped(inputs), labels=RIGHT, groups=GROUPS)
    assert got.logits.shape == (QUESTIONS, CHOICES)
    assert packed.logits.shape == (QUESTIONS * CHOICES,)
    assert_close(got.logits, want.logits, "logits", 1e-12)
    assert_close(packed.logits.view_as(want.logits), want.logits, "packed logits", 1e-12)
    expected = gradients(stock, want.loss)
    for name, found in (("padded", got), ("packed", packed)):
        assert_close(found.loss, want.loss, f"{name} loss", 1e-12)
        assert_same_gradients(gradients(mine, found.loss), expected, 1e-10)


def test_float32_is_within_the_budget():
    (stock, mine), (oracle, _) = pair(HEAD), pair(HEAD, torch.float64)
    inputs = batch()
    calls = (mine(**grouped(inputs)).logits, stock(**inputs).logits.flatten(), oracle(**inputs).logits.flatten())
    assert_within_budget(*(each.detach() for each in calls))


def test_questions_of_different_sizes_are_judged_alone():
    """The loss of a batch is the mean of each question's own; what is no sequence changes nothing."""
    mine = ours(HEAD).double().eval()
    inputs = {name: value.flatten(0, 1)[:5] for name, value in batch().items()}
    groups, labels = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 0, 0, 0, 1])
    alone = [
        mine(**{name: value[None, rows] for name, value in inputs.items()}, labels=torch.tensor([right])).loss
        for rows, right in ((slice(0, 2), 0), (slice(2, 5), 2))
    ]
    assert_close(mine(**inputs, labels=labels, groups=groups).loss, sum(alone) / 2, "loss", 1e-12)
    packed = grouped({name: value[None] for name, value in inputs.items()})
    packed["cu_seqlens"] = torch.nn.functional.pad(packed["cu_seqlens"], (0, 3), value=int(packed["cu_seqlens"][-1]))
    filled = [torch.nn.functional.pad(each, (0, 3), value=-100) for each in (labels, groups)]
    assert_close(mine(**packed, labels=filled[0], groups=filled[1]).loss, sum(alone) / 2, "filled", 1e-12)


def test_no_label_is_a_loss_of_zero():
    mine = ours(HEAD).eval()
    loss = mine(**batch(), labels=torch.full((QUESTIONS,), -100)).loss
    assert loss.item() == 0.0
    loss.backward()
    assert not mine.classifier.weight.grad.any()


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_labels_and_groups_must_fit_the_input(groups):
    mine = ours(HEAD).eval()
    inputs = batch() if groups is not None else grouped(batch())
    with pytest.raises(ValueError, match="labels of choices need groups"):
        mine(**inputs, labels=LABELS, groups=groups)


def test_files_go_both_ways(tmp_path):
    mine = ours(HEAD).eval()
    mine.save_pretrained(tmp_path / "a")
    stock = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "a").eval()
    assert type(stock).__name__ == HEAD
    inputs = batch()
    assert_close(mine(**inputs).logits, stock(**inputs).logits, "logits", 2e-5)
    stock.save_pretrained(tmp_path / "b")
    again = models.BertForMultipleChoice.from_pretrained(tmp_path / "b")
    assert torch.equal(again(**inputs).logits, mine(**inputs).logits)
