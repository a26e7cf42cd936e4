"""transformers' pipelines over optimised models: batched, padded, the same answers."""

from typing import Any

import pytest
import torch
from transformers import pipeline
from transformers_cases import FAMILIES_TRIED, TEXTS, outcomes, tokenizer_of, trio

from bertfast.testing import assert_within_budget

WHOLE = "fast, from ids to hidden states"
LABELS = {
    "id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"},
    "label2id": {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3},
}
NLI = {
    "id2label": {0: "entailment", 1: "neutral", 2: "contradiction"},
    "label2id": {"entailment": 0, "neutral": 1, "contradiction": 2},
}


def answers(task: str, inputs: Any, family: str, head: str, config: dict[str, Any], **options: Any) -> list[Any]:
    """What the pipeline says of an optimised model, a stock one, and one in float64; the first took the fast path throughout."""
    found = []
    for model in trio(family, head, **config):
        pipe = pipeline(task, model=model, tokenizer=tokenizer_of(family), device="cpu", batch_size=4)
        found.append(pipe(inputs, **options))
        if len(found) == 1:
            calls = outcomes(model, "Model")
            assert set(calls) == {WHOLE}, calls
    return found


def numbers(answer: Any) -> torch.Tensor:
    """All floats in an answer, in order."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return torch.cat([numbers(part) for part in answer] or [torch.empty(0, dtype=torch.float64)])
    return torch.tensor(
        [float(answer)] if isinstance(answer, float) or hasattr(answer, "dtype") else [], dtype=torch.float64
    )


def words(answer: Any) -> Any:
    """The answer without its floats: what is said, where, and in which order."""
    if isinstance(answer, dict):
        return {name: words(value) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [words(part) for part in answer]
    return None if isinstance(answer, float) or hasattr(answer, "dtype") else answer


def assert_same_answers(found: list[Any]) -> None:
    ours, stock, exact = found
    assert words(ours) == words(stock)
    scores = [numbers(answer).float() for answer in (ours, stock)]
    assert scores[0].numel() > 0
    assert_within_budget(*scores, numbers(exact))


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "pipeline: text-classification", "fast")
def test_text_classification(family):
    assert_same_answers(
        answers("text-classification", list(TEXTS), family, "ForSequenceClassification", {"num_labels": 3}, top_k=None)
    )


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.parametrize("strategy", ["none", "average"])
@pytest.mark.tool("transformers", "pipeline: token-classification, with aggregation", "fast")
def test_token_classification(family, strategy):
    found = answers(
        "token-classification", list(TEXTS), family, "ForTokenClassification", LABELS, aggregation_strategy=strategy
    )
    assert_same_answers(found)


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "AutoModelForQuestionAnswering, answers (5.x has no such pipeline)", "fast")
def test_question_answering(family):
    tokenizer = tokenizer_of(family)
    batch = tokenizer(["who lives in Paris ?"] * len(TEXTS), list(TEXTS), padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    found = []
    for model in trio(family, "ForQuestionAnswering"):
        with torch.inference_mode():
            outputs = model(**batch)
        found.append(torch.stack([outputs.start_logits[real], outputs.end_logits[real]]))
        best = outputs.start_logits.masked_fill(~real, -1e9).argmax(1)
        if len(found) == 1:
            assert set(outcomes(model, "Model")) == {WHOLE}
            first_of_fast = best
        assert torch.equal(best, first_of_fast)
    assert_within_budget(*found)


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "pipeline: fill-mask", "fast")
def test_fill_mask(family):
    texts = [f"{text} [MASK] ." for text in TEXTS]
    assert_same_answers(answers("fill-mask", texts, family, "ForMaskedLM", {}, top_k=3))


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "pipeline: zero-shot-classification", "fast")
def test_zero_shot_classification(family):
    found = answers(
        "zero-shot-classification",
        list(TEXTS),
        family,
        "ForSequenceClassification",
        NLI,
        candidate_labels=["sports", "news"],
    )
    assert_same_answers(found)


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "pipeline: feature-extraction", "fast")
def test_feature_extraction(family):
    """Positions of padding, which the pipeline returns too, are zeros under unpadding: real tokens are compared."""
    lengths = [len(ids) for ids in tokenizer_of(family)(list(TEXTS)).input_ids]
    found = answers("feature-extraction", list(TEXTS), family, "", {})
    rows = [
        torch.cat(
            [torch.tensor(features[0], dtype=dtype)[:length] for features, length in zip(said, lengths, strict=True)]
        )
        for said, dtype in zip(found, (torch.float32, torch.float32, torch.float64), strict=True)
    ]
    assert_within_budget(*rows)
