"""Entities and their F1 on cases counted by hand, after conlleval."""

import pytest

from bertfast.tasks.entities import entities, entity_scores, split_tag


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O B-LOC", [("PER", 1, 3), ("LOC", 4, 5)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),  # another type begins another entity
        ("O I-PER I-PER", [("PER", 1, 3)]),  # conlleval: an I after O begins one (IOB1 is read as well)
        ("B-PER I-PER E-PER S-LOC", [("PER", 0, 3), ("LOC", 3, 4)]),
        ("B-PER L-PER U-PER", [("PER", 0, 2), ("PER", 2, 3)]),
        ("S-PER I-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("E-PER E-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B I O B", [("", 0, 2), ("", 3, 4)]),
        ("O O", []),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("", []),
    ],
)
def test_entities(tags, expected):
    assert entities(tags.split()) == expected


@pytest.mark.parametrize("tag", ["X-PER", "PER", "", "b-PER"])
def test_unknown_tags_are_refused(tag):
    with pytest.raises(ValueError, match="neither O nor"):
        split_tag(tag)


def test_scores_counted_by_hand():
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "B-LOC"]]
    got = entity_scores(predicted, expected)
    # Right: PER, the second sentence's ORG. Predicted 4, expected 3.
    assert got["precision"] == pytest.approx(2 / 4)
    assert got["recall"] == pytest.approx(2 / 3)
    assert got["f1"] == pytest.approx(4 / 7)
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert (got["f1_PER"], got["f1_LOC"], got["f1_ORG"]) == (1.0, 0.0, pytest.approx(2 / 3))
    assert got["entities"] == 3


def test_entities_that_no_tags_can_say_are_missed():
    got = entity_scores([["B-PER"]], [["B-PER"]], missed=["PER", "LOC"])
    assert (got["precision"], got["recall"], got["entities"]) == (1.0, pytest.approx(1 / 3), 3)
    assert (got["f1_PER"], got["f1_LOC"]) == (pytest.approx(2 / 3), 0.0)


def test_a_wrong_boundary_is_no_entity():
    got = entity_scores([["B-PER", "O", "O"]], [["B-PER", "I-PER", "O"]])
    assert got["f1"] == 0.0
    assert got["accuracy"] == pytest.approx(2 / 3)


def test_sentences_without_entities_score_nothing_and_do_not_divide_by_zero():
    got = entity_scores([["O"]], [["O"]])
    assert (got["precision"], got["recall"], got["f1"], got["accuracy"]) == (0.0, 0.0, 0.0, 1.0)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="sentence 0 has 2 tokens and 1"):
        entity_scores([["O"]], [["O", "O"]])
