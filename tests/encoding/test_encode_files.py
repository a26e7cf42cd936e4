"""Whole runs: shards in every format, stopped and gone on with, damaged, refused; nothing lost, nothing doubled."""

import errno
import json
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from encoding_cases import TEXTS, save_checkpoint

from bertfast.data.lines import BadLine
from bertfast.encoding import Encoder, shards
from bertfast.encoding.readers import Input
from bertfast.encoding.run import Bad, encode_files, windows
from bertfast.encoding.shards import OutputError
from bertfast.tasks.lines import DataError

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def source(tmp_path):
    """60 texts in lines with a blank one and one that is no UTF-8 among them."""
    path = tmp_path / "texts.txt"
    lines = [text.encode() for text in TEXTS]
    path.write_bytes(b"\n".join([*lines[:20], b"", *lines[20:40], b"\xff", *lines[40:]]) + b"\n")
    return path


@pytest.fixture(scope="module")
def expected(encoder):
    return encoder.encode(TEXTS)


IDS = [*range(1, 21), *range(22, 42), *range(43, 63)]


def run(encoder, source, out, **options):
    return encode_files(encoder, Input([source]), out, **{"shard_rows": 16, **options})


def table(out):
    return parquet.read_table(out).to_pydict()


def check(out, expected):
    rows = table(out)
    assert rows["id"] == IDS
    np.testing.assert_array_equal(np.array(rows["embedding"], np.float32), expected)


def names(out):
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("_"))


def test_parquet(encoder, source, tmp_path, expected):
    reports = []
    status = run(
        encoder, source, tmp_path / "out", report=lambda s: reports.append((s.fraction, s.texts)), keep_text=True
    )
    check(tmp_path / "out", expected)
    assert table(tmp_path / "out")["text"] == TEXTS
    assert names(tmp_path / "out") == [f"shard-0000{n}.parquet" for n in range(4)]
    assert (status.texts, status.shards, status.resumed, status.tokens) == (
        60,
        4,
        0,
        sum(encoder.tokenize(TEXTS).lengths),
    )
    assert dict(status.bad.counts) == {"empty text": 1, "invalid UTF-8": 1}
    assert f"{source}:21: empty text" in status.bad.summary()
    head, *places = status.bad.listing(tmp_path / "out").split("\n  ")
    kept = tmp_path / "out" / "_bertfast" / "finished.json"
    assert head.endswith(f"; all are in {kept}:")
    assert [place.partition(": ")[0] for place in places] == [f"{source}:21", f"{source}:42"]
    assert json.loads(kept.read_text())["bad"]["named"] == places
    assert reports == sorted(reports)
    assert reports[-1] == (1.0, 60)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_and_safetensors(encoder, source, tmp_path, expected, dtype):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    for form in ("npy", "safetensors"):
        run(encoder, source, tmp_path / form, form=form, dtype=dtype)
    stems = [f"shard-0000{n}" for n in range(4)]
    arrays = [np.load(tmp_path / "npy" / f"{stem}.npy") for stem in stems]
    ids = [np.load(tmp_path / "npy" / f"{stem}.ids.npy") for stem in stems]
    tensors = [load_file(tmp_path / "safetensors" / f"{stem}.safetensors") for stem in stems]
    for made, numbers in ((arrays, ids), ([t["embeddings"] for t in tensors], [t["ids"] for t in tensors])):
        assert np.concatenate(made).dtype == dtype
        np.testing.assert_array_equal(np.concatenate(made), expected.astype(dtype))
        assert np.concatenate(numbers).tolist() == IDS


def test_ids_that_are_texts(encoder, tmp_path, expected):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    source = tmp_path / "a.jsonl"
    given = ["ä", "", "c"]
    source.write_text("\n".join(json.dumps({"key": k, "text": t}) for k, t in zip(given, TEXTS, strict=False)))
    for form in ("parquet", "npy", "safetensors"):
        encode_files(encoder, Input([source], id_field="key"), tmp_path / form, form=form)
    assert table(tmp_path / "parquet")["id"] == given
    assert np.load(tmp_path / "npy" / "shard-00000.ids.npy").tolist() == given
    tensors = load_file(tmp_path / "safetensors" / "shard-00000.safetensors")
    at = tensors["id_offsets"]
    assert [tensors["id_bytes"][a:b].tobytes().decode() for a, b in pairwise(at)] == given


def test_the_same_bytes_whatever_the_batch(encoder, checkpoint, source, tmp_path):
    run(encoder, source, tmp_path / "one")
    run(Encoder(checkpoint, device="cpu", token_budget=50), source, tmp_path / "other")
    for name in names(tmp_path / "one"):
        one, other = (np.array(table(tmp_path / out / name)["embedding"]) for out in ("one", "other"))
        # Bits are compared where they are promised: test_text_encoder.
        np.testing.assert_allclose(one, other, atol=1e-6)


class Stop(Exception):
    pass


def fail_at(monkeypatch, count, error):
    """The count-th step on the disk of a shard fails."""
    left = [count]

    def failing(step):
        def call(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                raise error
            return step(*args, **more)

        return call

    steps = (
        (shards, "write_parquet"),
        (shards, "_sync"),
        (os, "replace"),
        (shards, "sync_folder"),
        (shards, "write_whole"),
    )
    for module, name in steps:
        monkeypatch.setattr(module, name, failing(getattr(module, name)))


@pytest.mark.parametrize("step", range(1, 16))
def test_stopped_at_any_step_and_gone_on_with(encoder, source, tmp_path, expected, monkeypatch, step):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, step, Stop())
        with pytest.raises(Stop):
            run(encoder, source, out)
    complete = len(list((out / "_bertfast").glob("shard-*.json"))) if out.exists() else 0
    status = run(encoder, source, out, resume=True)
    assert (status.resumed_shards, status.texts) == (complete, 60 - 16 * complete)
    check(out, expected)
    assert not list(out.rglob("*.partial"))


def test_a_full_disk_is_said_and_nothing_half_written_stays(encoder, source, tmp_path, monkeypatch, expected):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, 9, OSError(errno.ENOSPC, "full"))
        with pytest.raises(OutputError, match=r"shard 1: no space left on the disk.*--resume"):
            run(encoder, source, out)
    assert not list(out.rglob("*.partial"))
    run(encoder, source, out, resume=True)
    check(out, expected)


def test_a_killed_process_is_gone_on_with(encoder, source, tmp_path, expected):
    """Killed by the system while it writes its third shard."""
    out = tmp_path / "out"
    child = os.fork()
    if not child:
        signal.alarm(60)
        torch.set_num_threads(1)  # threads do not outlive a fork
        whole = shards.write_whole

        def write_whole(path, content):
            if "shard-00002" in path.name:
                os.kill(os.getpid(), signal.SIGKILL)
            whole(path, content)

        shards.write_whole = write_whole
        try:
            run(encoder, source, out)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    status = run(encoder, source, out, resume=True)
    assert (status.resumed_shards, status.shards) == (2, 4)
    check(out, expected)


def test_a_finished_folder_is_refused_or_checked(encoder, source, tmp_path, expected):
    out = tmp_path / "out"
    run(encoder, source, out)
    with pytest.raises(OutputError, match="holds finished embeddings already: go on with --resume"):
        run(encoder, source, out)
    status = run(encoder, source, out, resume=True)
    assert (status.texts, status.resumed, status.resumed_shards) == (0, 60, 4)
    assert status.bad.counts.total() == 2
    damaged = out / "shard-00001.parquet"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    (out / "shard-00003.parquet").unlink()
    status = run(encoder, source, out, resume=True)
    assert (status.resumed_shards, status.damaged) == (2, [1, 3])
    check(out, expected)


def test_other_settings_and_other_texts_are_refused(encoder, checkpoint, source, tmp_path):
    out = tmp_path / "out"
    run(encoder, source, out)
    for options, said in (
        ({"dtype": "float16"}, "dtype = float32, and now it is float16"),
        ({"shard_rows": 17}, "shard_rows = 16, and now it is 17"),
        ({"keep_text": True}, "keep_text = false"),
    ):
        with pytest.raises(OutputError, match=said):
            run(encoder, source, out, resume=True, **options)
    with pytest.raises(OutputError, match="pooling = mean, and now it is cls, max"):
        run(Encoder(checkpoint, device="cpu", pooling=("cls", "max"), normalize=True), source, out, resume=True)
    wider = save_checkpoint(tmp_path / "wider", sizes={"hidden_size": 64})
    with pytest.raises(OutputError, match=r"was begun with another checkpoint \(its files differ\)"):
        run(Encoder(wider, device="cpu", pooling="cls"), source, out, resume=True)
    content = source.read_bytes()
    source.write_bytes(content.replace(b"ab", b"ba"))  # of the same size
    with pytest.raises(
        OutputError, match=r"shard 0 was made of other texts than the input now has there \(16 from id 1 on\)"
    ):
        run(encoder, source, out, resume=True)
    source.write_bytes(content + b"a\n")
    with pytest.raises(
        OutputError, match=rf"input files = {source.name} \({len(content):,} bytes, text\), and now it is {source.name}"
    ):
        run(encoder, source, out, resume=True)


def test_a_folder_with_other_files_is_left_alone(encoder, source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(OutputError, match="holds other files: name a new folder"):
            run(encoder, source, tmp_path / "out", resume=resume)
    assert names(tmp_path / "out") == ["notes.txt"]


def test_strict_stops_at_the_line_and_keeps_what_is_complete(encoder, source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=rf"{source}:21: empty text\. Fix the line, or leave --strict out"):
        run(encoder, source, out, strict=True)
    assert names(out) == ["shard-00000.parquet"]


def test_a_listing_of_many_bad_lines_says_how_many_are_kept(tmp_path):
    bad = Bad()
    for number in range(1, 1003):
        bad.add(BadLine(f"a.txt:{number}", "empty text"))
    head, *places, last = bad.listing(tmp_path).split("\n  ")
    assert head.startswith("left out: 1,002 with empty text; the first 1,000 are in ")
    assert places == [f"a.txt:{number}: empty text" for number in range(1, 6)]
    assert last == "and 997 more"


def test_nothing_to_encode(encoder, tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("\n \n")
    with pytest.raises(DataError, match=r"no text to encode.*2 with empty text"):
        run(encoder, source, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"form": "csv"}, "format 'csv'"), ({"dtype": "int8"}, "dtype 'int8'"), ({"form": "npy", "keep_text": True}, "hold no texts")],
)  # fmt: skip
def test_options_that_cannot_be(encoder, source, tmp_path, options, said):
    with pytest.raises(OutputError, match=said):
        run(encoder, source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_windows_end_at_rows_or_at_very_long_texts(source, monkeypatch):
    from bertfast.encoding import run as module

    sizes = [len(window.texts) for window in windows(Input([source]), 25)]
    assert sizes == [25, 25, 10]
    monkeypatch.setattr(module, "_MOST_CHARACTERS", 100)
    found = list(windows(Input([source]), 25))
    assert [text for window in found for text in window.texts] == TEXTS
    assert len(found) > 5
    assert all(len("".join(window.texts[:-1])) < 100 for window in found)


def test_memory_does_not_grow_with_the_input(tmp_path):
    """Windows are made as they are asked for: the file's reader has not gone past the first."""
    source = tmp_path / "a.txt"
    source.write_text("some text\n" * 100_000)
    texts = Input([source])
    next(windows(texts, 100))
    assert texts.progress.done < 5000
    assert os.path.getsize(source) == texts.progress.total
