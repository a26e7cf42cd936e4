"""Single texts: the files that people have of spam and sentiment, English and Japanese, and SST-2 itself."""

import json
from pathlib import Path

import pytest

from bertfast.tasks.lines import BadLines
from bertfast.tasks.text_problem import TASK, TextOptions, TextProblem

SST2 = Path(__file__).parents[3] / "shared" / "data" / "sst2_dev.tsv"


def read(path, options=None, labelled=True):
    return [(e.first, e.second, e.label) for e in TASK.read(path, BadLines(), options or TextOptions(), labelled)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.tsv", "a film\tham\nbuy, now\tspam\n"),
        ("in.tsv", "text\tlabel\na film\tham\nbuy, now\tspam\n"),
        ("in.csv", 'label,text,from\nham,a film,me\nspam,"buy, now",you\n'),
        (
            "in.jsonl",
            "".join(json.dumps({"text": t, "label": w}) + "\n" for t, w in (("a film", "ham"), ("buy, now", "spam"))),
        ),
    ],
)
def test_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read(tmp_path / name) == [("a film", None, "ham"), ("buy, now", None, "spam")]


def test_columns_of_other_names(tmp_path):
    (tmp_path / "in.csv").write_text("v1,v2\nham,a film\n")
    assert read(tmp_path / "in.csv", TextOptions(fields=["v2", "v1"])) == [("a film", None, "ham")]
    assert read(tmp_path / "in.csv", TextOptions(fields=["v2"]), labelled=False) == [("a film", None, None)]


def test_japanese(tmp_path, japanese):
    (tmp_path / "train.tsv").write_text("私は学生。\t1\n東京。\t0\n", encoding="utf-8")
    problem = TextProblem(japanese, tmp_path / "train.tsv", None, TextOptions())
    assert japanese.tokens(problem.features[0].ids.tolist()) == ["[CLS]", "私", "は", "学生", "。", "[SEP]"]
    assert problem.settings() == {
        "task": "text", "max_length": 128, "sentences": 1, "fields": ["text", "label"]
    }  # fmt: skip


@pytest.mark.skipif(not SST2.is_file(), reason=f"needs real data, which is not here: {SST2}")
def test_sst2():
    examples = read(SST2)
    assert len(examples) == 872
    assert {label for _, _, label in examples} == {"0", "1"}
