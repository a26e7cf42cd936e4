"""Texts, ids and bad lines of every kind of file."""

import gzip
import json
from pathlib import Path

import pytest

from bertfast.data.lines import BadLine
from bertfast.encoding.readers import Input, Text
from bertfast.tasks.lines import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(paths, **options):
    """(id, text) of what is good, (place, reason) of what is bad."""
    paths = paths if isinstance(paths, list) else [paths]
    items = list(Input(paths, **options))
    good = [(item.id, item.text) for item in items if isinstance(item, Text)]
    return good, [(item.where, item.reason) for item in items if isinstance(item, BadLine)]


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_of_text(tmp_path):
    path = file(tmp_path, "a.txt", b"one\r\n\n \nbad \xff\nnul\0\nlast")
    assert read(path) == (
        [(1, "one"), (6, "last")],
        [
            (f"{path}:2", "empty text"),
            (f"{path}:3", "empty text"),
            (f"{path}:4", "invalid UTF-8"),
            (f"{path}:5", "NUL character"),
        ],
    )
    packed = file(tmp_path, "a.txt.gz", gzip.compress(path.read_bytes()))
    assert read(packed)[0] == [(1, "one"), (6, "last")]


def test_objects(tmp_path):
    rows = [
        '{"body": "one", "n": 7}', "", '{"body": 5}', '{"body": null}', '{"bodi": "x"}', "{", "[1]", '{"body": "a", "body": "b"}',
        '{"body": "\\ud800"}', '{"body": "two"}',
    ]  # fmt: skip
    path = file(tmp_path, "a.jsonl", "\n".join(rows))
    good, bad = read(path, field="body")
    assert good == [(1, "one"), (10, "two")]
    assert [(int(where.rpartition(":")[2]), reason) for where, reason in bad] == [
        (3, "wrong type"), (4, "null"), (5, "missing field"), (6, "malformed JSON"), (7, "JSON that is no object"),
        (8, "malformed JSON"), (9, "invalid UTF-8"),
    ]  # fmt: skip
    details = [item.detail for item in Input([path], field="body") if isinstance(item, BadLine)]
    assert "did you mean 'bodi'?" in details[2]


def test_ids_of_a_field_are_all_of_one_kind(tmp_path):
    ids = ["x", "y", 3, None, True, "z"]
    path = file(tmp_path, "a.jsonl", "\n".join(json.dumps({"id": each, "text": f"t{each}"}) for each in ids))
    good, bad = read(path, id_field="id")
    assert [each for each, _ in good] == ["x", "y", "z"]
    assert {reason for _, reason in bad} == {"bad id"}
    numbers = file(tmp_path, "b.jsonl", '{"id": 4, "text": "a"}\n{"id": 18446744073709551616, "text": "b"}')
    assert read(numbers, id_field="id")[0] == [(4, "a")]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    texts = ["one", None, "", "two"]
    parquet.write_table(pyarrow.table({"body": texts, "key": [5, 6, 7, 8], "other": [1.0] * 4}), path)
    assert read(path, field="body") == ([(1, "one"), (4, "two")], [(f"{path}:2", "null"), (f"{path}:3", "empty text")])
    assert [each for each, _ in read(path, field="body", id_field="key")[0]] == [5, 8]
    parquet.write_table(pyarrow.table({"body": pyarrow.array(["a", "b", "a"]).dictionary_encode()}), path)
    assert read(path, field="body")[0] == [(1, "a"), (2, "b"), (3, "a")]


def test_parquet_with_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    offsets = pyarrow.py_buffer(memoryview(b"").tobytes() + b"".join(n.to_bytes(4, "little") for n in (0, 2, 4)))
    column = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"ok\xff\xfe"))
    parquet.write_table(pyarrow.table({"text": column}), path)
    assert read(path) == ([(1, "ok")], [(f"{path}:2", "invalid UTF-8")])


def test_several_files_have_their_names_in_the_ids(tmp_path):
    first, second = file(tmp_path, "a.txt", "one\n"), file(tmp_path, "b.jsonl", '{"text": "two"}\n')
    assert read([first, second])[0] == [(f"{first}:1", "one"), (f"{second}:1", "two")]
    second.write_text('{"body": "two"}\n')
    assert [text for _, text in read([first, second], field="body")[0]] == ["one", "two"]


def test_progress_reaches_all_bytes(tmp_path):
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"] * 10}), table)
    texts = Input([file(tmp_path, "a.txt", "one\ntwo\n"), table])
    assert len(list(texts)) == 12
    assert texts.progress.done == texts.progress.total == 8 + table.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("a.csv", "a,b\n", {}, r"\.csv is not read"),
        ("a.txt", "", {}, "the file is empty"),
        ("a.parquet", "no table", {}, "is no Parquet file"),
        ("a.txt", "a\n", {"id_field": "id"}, "which hold no id"),
        ("a.txt", "a\n", {"field": "body"}, "which hold no field 'body'"),
        ("a.txt", "a\n", {"kind": "xml"}, "input format 'xml' is unknown"),
        ("a.txt", "a\n", {"encoding": "utf-99"}, "encoding 'utf-99' is unknown"),
        ("a.txt", "a\nb\n".encode("utf-16"), {}, "text in UTF-16"),
        ("a.txt.gz", gzip.compress(b"a\n" * 9)[:-9], {}, "damaged gzip data"),
        ("a.jsonl", b"PK\x03\x04" + bytes(99), {}, "a zip archive"),
    ],
)
def test_files_that_are_not_read(tmp_path, name, content, options, said):
    with pytest.raises(DataError, match=said):
        read(file(tmp_path, name, content), **options)


def test_parquet_columns_are_checked_before_anything_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"texts": ["a"], "number": [1]}), path)
    with pytest.raises(DataError, match=r"no column 'text'; it has texts, number; did you mean 'texts'\?"):
        Input([path])
    with pytest.raises(DataError, match="column 'number' is int64, and text is read"):
        Input([path], field="number")
    with pytest.raises(DataError, match="is a folder"):
        Input([tmp_path])
    with pytest.raises(DataError, match="does not exist"):
        Input([tmp_path / "absent"])
    with pytest.raises(DataError, match="standard input is not read"):
        Input([Path("-")])
    with pytest.raises(DataError, match="no input"):
        Input([])
