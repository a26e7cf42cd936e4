"""SQuAD files, windows and answer positions; spans cut from logits against an exhaustive search."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bertfast.tasks.features import window_bounds
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.qa import Answer, QAExample, answer_span, qa_features, read_squad
from bertfast.tasks.qa_answers import Prediction, nbest_json, predict_answers

CONTEXT = "Paris is the capital of France. The film is very, very good."


def squad(path, questions, context=CONTEXT):
    content = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def question(name="q", answers=((24, "France"),), **more):
    given = [{"text": text, "answer_start": start} for start, text in answers]
    return {"id": name, "question": "What is it?", "answers": given, **more}


def test_reading(tmp_path):
    path = squad(tmp_path / "a.json", [question("a"), question("b", (), is_impossible=True)])
    first, second = read_squad(path, BadLines())
    assert (first.id, first.answers, first.placed) == ("a", ("France",), (Answer("France", 24),))
    assert (second.answers, second.impossible, second.article) == ((), True, "t")


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (
            [question("q1", [(23, "France")])],
            "question q1: an answer that is not at its answer_start: 'France', there is ' Franc'",
        ),
        ([question("q1", [(-6, "good.")])], "question q1: an answer that is not"),
        ([question("q1"), question("q1")], "question q1: an id that another question has"),
        ([{"id": "q1", "question": " ", "answers": []}], "question q1: no text of the question: 'question' is empty"),
        ([{"id": "q1", "question": "a\0b", "answers": []}], "question q1: NUL character: at character 1"),
    ],
)
def test_bad_questions(tmp_path, questions, message):
    path = squad(tmp_path / "a.json", [*questions, question("good")])
    with pytest.raises(DataError) as error:
        read_squad(path, BadLines())
    assert message in str(error.value)
    bad = BadLines(skip=True)
    assert read_squad(path, bad)[-1].id == "good"
    assert message in bad.summary()


def test_a_misplaced_answer_is_scored_and_not_learnt(tmp_path, english):
    bad = BadLines(skip=True)
    examples = read_squad(squad(tmp_path / "a.json", [question("a", [(0, "France")])]), bad)
    assert (examples[0].answers, examples[0].placed) == (("France",), ())
    made = qa_features(examples, english, max_length=40, max_question=8, training=True)
    assert (made.windows, made.unanswerable) == ([], 1)
    assert len(qa_features(examples, english, max_length=40, max_question=8).windows) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"data": [{}]}', '{"data": []}', "\\xff"])
def test_unusable_files(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(
        DataError, match=r"a\.json: (no JSON|not SQuAD's format \(it is|article 1: no list 'paragraphs'|no usable)"
    ):
        read_squad(path, BadLines())


@pytest.mark.parametrize(
    ("pieces", "room", "stride", "expected"),
    [
        (5, 8, 3, [(0, 5)]),
        (8, 8, 3, [(0, 8)]),
        (9, 8, 3, [(0, 8), (3, 9)]),
        (20, 8, 8, [(0, 8), (8, 16), (16, 20)]),
        (20, 8, 100, [(0, 8), (8, 16), (16, 20)]),  # a stride beyond the window would skip text
        (0, 8, 3, [(0, 0)]),
    ],
)
def test_window_bounds(pieces, room, stride, expected):
    assert window_bounds(pieces, room, stride) == expected


def test_windows_are_those_of_transformers(tmp_path, english):
    transformers = pytest.importorskip("transformers")
    from task_cases import tokenizer_folder

    oracle = transformers.AutoTokenizer.from_pretrained(tokenizer_folder(tmp_path / "t"))
    examples = read_squad(squad(tmp_path / "a.json", [question()]), BadLines())
    asked = len(english.encode("What is it?").ids)
    length, stride = asked + 3 + 12, 5
    made = qa_features(examples, english, max_length=length, stride=stride, max_question=asked, training=True)
    expected = oracle(
        "What is it?", CONTEXT, truncation="only_second", max_length=length, stride=12 - stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert [w.feature.ids.tolist() for w in made.windows] == expected["input_ids"]
    assert [w.feature.type_ids.tolist() for w in made.windows] == expected["token_type_ids"]
    assert [w.offsets for w in made.windows] == [o[asked + 2 : -1] for o in expected["offset_mapping"]]
    inside = 0
    for window in made.windows:
        start, end = (window.feature.labels[f"{name}_positions"] for name in ("start", "end"))
        shown = [CONTEXT[a:b] for a, b in window.offsets]
        if "France" in "".join(shown):
            first, last = (window.offsets[p - window.prefix] for p in (start, end))
            assert CONTEXT[first[0] : last[1]] == "France"
            inside += 1
        else:
            assert (start, end) == (0, 0)
    assert inside >= 2


def test_question_is_cut_and_lengths_are_checked(english):
    example = QAExample("q", "what " * 20, CONTEXT)
    made = qa_features([example], english, max_length=40, max_question=6)
    assert made.questions_cut == 1
    assert made.windows[0].prefix == 6 + 2
    for lengths in ({"max_length": 20, "max_question": 16}, {"stride": 0}):
        with pytest.raises(ValueError, match="do not fit"):
            qa_features([example], english, **lengths)


def test_spans_of_answers_within_and_between_pieces():
    offsets = [(0, 4), (4, 6), (7, 9)]
    assert answer_span(offsets, Answer("xx", 1)) == (0, 0)
    assert answer_span(offsets, Answer("xxx", 3)) == (0, 1)
    assert answer_span(offsets, Answer("xxx", 6)) == (2, 2)
    assert answer_span(offsets, Answer(" ", 6)) is None


def test_jsquad_context_keeps_its_characters_and_sep_stays_text(tmp_path, japanese):
    context = "梅雨 [SEP] 梅雨は北海道にない。"
    path = squad(tmp_path / "a.json", [question("q", [(context.index("北"), "北海道")])], context)
    examples = read_squad(path, BadLines())
    made = qa_features(examples, japanese, max_length=60, max_question=16, training=True)
    (window,) = made.windows
    assert window.feature.ids.tolist().count(japanese.sep_id) == 2  # after the question and after the context
    start, end = (window.feature.labels[f"{name}_positions"] - window.prefix for name in ("start", "end"))
    assert context[window.offsets[start][0] : window.offsets[end][1]] == "北海道"
    assert "".join(context[a:b] for a, b in window.offsets) == context.replace(" ", "")


def exhaustive(examples, windows, starts, ends, max_answer):
    best = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        for i in range(len(window.offsets)):
            for j in range(i, min(i + max_answer, len(window.offsets))):
                text = examples[window.example].context[window.offsets[i][0] : window.offsets[j][1]]
                score = float(start[window.prefix + i]) + float(end[window.prefix + j])
                key = (examples[window.example].id, text)
                best[key] = max(score, best.get(key, -math.inf))
    return best


def test_best_answers_over_all_windows(english):
    examples = [QAExample("a", "what?", CONTEXT), QAExample("b", "who?", CONTEXT[::-1])]
    windows = qa_features(examples, english, max_length=26, stride=4, max_question=8).windows
    random = np.random.default_rng(0)
    starts, ends = ([random.normal(size=len(w.feature)).astype(np.float32) for w in windows] for _ in range(2))
    got = predict_answers(examples, windows, starts, ends, n_best=400, max_answer=4)
    expected = exhaustive(examples, windows, starts, ends, 4)
    for example, prediction in zip(examples, got, strict=True):
        order = sorted((s for (name, _), s in expected.items() if name == example.id), reverse=True)
        assert [c.score for c in prediction.best] == pytest.approx(order)
        for c in prediction.best:
            assert example.context[c.start : c.end] == c.text
            assert expected[example.id, c.text] == pytest.approx(c.score)
        assert sum(c.probability for c in prediction.best) == pytest.approx(1.0)
        null = min(
            float(s[0] + e[0]) for w, s, e in zip(windows, starts, ends, strict=True) if examples[w.example] is example
        )
        assert prediction.null_score == pytest.approx(null)


def test_threshold_decides_on_the_empty_answer(english):
    examples = [QAExample("a", "what?", CONTEXT)]
    (window,) = qa_features(examples, english, max_length=60, max_question=8).windows
    start = np.zeros(len(window.feature), np.float32)
    start[0], start[window.prefix] = 3.0, 1.0
    (got,) = predict_answers(examples, [window], [start], [start])
    assert got.text.startswith("P")
    assert got.null_margin == pytest.approx(6.0 - got.best[0].score)
    assert got.answer(got.null_margin) == got.answer(None) == got.text
    assert got.answer(got.null_margin - 0.01) == ""
    assert Prediction("x").answer(0.0) == Prediction("x").text == ""


def test_broken_logits_name_the_question(english):
    examples = [QAExample("a", "what?", CONTEXT)]
    (window,) = qa_features(examples, english, max_length=60, max_question=8).windows
    bad = np.full(len(window.feature), np.nan, np.float32)
    with pytest.raises(ValueError, match="question a: logits that are not finite"):
        predict_answers(examples, [window], [bad], [bad])


@pytest.mark.parametrize(("name", "language"), [("squad_v2_sample.json", "en"), ("jsquad_v1.3_valid.json", "ja")])
def test_every_answer_of_real_data_comes_back_from_its_positions(name, language, request):
    path = Path(__file__).parents[2].parent / "shared" / "data" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    tokenizer = request.getfixturevalue({"en": "english", "ja": "japanese"}[language])
    bad = BadLines()  # refuses: no answer of either file is out of place
    examples = [e for e in read_squad(path, bad) if e.placed][:300]
    made = qa_features(examples, tokenizer, max_length=200, max_question=32, training=True)
    assert made.unanswerable == 0
    seen = set()
    for window in made.windows:
        start, end = (window.feature.labels[f"{side}_positions"] - window.prefix for side in ("start", "end"))
        if start >= 0:
            example = examples[window.example]
            text = example.context[window.offsets[start][0] : window.offsets[end][1]]
            assert example.placed[0].text in text
            seen.add(window.example)
    assert len(seen) == len(examples)


def test_an_empty_context_has_no_answer_and_is_plain_json(english):
    examples = [QAExample("a", "what?", " ")]
    windows = qa_features(examples, english, max_length=30, max_question=8).windows
    logits = [np.zeros(len(window.feature), np.float32) for window in windows]
    (got,) = predict_answers(examples, windows, logits, logits)
    assert (got.text, got.answer(0.0)) == ("", "")
    json.dumps(nbest_json(got), allow_nan=False)
