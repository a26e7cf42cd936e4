"""Corpora: what is in them, that they are the same however they were made, and what is refused."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets")

import bertfast.data.build as building  # noqa: E402
from bertfast.data import arrow  # noqa: E402
from bertfast.data.build import build  # noqa: E402
from bertfast.data.build_options import BuildError, Options  # noqa: E402
from bertfast.data.corpus import Corpus  # noqa: E402
from bertfast.data.sources import FileSource  # noqa: E402
from bertfast.data.tokenizer import load_tokenizer  # noqa: E402
from bertfast.data.vocab import VocabularyOptions, tokenizer_files  # noqa: E402

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIALS, "word", "##s", ".", "a", "b", "c", *map(str, range(10)), *(f"##{n}" for n in range(10))]
SMALL = Options(shard_characters=400)


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, content in tokenizer_files(PIECES, VocabularyOptions()).items():
        (folder / name).write_bytes(content)
    return load_tokenizer(folder)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"".join(b"word %d a b.\nwords c %d.\n\n" % (n, n * 7) for n in range(200)) + b"\xff\n\nlast a\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_rows_manifest_and_tokenizer(tmp_path, tokenizer):
    path = tmp_path / "t.txt"
    path.write_text("words a\nb [SEP] c\n\n\u200b\nword 1\n\n\u200b\n")
    seen = []
    manifest = build(
        FileSource([path], "text"), tokenizer, tmp_path / "out", Options(), report=lambda totals: seen.append(totals)
    )
    table = datasets.load_from_disk(str(tmp_path / "out"))
    assert [[tokenizer.tokens(row["input_ids"]), row["sentence_lengths"]] for row in table] == [
        [["word", "##s", "a", "b", "[UNK]", "[UNK]", "[UNK]", "c"], [3, 5]],  # "[SEP]" in a text is "[", "sep", "]"
        [["word", "1"], [2]],
    ]
    assert str(table.features["input_ids"].feature.dtype) == "uint16"
    assert {name: manifest[name] for name in ("documents", "sentences", "tokens", "dtype", "split")} == {
        "documents": 2, "sentences": 3, "tokens": 10, "dtype": "uint16", "split": None,
    }  # fmt: skip
    assert manifest["skipped"] == {"no pieces": 2}
    named = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in named] == [f"{path}:4", f"{path}:7"]
    assert manifest["tokenizer"] == {"sha256": tokenizer.sha256, "language": "en", "vocab_size": len(PIECES)}
    assert manifest == json.loads((tmp_path / "out/manifest.json").read_text())
    assert load_tokenizer(tmp_path / "out/tokenizer").sha256 == tokenizer.sha256
    assert seen[-1] == {"documents": 2, "sentences": 3, "tokens": 10, "skipped": 2}
    assert not list(tmp_path.glob("*.building"))
    assert Corpus.open(tmp_path / "out").tokens == 10


def test_large_vocabulary_takes_int32():
    assert [arrow.dtype_for(size) for size in (1 << 16, (1 << 16) + 1)] == ["uint16", "int32"]


def test_holdout_goes_by_text(tmp_path, tokenizer, text):
    build(FileSource([text], "text"), tokenizer, tmp_path / "out", Options(holdout=0.2, shard_characters=400))
    sides = {side: datasets.load_from_disk(str(tmp_path / "out" / side)) for side in ("train", "eval")}
    assert 20 < len(sides["eval"]) < 60
    assert len(sides["train"]) + len(sides["eval"]) == 201
    # In another order, and twice over, the same documents are held out.
    turned = tmp_path / "turned.txt"
    turned.write_bytes(b"\n\n".join(reversed(text.read_bytes().split(b"\n\n"))) + b"\n\n" + text.read_bytes())
    build(FileSource([turned], "text"), tokenizer, tmp_path / "again", Options(holdout=0.2))
    for side, rows in sides.items():
        again = datasets.load_from_disk(str(tmp_path / "again" / side))
        assert {tuple(ids) for ids in again["input_ids"]} == {tuple(ids) for ids in rows["input_ids"]}
        assert len(again) == 2 * len(rows)
        assert Corpus.open(tmp_path / "out" / side).documents == len(rows)
    with pytest.raises(BuildError, match="no document for eval"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "none", Options(holdout=1e-9))
    # Nothing of it is in the way of another share.
    assert build(FileSource([text], "text"), tokenizer, tmp_path / "none", Options(holdout=0.2))["documents"] > 0


def test_workers_and_tasks_do_not_matter(tmp_path, tokenizer, text, monkeypatch):
    build(FileSource([text], "text"), tokenizer, tmp_path / "one", SMALL)
    build(FileSource([text], "text"), tokenizer, tmp_path / "two", SMALL, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("data-*.arrow"))) > 5
    monkeypatch.setattr(building, "TASK_CHARACTERS", 50)
    build(FileSource([text], "text"), tokenizer, tmp_path / "three", Options())
    rows = [datasets.load_from_disk(str(tmp_path / name))["input_ids"][:] for name in ("one", "three")]
    assert rows[0] == rows[1]


KILLED = """
import os, sys, time
from pathlib import Path
from bertfast.data import build as building
from bertfast.data.sources import FileSource
from bertfast.data.tokenizer import load_tokenizer
point, text, tokenizer, out = sys.argv[1:]
module, name = point.rsplit(".", 1)
module = {"os": os, "building": building, "arrow": building.arrow}[module]
original, calls = getattr(module, name), 0
def stop(*args, **more):
    global calls
    calls += 1
    if calls == 4:
        Path(out + ".stopped").touch()
        time.sleep(600)
    return original(*args, **more)
setattr(module, name, stop)
options = building.Options(shard_characters=400, holdout=0.3)
building.build(FileSource([Path(text)], "text"), load_tokenizer(tokenizer), Path(out), options)
"""


@pytest.mark.parametrize("point", ["arrow.write_rows", "os.replace"])
def test_killed_build_goes_on_to_the_same_bytes(tmp_path, tokenizer, text, point):
    options = Options(shard_characters=400, holdout=0.3)
    build(FileSource([text], "text"), tokenizer, tmp_path / "whole", options)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, point, str(text), str(tmp_path / "tokenizer"), str(out)])
    try:
        for _ in range(18_000):
            if Path(f"{out}.stopped").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    build(FileSource([text], "text"), tokenizer, out, options)
    assert contents(out) == contents(tmp_path / "whole")


class Stop(Exception):
    pass


def test_stopped_at_any_rename(tmp_path, tokenizer, text, monkeypatch):
    options = Options(shard_characters=1500, holdout=0.3)
    build(FileSource([text], "text"), tokenizer, tmp_path / "whole", options)
    replace, left = os.replace, 0

    def stop(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop
        replace(*args)

    for renames in range(100):
        out, left = tmp_path / f"out{renames}", renames
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            try:
                build(FileSource([text], "text"), tokenizer, out, options)
                break
            except Stop:
                assert not out.exists()
        build(FileSource([text], "text"), tokenizer, out, options)
        assert contents(out) == contents(tmp_path / "whole")
    assert 20 < renames < 60


@pytest.mark.parametrize("call", [2, 7, 20])
def test_full_disk(tmp_path, tokenizer, text, call, monkeypatch):
    fsync, calls = os.fsync, 0

    def full(handle):
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    build(FileSource([text], "text"), tokenizer, tmp_path / "whole", SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(BuildError, match=r"the disk is full; what is done stays in .*out\.building"):
            build(FileSource([text], "text"), tokenizer, tmp_path / "out", SMALL)
    assert not list((tmp_path / "out.building").rglob("*.partial"))
    build(FileSource([text], "text"), tokenizer, tmp_path / "out", SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_finished_is_left_alone_and_others_are_refused(tmp_path, tokenizer, text, monkeypatch):
    manifest = build(FileSource([text], "text"), tokenizer, tmp_path / "out", SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert build(FileSource([text], "text"), tokenizer, tmp_path / "out", SMALL) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(BuildError, match=r"options.holdout is 0.0 there and 0.1 now"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "out", Options(holdout=0.1, shard_characters=400))
    with pytest.raises(BuildError, match="format is 'text' there and 'paragraphs' now"):
        build(FileSource([text], "paragraphs"), tokenizer, tmp_path / "out", SMALL)
    text.write_bytes(text.read_bytes() + b"more\n")
    with pytest.raises(BuildError, match=r"sources\[0\].bytes is \d+ there"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "out", SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with pytest.raises(BuildError, match="is not a corpus"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "full", SMALL)
    with (
        building._locked(tmp_path / "full"),
        pytest.raises(BuildError, match="another build is at work"),
        building._locked(tmp_path / "full"),
    ):
        pass


def test_bad_lines_refused(tmp_path, tokenizer, text):
    with pytest.raises(BuildError, match=r"text.txt:601: invalid UTF-8"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "out", Options(refuse_bad_lines=True))
    text.write_text("a\n\u200b\n")
    with pytest.raises(BuildError, match="no pieces"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "new", Options(refuse_bad_lines=True))
    assert not list(tmp_path.glob("*.building")), "the corrected command would be refused"
    text.write_text("\n")
    with pytest.raises(BuildError, match="no document is left of the source: there is no text in it"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "empty", Options())


@pytest.mark.parametrize("options", [{"holdout": 1.0}, {"holdout": -0.1}, {"shard_characters": 0}])
def test_options(options):
    with pytest.raises(BuildError):
        Options(**options)
