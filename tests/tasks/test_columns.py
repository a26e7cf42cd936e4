"""Columns by name and cells in quotes: what was named is there or refused, and a quote that goes wrong takes one line with it."""

import csv
import gzip

import pytest

from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.pair import label_notes, read_pairs

NLI = ("premise", "hypothesis", "label")


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def seen(path, bad=None, **options):
    return [(e.first, e.second, e.label) for e in read_pairs(path, BadLines() if bad is None else bad, **options)]


FILES = {
    "a.csv": "premise,hypotheses,label\np,h,x\n",
    "a.tsv": "premise\thypotheses\tlabel\np\th\tx\n",
    "a.jsonl": '{"premise": "p", "hypotheses": "h", "label": "x"}\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("skip", [False, True])
def test_a_column_that_was_named_and_is_not_there_is_refused(tmp_path, name, skip):
    path = write(tmp_path / name, FILES[name])
    message = r"no (column )?'hypothesis'; it has premise, hypotheses, label; did you mean 'hypotheses'\?"
    with pytest.raises(DataError, match=message):
        read_pairs(path, BadLines(skip), fields=NLI)
    assert seen(path, fields=("premise", "hypotheses", "label")) == [("p", "h", "x")]
    assert seen(path, fields=NLI, sentences=1) == [("p", None, "x")], "the second is not read"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_the_usual_second_sentence_may_be_absent_unless_it_was_named(tmp_path, name):
    path = write(tmp_path / name, FILES[name].replace("premise", "sentence1").replace("hypotheses", "other"))
    usual = ("sentence1", "sentence2", "label")
    assert seen(path, fields=usual) == [("p", None, "x")]
    for demand in ({"given": True}, {"sentences": 2}):
        with pytest.raises(DataError, match="'sentence2'"):
            read_pairs(path, BadLines(), fields=usual, **demand)


def test_columns_of_a_tsv_by_name_in_any_order(tmp_path):
    path = write(tmp_path / "a.tsv", "label\tindex\thypothesis\tpremise\nx\t1\th\tp\ny\t2\th\tq\n")
    assert seen(path, fields=NLI) == [("p", "h", "x"), ("q", "h", "y")]
    assert seen(path, fields=("premise",), labelled=False) == [("p", None, None), ("q", None, None)]


def test_a_tsv_without_the_names_is_read_by_position_and_says_so(tmp_path):
    bad = BadLines()
    assert seen(write(tmp_path / "a.tsv", "p\th\tx\n"), bad, fields=NLI) == [("p", "h", "x")]
    assert "a.tsv:1 has no header with premise, hypothesis, label" in bad.remarks[0]
    with pytest.raises(DataError, match="1 columns"):
        read_pairs(write(tmp_path / "b.tsv", "p\n"), BadLines(), fields=NLI)


def test_the_usual_names_in_a_tsv(tmp_path):
    bad = BadLines()
    path = write(tmp_path / "a.tsv", "index\tsentence1\tsentence2\tlabel\n1\tp\th\tx\n")
    assert seen(path, bad) == [("p", "h", "x")]
    assert "columns that are not read: index" in bad.remarks[0]
    assert seen(write(tmp_path / "b.tsv", "label\tsentence1\nx\tp\n")) == [("p", None, "x")]
    assert seen(write(tmp_path / "c.tsv", "sentence1\tother\tlabel\np\th\tx\n")) == [("p", "h", "x")], "by position"


def rows(count):
    return "".join(f'"row {i}, good",x\n' if i % 7 == 0 else f"row {i},y\n" for i in range(count))


@pytest.mark.parametrize("place", [0, 1, 1600, 3199])
def test_a_quote_that_stays_open_takes_one_line_with_it(tmp_path, place):
    lines = rows(3200).splitlines(keepends=True)
    lines.insert(place, '"open,x\n')
    path = write(tmp_path / "a.csv", "sentence1,label\n" + "".join(lines))
    with pytest.raises(DataError, match=rf"a\.csv:{place + 2}: a quote that is never closed: it opens here"):
        read_pairs(path, BadLines())
    bad = BadLines(skip=True)
    read = seen(path, bad)
    assert [first for first, _, _ in read] == [f"row {i}, good" if i % 7 == 0 else f"row {i}" for i in range(3200)]
    assert bad.counts == {"a quote that is never closed": 1}
    assert f"a.csv:{place + 2}" in bad.summary()


def test_the_line_is_named_in_which_the_quote_opens(tmp_path):
    path = write(tmp_path / "a.csv", 'sentence1,label\n"a\nb","open\nc,x\nd,y\n')
    bad = BadLines(skip=True)
    assert seen(path, bad) == [("c", None, "x"), ("d", None, "y")]
    assert "a.csv:3: a quote that is never closed" in bad.summary()
    assert "its row begins in line 2 and is left out with it" in bad.summary()


def test_quotes_as_csv_has_them(tmp_path):
    text = 'sentence1,label\n"a ""b"" c",x\nit\'s 5" wide,y\n"two\nlines",x\n"",y\n'
    bad = BadLines(skip=True)
    read = seen(write(tmp_path / "a.csv", text), bad)
    assert read == [('a "b" c', None, "x"), ("it's 5\" wide", None, "y"), ("two\nlines", None, "x")]
    assert bad.counts == {"no text in sentence1": 1}
    assert "a.csv:6: no text in sentence1" in bad.summary(), "lines are counted as an editor does"
    assert "lines 4 to 5" in bad.remarks[0]


def test_a_long_cell_is_read_and_the_limit_of_the_process_stays(tmp_path):
    limit = csv.field_size_limit()
    text = "word " * 100_000
    assert seen(write(tmp_path / "a.csv", f"sentence1,label\n{text},x\n"))[0][0] == text
    assert csv.field_size_limit() == limit


def test_gzip_and_capitals(tmp_path):
    assert seen(write(tmp_path / "A.TSV.GZ", gzip.compress(b"a\tx\n"))) == [("a", None, "x")]


def notes(tmp_path, labels, header=False):
    path = write(tmp_path / "l.tsv", "".join(f"s\t{label}\n" for label in labels))
    return " ".join(label_notes(read_pairs(path, BadLines()), header))


def test_labels_that_make_one_doubt(tmp_path):
    assert notes(tmp_path, ["0", "1", "2"] * 3) == ""
    assert "16 different numbers from 0 to 5" in notes(tmp_path, [f"{i / 3:.2f}" for i in range(16)])
    assert "give --regression" in notes(tmp_path, map(str, range(11)))
    assert "Good and good" in notes(tmp_path, ["Good", "good", "bad"])
    assert "l.tsv:1 may be a header" in notes(tmp_path, ["gold", "x", "y", "x", "y"])
    assert notes(tmp_path, ["gold", "x", "y", "x", "y"], header=True) == ""
