"""Tagged sentences from CoNLL and JSONL, windows that own each word once, and entities back in characters."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.token import discover_tags, from_words, read_tokens
from bertfast.tasks.token_features import (
    IGNORED,
    marked_entities,
    predict_tags,
    split_words,
    token_features,
    unsaid_note,
)
from bertfast.tasks.token_problem import TokenOptions, TokenProblem


def write(path, text):
    path.write_text(text if isinstance(text, str) else "\n".join(map(json.dumps, text)), encoding="utf-8")
    return path


def seen(examples):
    return [(e.words, e.tags) for e in examples]


TWO = [(("Paris", "is", "good"), ("B-LOC", "O", "O")), (("Who",), ("O",))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.conll", "-DOCSTART- -X- O\n\nParis NNP B-LOC\nis VBZ O\ngood JJ O\n\n\nWho WP O"),
        ("a.tsv", "Paris\tB-LOC\nis\tO\ngood\tO\n\nWho\tO\n"),
        (
            "a.jsonl",
            [{"tokens": ["Paris", "is", "good"], "tags": ["B-LOC", "O", "O"]}, {"tokens": ["Who"], "tags": ["O"]}],
        ),
    ],
)
def test_formats(tmp_path, name, text):
    examples = read_tokens(write(tmp_path / name, text), BadLines())
    assert seen(examples) == TWO
    assert [examples[0].text[a:b] for a, b in examples[0].spans] == ["Paris", "is", "good"]
    unlabelled = read_tokens(tmp_path / name, BadLines(), labelled=False)
    assert seen(unlabelled) == [(words, None) for words, _ in TWO]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.conll",
            "x O\nParis B-LOC\nis\n\nWho O\n",
            "a.conll:3: another number of columns: 1 instead of the 2 of the first line",
        ),
        ("a.conll", "x\tO\n\tO\n\nWho\tO\n", "a.conll:2: no word before the tag"),
        ("a.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}, {"tokens": ["Who"], "tags": ["O"]}], "2 tokens and 1 tags"),
        ("a.jsonl", [{"tokens": ["a"], "tags": ["PER"]}, {"tokens": ["Who"], "tags": ["O"]}], "'PER' is neither"),
        (
            "a.jsonl",
            [{"words": ["a"]}, {"tokens": ["Who"], "tags": ["O"]}],
            "a.jsonl:1: text that is no example: there is no 'text'; a line is {",
        ),
        (
            "a.jsonl",
            [{"tokens": 3}, {"tokens": ["Who"], "tags": ["O"]}],
            "no example: 'tokens' is a number (3); a line is {",
        ),
        ("a.jsonl", [[1], {"tokens": ["Who"], "tags": ["O"]}], "a.jsonl:1: JSON that is no object: a list"),
        ("a.jsonl", '{"tokens": ["Who"], "tags": ["O"]}\n{', "a.jsonl:2: text that is no JSON"),
        (
            "a.jsonl",
            [{"tokens": ["\ud800"], "tags": ["O"]}, {"tokens": ["Who"], "tags": ["O"]}],
            "a.jsonl:1: invalid UTF-8",
        ),
        ("a.conll", "a\0\tO\n\nWho\tO\n", "a.conll:1: NUL character"),
    ],
)
def test_bad_lines_are_refused_or_left_out_with_their_sentence(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        read_tokens(path, BadLines())
    assert message in str(error.value)
    bad = BadLines(skip=True)
    assert seen(read_tokens(path, bad)) == [(("Who",), ("O",))]
    assert bad.counts.total() == 1


@pytest.mark.parametrize(
    "entity",
    [
        {"start": 0, "end": 99, "label": "X"},
        {"start": 2, "end": 2, "label": "X"},
        {"start": -1, "end": 2, "label": "X"},
    ],
)
def test_entities_outside_the_text(tmp_path, entity):
    with pytest.raises(DataError, match="not within the text"):
        read_tokens(write(tmp_path / "a.jsonl", [{"text": "Paris", "entities": [entity]}]), BadLines())


def test_overlapping_entities(tmp_path):
    marks = [{"start": 0, "end": 3, "label": "X"}, {"start": 2, "end": 5, "label": "Y"}]
    with pytest.raises(DataError, match="overlap"):
        read_tokens(write(tmp_path / "a.jsonl", [{"text": "Paris", "entities": marks}]), BadLines())


def test_unusable_files(tmp_path):
    for name, message in (("a.xml", "files end in"), ("a.conll", "the file is empty")):
        with pytest.raises(DataError, match=message):
            read_tokens(write(tmp_path / name, "\n"), BadLines())


def test_text_with_entities_becomes_words_and_back(tmp_path, english):
    text = "In [SEP] Paris-France, who plays?"
    marks = [{"start": 9, "end": 21, "label": "LOC"}, {"start": 27, "end": 32, "label": "ACT"}]
    path = write(tmp_path / "a.jsonl", [{"text": text, "entities": marks}])
    (example,) = split_words(read_tokens(path, BadLines()), english)
    assert unsaid_note([example]) == ""
    assert " ".join(example.words) == "In [ SEP ] Paris - France , who plays ?"
    assert example.tags == ("O", "O", "O", "O", "B-LOC", "I-LOC", "I-LOC", "O", "O", "B-ACT", "O")
    again = marked_entities(example, example.tags)
    assert again == [{**mark, "text": text[mark["start"] : mark["end"]]} for mark in marks]


def test_entities_that_part_a_word_are_left_out_and_named(tmp_path, english):
    marks = [(0, 5, "LOC"), (6, 10, "V"), (10, 11, "E")]  # Paris, and both halves of one word
    entities = [{"start": start, "end": end, "label": label} for start, end, label in marks]
    path = write(tmp_path / "a.jsonl", [{"text": "Paris plays", "entities": entities}])
    (example,) = split_words(read_tokens(path, BadLines()), english)
    assert example.tags == ("B-LOC", "O")
    assert [mark.label for mark in example.unsaid] == ["V", "E"]
    note = unsaid_note([example])
    assert "2 of 3 entities begin or end within a word" in note
    assert "a.jsonl:1: 'play' at 6..10; " in note


def test_what_no_tags_can_say_is_missed_in_the_score_and_unknown_tags_are_noted(tmp_path, english):
    line = {"text": "Paris plays", "entities": [{"start": 0, "end": 5, "label": "LOC"}]}
    half = {"text": "Paris plays", "entities": [*line["entities"], {"start": 6, "end": 10, "label": "V"}]}
    other = {"tokens": ["Who"], "tags": ["B-PER"]}
    train, dev = write(tmp_path / "t.jsonl", [line]), write(tmp_path / "d.jsonl", [half, other])
    problem = TokenProblem(english, train, dev, TokenOptions())
    assert problem.read[0].endswith("t.jsonl: 1 sentences, 2 words, 1 windows; entities: LOC 1")
    (unsaid, unknown) = problem.notes
    assert "d.jsonl: 1 of 2 entities begin or end within a word" in unsaid
    assert unknown.endswith("1 words have tags that the training file has not, and can only be wrong: B-PER 1")

    class Outside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, **_):
            logits = torch.zeros(len(input_ids), len(problem.labels))
            logits[1, problem.labels.index("B-LOC")] = 1.0  # the first word, and O everywhere else
            logits[2:, problem.labels.index("O")] = 1.0
            return SimpleNamespace(logits=logits)

    scores = problem.evaluate(Outside()).metrics
    assert (scores["entities"], scores["precision"], scores["f1_V"]) == (3, 1.0, 0.0)
    assert scores["recall"] == pytest.approx(1 / 3)


def test_japanese_text(tmp_path, japanese):
    text = "私は東京に住んでいます"
    path = write(tmp_path / "a.jsonl", [{"text": text, "entities": [{"start": 2, "end": 4, "label": "LOC"}]}])
    (example,) = split_words(read_tokens(path, BadLines()), japanese)
    assert "".join(example.words) == text
    assert dict(zip(example.words, example.tags, strict=True))["東京"] == "B-LOC"
    (window,) = token_features([example], japanese, tags=discover_tags([example]))
    assert len(window.owned) == len(example.words)
    assert marked_entities(example, example.tags)[0]["text"] == "東京"


def test_discovered_tags():
    assert discover_tags([from_words(["a", "b"], ["B-X", "S-Y"], "")]) == ["B-X", "I-X", "O", "S-Y"]


def test_first_piece_has_the_label(english):
    example = from_words(["Paris", "xyz", "is"], ["B-LOC", "I-LOC", "O"], "")
    (window,) = token_features([example], english, tags=["B-LOC", "I-LOC", "O"])
    assert english.tokens(window.feature.ids) == ["[CLS]", "paris", "x", "##y", "##z", "is", "[SEP]"]
    assert window.feature.labels["labels"].tolist() == [IGNORED, 0, 1, IGNORED, IGNORED, 2, IGNORED]
    with pytest.raises(DataError, match="the tag B-LOC is none of O"):
        token_features([example], english, tags=["O"])


@pytest.mark.parametrize("stride", [2, 5, 100])
def test_a_long_sentence_is_read_whole_and_each_word_once(english, stride):
    words = ["xyz", "paris", "is"] * 12
    tags = [f"B-{i % 7}" for i in range(len(words))]
    example = from_words(words, tags, "")
    names = sorted(set(tags))
    windows = token_features([example], english, max_length=12, stride=stride, tags=names)
    assert all(len(window.feature) <= 12 for window in windows)
    owned = [word for window in windows for word, _ in window.owned]
    assert sorted(owned) == list(range(len(words)))
    assert sum((w.feature.labels["labels"] != IGNORED).sum() for w in windows) == len(words)
    perfect = [np.maximum(w.feature.labels["labels"], 0) for w in windows]
    assert predict_tags([example], windows, perfect, names) == [tags]


def test_a_word_without_pieces_is_outside(english):
    example = from_words(["\u200b", "is"], None, "")  # removed by the normaliser
    windows = token_features([example], english)
    assert predict_tags([example], windows, [np.zeros(3, int)], ["B-X", "O"]) == [["O", "B-X"]]


def test_lengths_are_checked(english):
    with pytest.raises(ValueError, match="at least 3 and 1"):
        token_features([], english, max_length=2)
