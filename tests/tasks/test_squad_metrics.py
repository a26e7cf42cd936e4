"""SQuAD's and JGLUE's answer scores against worked examples, and the search for a threshold against trying them all."""

import random

import pytest

from bertfast.tasks.squad_metrics import (
    answer_f1,
    best_threshold,
    evaluate_answers,
    exact_match,
    normalise_english,
    normalise_japanese,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Norman Conquest.", "norman conquest"),
        ("a cat, an owl and the dog", "cat owl and dog"),
        ("U.S.-led", "usled"),  # punctuation goes before words are parted, as in the official script
        ("The", ""),
        ("theatre", "theatre"),
        ("an\ta\nb", "b"),
        ("naïve «café»", "naïve «café»"),  # only ASCII punctuation
    ],
)
def test_english_normalisation(text, expected):
    assert normalise_english(text) == expected


def test_japanese_normalisation_is_jglues():
    assert normalise_japanese("小笠原諸島。。") == "小笠原諸島"
    assert normalise_japanese(" The 梅。 (雨) ") == "the 梅。 (雨)"  # articles and inner punctuation stay


@pytest.mark.parametrize(
    ("predicted", "gold", "f1"),
    [
        ("in the 10th century", "10th and 11th centuries", 2 * 1 / (3 + 4)),  # in 10th century
        ("the the France", "France", 1.0),
        ("b b c", "b c c", 2 * 2 / 6),  # words count as often as they occur
        ("", "", 1.0),
        ("", "France", 0.0),
        ("The", "", 1.0),  # nothing is left of it
        ("x", "y", 0.0),
    ],
)
def test_english_f1(predicted, gold, f1):
    assert answer_f1(predicted, gold) == pytest.approx(f1)


def test_japanese_f1_counts_characters():
    # 小笠原諸島 is 5 of the 10 characters of 小笠原諸島を除く日本
    assert answer_f1("小笠原諸島", "小笠原諸島を除く日本", "ja") == pytest.approx(2 * 5 / 15)
    assert exact_match("雨季。", "雨季", "ja") == 1.0
    assert answer_f1("雨季", "乾季", "ja") == pytest.approx(0.5)


def test_best_of_several_answers_and_both_splits():
    golds = {"a": ["Paris", "the city of Paris"], "b": [], "c": [], "d": ["x y"]}
    predictions = {"a": "city of Paris", "b": "", "c": "wrong", "d": "x"}
    got = evaluate_answers(golds, predictions)
    assert got["exact"] == pytest.approx(50.0)
    assert got["f1"] == pytest.approx(100 * (1 + 1 + 0 + 2 / 3) / 4)
    assert (got["HasAns_exact"], got["NoAns_exact"]) == (50.0, 50.0)
    assert got["HasAns_f1"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert (got["total"], got["HasAns_total"], got["NoAns_total"]) == (4, 2, 2)


def test_without_impossible_questions_there_is_no_split_and_a_missing_prediction_scores_nothing():
    got = evaluate_answers({"a": ["Paris"], "b": ["Rome"]}, {"a": "Paris"})
    assert got == {"exact": 50.0, "f1": 50.0, "total": 2}


def test_an_answer_that_is_punctuation_alone_counts_as_the_empty_one():
    # As in evaluate-v2.0.py: golds that normalise to nothing are left out, then [""] stands for them.
    assert evaluate_answers({"a": ["..."]}, {"a": ""})["exact"] == 100.0


def _at(golds, predictions, no_answer, threshold):
    applied = {key: "" if no_answer[key] > threshold else predictions[key] for key in golds}
    return evaluate_answers(golds, applied)


@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_the_best_of_all(seed):
    draw = random.Random(seed)
    golds = {str(i): [draw.choice("xy") + " z"] if draw.random() < 0.6 else [] for i in range(40)}
    predictions = {key: draw.choice("xy") + " z" for key in golds}
    no_answer = {key: draw.randrange(12) / 4 for key in golds}  # many equal scores
    got = best_threshold(golds, predictions, no_answer)
    for name in ("exact", "f1"):
        tried = [_at(golds, predictions, no_answer, t)[name] for t in [-1, *no_answer.values()]]
        assert got[f"best_{name}"] == pytest.approx(max(tried))
        assert _at(golds, predictions, no_answer, got[f"best_{name}_threshold"])[name] == pytest.approx(max(tried))


def test_threshold_below_all_where_nothing_can_be_answered():
    got = best_threshold({"a": [], "b": []}, {"a": "x", "b": "y"}, {"a": -3.0, "b": 2.0})
    assert got["best_f1"] == 100.0
    assert got["best_f1_threshold"] < -3.0
