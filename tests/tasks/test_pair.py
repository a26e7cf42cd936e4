"""Readers of single sentences and pairs, their labels, and features against transformers' tokenizer."""

import json

import pytest
from task_cases import tokenizer_folder

from bertfast.tasks.features import longest_first
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.pair import discover_labels, field_names, pair_features, read_pairs, with_targets


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def seen(examples):
    return [(e.first, e.second, e.label) for e in examples]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.tsv", "good film\t1\nbad\t0\n", [("good film", None, "1"), ("bad", None, "0")]),
        ("a.tsv", "a\tb\tyes\r\nc\td\tno", [("a", "b", "yes"), ("c", "d", "no")]),
        ("a.tsv", 'sentence\tlabel\nit\'s "so"\t1\n', [('it\'s "so"', None, "1")]),  # a header, and no quoting
        ("a.tsv", "Sentence\tLABEL\na\t1\n", [("a", None, "1")]),
        ("a.csv", 'label,sentence1,sentence2\nx,"a, b",c\n', [("a, b", "c", "x")]),
        (
            "a.jsonl",
            '{"sentence1": "a", "label": 1}\n\n{"sentence1": "b", "label": 0}\n',
            [("a", None, "1"), ("b", None, "0")],
        ),
        ("a.jsonl", '\ufeff{"sentence1": "あ", "sentence2": "い", "label": "含意"}', [("あ", "い", "含意")]),
    ],
)
def test_formats(tmp_path, name, text, expected):
    assert seen(read_pairs(write(tmp_path / name, text), BadLines())) == expected


def test_fields_and_a_sentence_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"premise": "p", "hypothesis": "h", "gold": "x"}))
    fields = ("premise", "hypothesis", "gold")
    assert seen(read_pairs(path, BadLines(), fields=fields)) == [("p", "h", "x")]
    assert seen(read_pairs(path, BadLines(), fields=fields, sentences=1)) == [("p", None, "x")]
    assert seen(read_pairs(path, BadLines(), fields=("premise", "gold"))) == [("p", None, "x")]
    assert seen(read_pairs(path, BadLines(), fields=("hypothesis",), labelled=False)) == [("h", None, None)]
    both = read_pairs(path, BadLines(), fields=("premise", "hypothesis"), labelled=False, sentences=2)
    assert seen(both) == [("p", "h", None)]


@pytest.mark.parametrize(
    ("fields", "options"),
    [(("a",), {}), (("a", ""), {}), (("a", "a"), {}), (("a", "b"), {"sentences": 2}), (("a", "b", "c", "d"), {})],
)
def test_fields_that_do_not_name_sentences_and_label(fields, options):
    with pytest.raises(DataError, match="each once"):
        field_names(fields, **options)


def test_without_labels(tmp_path):
    path = write(tmp_path / "a.tsv", "one\ntwo\n")
    assert seen(read_pairs(path, BadLines(), labelled=False)) == [("one", None, None), ("two", None, None)]
    bad = BadLines()
    path = write(tmp_path / "c.tsv", "sentence\none\n")
    assert seen(read_pairs(path, bad, labelled=False)) == [("one", None, None)]
    assert bad.header == f"{path}:1"
    path = write(tmp_path / "b.tsv", "one\ttwo\n")
    assert seen(read_pairs(path, BadLines(), labelled=False, sentences=2)) == [("one", "two", None)]


BAD = [
    ("a.tsv", b"a\t1\nb\n", "a.tsv:2: another number of columns: 1 instead of 2"),
    ("a.tsv", b"a\t1\n\xff\t1\n", "a.tsv:2: bytes that are no UTF-8: 0xff at byte 0"),
    ("a.tsv", b"a\t1\n \t1\n", "a.tsv:2: no text in sentence1"),
    ("a.tsv", b"a\t1\nb\t \n", "a.tsv:2: no label"),
    ("a.jsonl", b'{"sentence1": "a", "label": 1}\n{"sentence1"', "a.jsonl:2: text that is no JSON"),
    ("a.jsonl", b'{"sentence1": "a", "label": 1}\n[1]\n', "a.jsonl:2: JSON that is no object: a list"),
    ("a.jsonl", b'{"sentence1": "a", "label": 1}\n{"sentence1": "b"}\n', "a.jsonl:2: no label"),
    (
        "a.jsonl",
        b'{"sentence1": "a", "label": 1}\n{"sentence1": "\\ud800", "label": 1}',
        "a.jsonl:2: invalid UTF-8: half of",
    ),
    ("a.tsv", b"a\t1\nb\0\t1\n", "a.tsv:2: NUL character"),
    ("a.csv", b"sentence1,label\na,1\nb,1,2\n", "a.csv:3: another number of columns"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_bad_lines_are_refused_or_left_out_and_named(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        read_pairs(path, BadLines())
    assert message in str(error.value)
    bad = BadLines(skip=True)
    assert seen(read_pairs(path, bad)) == [("a", None, "1")]
    assert message in bad.summary()
    assert bad.counts.total() == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "", "file is empty"),
        ("a.tsv", "Label\tsentence\n1\ta\n", "a.tsv:1: a header with the label first"),
        ("a.tsv", "a\tb\tc\td\n", "4 columns"),
        ("a.xml", "x", "files end in"),
        ("a.csv", "text,label\na,1\n", "no column 'sentence1'"),
        (
            "a.jsonl",
            '{"sentence1": "a", "label": 1}\n{"sentence1": "a", "sentence2": "b", "label": 1}\n',
            "a.jsonl:2: single",
        ),
    ],
)
def test_unusable_files(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path / name, text), BadLines())


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.tsv cannot be read"):
        read_pairs(tmp_path / "nowhere.tsv", BadLines())


def examples(tmp_path, labels):
    return read_pairs(write(tmp_path / "l.tsv", "".join(f"s\t{label}\n" for label in labels)), BadLines())


def test_integer_labels_stay_in_the_order_of_integers(tmp_path):
    assert discover_labels(examples(tmp_path, ["10", "2", "-1", "2"])) == ["-1", "2", "10"]
    assert discover_labels(examples(tmp_path, ["10", "2", "x"])) == ["10", "2", "x"]


def test_targets(tmp_path):
    given = examples(tmp_path, ["b", "a", "c"])
    with pytest.raises(DataError, match=r"l\.tsv:3: a label that is none of a, b: 'c'"):
        with_targets(given, ["a", "b"], BadLines())
    bad = BadLines(skip=True)
    assert with_targets(given, ["a", "b"], bad)[1] == [1, 0]
    assert bad.counts == {"a label that is none of a, b": 1}
    numbers = examples(tmp_path, ["0.5", "3", "nan", "x"])
    assert with_targets(numbers, None, BadLines(skip=True))[1] == [0.5, 3.0]


def test_longest_first_is_that_of_tokenizers(english):
    for first in range(1, 9):
        for second in range(1, 9):
            for room in range(2, 18):
                a, b = ["a"] * first, ["b"] * second
                backend = english._backend
                backend.enable_truncation(room, strategy="longest_first")
                whole = backend.encode(a, b, is_pretokenized=True, add_special_tokens=False)
                backend.no_truncation()
                expected = (whole.type_ids.count(0), whole.type_ids.count(1))
                assert longest_first(first, second, room) == expected, (first, second, room)


@pytest.mark.parametrize("pair", [False, True])
def test_features_are_those_of_transformers(tmp_path, english, pair):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(tokenizer_folder(tmp_path / "t"))
    texts = ["What is the capital of France?", "good", "Playing [SEP] very, very bad films!"]
    others = ["Paris.", "the film is good the film is good", "who"]
    lines = [f"{a}\t{b}\tx" if pair else f"{a}\tx" for a, b in zip(texts, others, strict=True)]
    given = read_pairs(write(tmp_path / "a.tsv", "\n".join(lines)), BadLines())
    made = pair_features(given, english, 9)
    assert made.cut == (3 if pair else 1)
    for feature, a, b in list(zip(made.features, texts, others, strict=True))[:2]:
        expected = oracle(a, b if pair else None, truncation=True, max_length=9)
        assert feature.ids.tolist() == expected["input_ids"]
        assert feature.type_ids.tolist() == expected["token_type_ids"]
    # A special token that is written in the text is text.
    assert made.features[2].ids.tolist().count(english.sep_id) == (2 if pair else 1)


def test_features_have_targets_and_refuse_no_room(tmp_path, english):
    given = examples(tmp_path, ["a", "b"])
    made = pair_features(given, english, 8, targets=[0, 1])
    assert [feature.labels for feature in made.features] == [{"labels": 0}, {"labels": 1}]
    with pytest.raises(ValueError, match="max_length 2"):
        pair_features(given, english, 2)
