"""Every format of source, its bad lines, and what cannot be read at all."""

import gzip
import json
from pathlib import Path

import pytest

from bertfast.data import encodings, lines
from bertfast.data.lines import BadLine, Document, SourceError
from bertfast.data.sources import DatasetSource, FileSource


def read(path: Path, format: str = "text", field: str = "text"):
    return list(FileSource([path], format, field))


def documents(items) -> list[list[str]]:
    return [item.lines for item in items if isinstance(item, Document)]


def bad(items) -> list[tuple[str, str]]:
    return [(item.where.rsplit("/", 1)[-1], item.reason) for item in items if isinstance(item, BadLine)]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text(tmp_path):
    items = read(put(tmp_path / "a.txt", "\ufeffone\r\n two \n\n\n \t\nthree\n\nlast"))
    assert documents(items) == [["one", "two"], ["three"], ["last"]]
    assert [item.where.rsplit(":")[-1] for item in items] == ["1", "6", "8"]


def test_gzip_and_several_files(tmp_path):
    first = put(tmp_path / "a.txt.gz", gzip.compress(b"eins\n\nzwei\n"))
    second = put(tmp_path / "b.txt", "drei\n")
    source = FileSource([first, second], "text")
    assert documents(source) == [["eins"], ["zwei"], ["drei"]]
    assert source.progress.done == source.progress.total
    assert documents(source) == [["eins"], ["zwei"], ["drei"]]  # again, the same
    described = source.describe()
    assert [entry["name"] for entry in described] == ["a.txt.gz", "b.txt"]
    assert described[1]["bytes"] == 5


def test_bad_lines_are_named_and_take_only_themselves(tmp_path):
    items = read(put(tmp_path / "a.txt", b"good\n\xff\xfe\nstill\nnul\0here\nend\n"))
    assert documents(items) == [["good", "still", "end"]]
    assert bad(items) == [("a.txt:2", "invalid UTF-8"), ("a.txt:4", "NUL character")]


def test_lines_end_as_they_do_everywhere(tmp_path):
    """At a line feed, a carriage return, or both; other separators of Unicode are white space, in files as in fields."""
    odd = "a\u2028b\x85c\x0bd\x0ce"
    text = f"one\rtwo\r\nthree\r\r\nfour\r\rfive\n\n{odd}\n"
    want = [["one", "two", "three", "four"], ["five"], [odd]]
    items = read(put(tmp_path / "a.txt", text))
    assert documents(items) == want
    assert [item.where.rsplit(":")[-1] for item in items] == ["1", "6", "8"]
    row = json.dumps({"text": f"x\ry\r\nz\n{odd}"})
    assert documents(read(put(tmp_path / "r.jsonl", row), "jsonl")) == [["x", "y", "z", odd]]


@pytest.mark.parametrize("packed", [False, True])
def test_old_mac_line_ends(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(encodings, "CHUNK", 7)  # \r and \n fall into two chunks
    text = ("eins\rzwei é\r\rdrei\r" * 3).encode() + b"\xff\rend\r\nlast"
    monkeypatch.setattr(encodings, "HEAD", 20)
    with pytest.warns(UserWarning, match="carriage returns alone, which are read as line ends"):
        items = read(put(tmp_path / "a.txt", gzip.compress(text) if packed else text))
    assert documents(items) == [
        ["eins", "zwei é"],
        ["drei", "eins", "zwei é"],
        ["drei", "eins", "zwei é"],
        ["drei", "end", "last"],
    ]
    assert bad(items) == [("a.txt:13", "invalid UTF-8")]


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp932", "euc_jp", "iso2022_jp", "utf-8-sig"]
)
def test_encodings(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(encodings, "CHUNK", 5)
    text = "今日は\r\n良い天気\n\n終わり"
    path = put(tmp_path / "a.txt", text.encode(encoding))
    source = FileSource([path], "text", encoding=encoding)
    assert documents(source) == [["今日は", "良い天気"], ["終わり"]]
    assert source.describe()[0]["encoding"] == encoding
    if encoding in ("utf-16", "utf-32"):  # with a mark
        with pytest.raises(SourceError, match=r"is text in UTF-(16|32).*give --encoding utf-"):
            read(path)


def test_bytes_that_are_not_of_the_encoding(tmp_path):
    line = "今日は\n".encode("cp932")
    path = put(tmp_path / "a.txt", line + b"\x81\xff\n" + line)
    items = list(FileSource([path], "text", encoding="cp932"))
    assert documents(items) == [["今日は", "今日は"]]
    assert bad(items) == [("a.txt:2", "invalid cp932")]
    path = put(tmp_path / "b.txt", "ab\ncd".encode("utf-16-le") + b"\x00\xdc")
    with pytest.raises(SourceError, match=r"after line \d, byte 10, it is not utf-16-le"):
        list(FileSource([path], "text", encoding="utf-16-le"))
    for encoding in ("klingon", "base64", "rot13", ""):
        with pytest.raises(SourceError, match="Python knows no such encoding"):
            FileSource([path], "text", encoding=encoding)


def test_a_line_that_is_no_utf8_says_where_and_what_it_may_be(tmp_path):
    items = read(put(tmp_path / "a.txt", b"good\n" + "un café noir\n".encode("latin-1")))
    said = "byte 6 of the line is 0xe9, byte 11 of the text; it reads as text with --encoding cp1252"
    assert [item.detail for item in items if isinstance(item, BadLine)] == [said]


def test_a_field_that_stands_twice_is_no_silent_choice(tmp_path):
    rows = ['{"text": "a", "text": "b"}', '{"text": "say \\"text\\": a"}', '{"o": {"text": "e"}, "text": "f"}']
    items = read(put(tmp_path / "r.jsonl", "\n".join(rows)), "jsonl")
    assert documents(items) == [['say "text": a'], ["f"]]
    assert bad(items) == [("r.jsonl:1", "malformed JSON")]


def test_long_lines_and_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 10)
    monkeypatch.setattr(lines, "LONGEST_DOCUMENT", 8)
    items = read(put(tmp_path / "a.txt", "x" * 35 + "\nabcd\nefgh\nijkl\n\nz\n"))
    assert bad(items) == [("a.txt:1", "line too long")]
    assert documents(items) == [["abcd", "efgh"], ["ijkl"], ["z"]]
    assert [item.cut for item in items if isinstance(item, Document)] == [True, False, False]


def test_wikitext(tmp_path):
    text = " \n = First = \n \n It is 0 @.@ 7 m @-@ long . \n = = Part = = \n More . \n\n = Second = \n Text <unk> .\n <unk> \n"
    items = read(put(tmp_path / "w.txt", text), "wikitext")
    assert documents(items) == [["It is 0.7 m-long .", "More ."], ["Text ."]]
    assert [item.headings for item in items] == [2, 1]


SQUAD = {
    "data": [
        {
            "title": "梅雨",
            "paragraphs": [{"context": "梅雨 [SEP] 雨が降る。"}, {"context": "梅雨 [SEP] 長い。\n二行 [SEP] 目。"}],
        },
        {"title": "x", "paragraphs": [{"nothing": 1}, {"context": 3}, {"context": "Plain text."}]},
        {"title": "empty"},
    ]
}


@pytest.mark.parametrize(
    ("format", "want"),
    [
        ("squad", [["雨が降る。", "長い。", "二行 [SEP] 目。"], ["Plain text."]]),
        ("squad-paragraphs", [["雨が降る。"], ["長い。", "二行 [SEP] 目。"], ["Plain text."]]),
    ],
)
def test_squad(tmp_path, format, want):
    items = read(put(tmp_path / "s.json", json.dumps(SQUAD)), format)
    assert documents(items) == want
    assert bad(items) == [
        ("s.json:article 2 paragraph 1", "missing field"),
        ("s.json:article 2 paragraph 2", "wrong type"),
        ("s.json:article 3", "missing field"),
    ]


def test_jsonl(tmp_path):
    rows = [
        '{"text": "a\\nb"}',
        "{",
        '{"other": 1}',
        '{"text": 5}',
        "[1]",
        '{"text": ["x", null]}',
        '{"text": " "}',
        '{"text": "\\ud800"}',
    ]
    items = read(put(tmp_path / "r.jsonl", "\n".join([*rows, "", '{"text": "z\\u0000"}'])), "jsonl")
    assert documents(items) == [["a", "b"], ["x"]]
    assert bad(items) == [
        ("r.jsonl:2", "malformed JSON"),
        ("r.jsonl:3", "missing field"),
        ("r.jsonl:4", "wrong type"),
        ("r.jsonl:5", "wrong type"),
        ("r.jsonl:6", "wrong type"),
        ("r.jsonl:7", "empty document"),
        ("r.jsonl:8", "invalid UTF-8"),
        ("r.jsonl:10", "NUL character"),
    ]
    assert documents(read(put(tmp_path / "f.jsonl", '{"body": "here"}'), "jsonl", "body")) == [["here"]]


def test_data_sets(tmp_path, monkeypatch, capfd):
    datasets = pytest.importorskip("datasets")
    values = ["one\ntwo", ["three", "four"], None, ""]
    datasets.Dataset.from_dict({"text": [value if isinstance(value, str) else "t" for value in values]}).save_to_disk(
        tmp_path / "d"
    )
    source = DatasetSource(str(tmp_path / "d"), None, "train", "text", [])
    items = list(source)
    assert documents(items) == [["one", "two"], ["t"], ["t"]]
    assert [item.reason for item in items if isinstance(item, BadLine)] == ["empty document"]
    assert source.describe() == DatasetSource(str(tmp_path / "d"), None, "train", "text", []).describe()
    datasets.DatasetDict({"dev": datasets.load_from_disk(str(tmp_path / "d"))}).save_to_disk(tmp_path / "dd")
    assert documents(DatasetSource(str(tmp_path / "dd"), None, "dev", "text", []))[0] == ["one", "two"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = put(tmp_path / "r.json", "\n".join(json.dumps({"text": value}) for value in (["p", "q"], None)))
    capfd.readouterr()
    items = list(DatasetSource("json", None, "train", "text", [rows]))
    assert "Generating" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled(), "as it was"
    assert documents(items) == [["p", "q"]]
    assert [item.reason for item in items if isinstance(item, BadLine)] == ["wrong type"]
    with pytest.raises(SourceError, match="no field 'body', but text"):
        DatasetSource(str(tmp_path / "d"), None, "train", "body", [])
    with pytest.raises(SourceError, match="no split 'test', but dev"):
        DatasetSource(str(tmp_path / "dd"), None, "test", "text", [])
    with pytest.raises(SourceError, match="cannot be loaded"):
        DatasetSource(str(tmp_path / "absent"), None, "train", "text", [])


def test_unreadable(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        FileSource([tmp_path / "absent"], "text")
    with pytest.raises(SourceError, match="/dev/null is not a regular file"):
        FileSource([Path("/dev/null")], "text")
    with pytest.raises(SourceError, match="is a folder"):
        FileSource([tmp_path], "text")
    for name in ("a.json", "a.JSONL.gz"):
        with pytest.raises(SourceError, match="is JSON by its name"):
            FileSource([put(tmp_path / name, "{}")], "paragraphs")
    with pytest.raises(SourceError, match=r"damaged gzip data after line \d"):
        read(put(tmp_path / "a.gz", gzip.compress(b"line\n" * 10_000)[:-20]))
    for content in ("{", "[]", '{"data": 3}', '{"nodata": 3}'):
        with pytest.raises(SourceError, match="not SQuAD-shaped") as error:
            read(put(tmp_path / "s.json", content), "squad")
        assert "Error" not in str(error.value)  # no exception's name
