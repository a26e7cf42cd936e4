"""The losses of fine-tuning: every kind of label of whole sequences, and answers in a text."""

import pytest
import torch
from model_cases import assert_close, assert_same_gradients, gradients, ours, packed, padded, pair


@pytest.mark.parametrize(
    ("problem", "labels_count", "labels"),
    [
        (None, 1, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        (None, 3, torch.tensor([0, 2, 1, 1])),
        (None, 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
        ("regression", 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
    ],
)
def test_problems_of_sequence_classification(problem, labels_count, labels):
    stock, ours = pair("BertForSequenceClassification", num_labels=labels_count)
    stock.config.problem_type = ours.config.problem_type = problem
    inputs = padded()
    want, got = stock(**inputs, labels=labels).loss, ours(**inputs, labels=labels).loss
    assert_close(got, want, "loss")
    assert_same_gradients(gradients(ours, got), gradients(stock, want))


def test_an_answer_outside_its_sequence_is_ignored():
    _, ours = pair("BertForQuestionAnswering")
    inputs = packed(padded())
    places = torch.tensor([3, 1, 2, 0])
    outside = torch.tensor([3, 3, -1, 500])  # the second sequence has 3 tokens
    got = ours(**inputs, start_positions=outside, end_positions=places)
    begin = torch.nn.functional.cross_entropy(got.start_logits[None, :12], torch.tensor([3]))
    ends = got.end_logits.split([12, 3, 7, 1])
    end = sum(torch.nn.functional.cross_entropy(e[None], p[None]) for e, p in zip(ends, places, strict=True)) / 4
    assert_close(got.loss, (begin + end) / 2, "loss")
    nowhere = torch.full((4,), -1)
    nothing = ours(**inputs, start_positions=nowhere, end_positions=nowhere).loss
    assert float(nothing) == 0.0
    assert not any(g.any() for g in gradients(ours, nothing).values())


def test_left_padding_counts_answers_in_the_row():
    _, ours = pair("BertForQuestionAnswering")
    inputs = padded("left")
    moved = torch.tensor([12 - n for n in (12, 3, 7, 1)])
    places = torch.tensor([3, 1, 2, 0])
    left = ours(**inputs, start_positions=places + moved, end_positions=places + moved).loss
    flat = packed(inputs)
    assert_close(left, ours(**flat, start_positions=places, end_positions=places).loss, "loss")


@pytest.mark.parametrize(
    ("labels_count", "labels"),
    [(1, torch.tensor([0.5, -1.0, 2.0, 0.0])), (3, torch.tensor([0, 2, 1, 1])), (3, torch.eye(4)[:, :3])],
)
def test_sequences_without_tokens_do_not_count(labels_count, labels):
    model = ours("BertForSequenceClassification", num_labels=labels_count)
    longer = torch.cat([labels, labels[:2]])
    want, got = model(**packed(padded()), labels=labels).loss, model(**packed(padded(), tail=5), labels=longer).loss
    assert_close(got, want, "loss")
    assert_same_gradients(gradients(model, got), gradients(model, want))


def test_ignored_labels_of_sequences():
    model = ours("BertForSequenceClassification", num_labels=3)
    got = model(**padded(), labels=torch.tensor([0, -100, 1, 1]))
    want = torch.nn.functional.cross_entropy(got.logits[[0, 2, 3]], torch.tensor([0, 1, 1]))
    assert_close(got.loss, want, "loss")
    nothing = model(**padded(), labels=torch.full((4,), -100)).loss
    assert float(nothing) == 0.0
    assert not any(g.any() for g in gradients(model, nothing).values())
