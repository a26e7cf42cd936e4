"""`bertfast encode` on every odd file of texts: no traceback, what is said names file and line, nothing is lost unsaid."""

import json
import re
import sys

import pytest
from typer.testing import CliRunner

pytest.importorskip("transformers")
parquet = pytest.importorskip("pyarrow.parquet")

from odd_texts import TEXTS  # noqa: E402
from test_odd_files import save_checkpoint  # noqa: E402

from bertfast import models  # noqa: E402
from bertfast.cli import app  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), models.BertForMaskedLM)


def run(*arguments):
    """Exit status and what was said, on one line; a traceback fails."""
    result = CliRunner().invoke(app, ["encode", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def left_out(said):
    counts = re.search(r"left out: ((?:[\d,]+ with [^;]*?)+);", said)
    return sum(int(n) for n in re.findall(r"(?:^|, )(\d+) with ", counts[1])) if counts else 0


def check_refusal(odd, status, said):
    assert status == 2, said
    assert odd.refused in said
    assert odd.file in said[said.index("bertfast: ") :], "the file is named"


@pytest.mark.parametrize("odd", [pytest.param(odd, id=odd.name) for odd in TEXTS])
def test_every_odd_file(tmp_path, checkpoint, odd):
    data, out = odd.write(tmp_path), tmp_path / "out"
    status, said = run(checkpoint, data, "--out", out, *odd.options)
    if odd.read is None:
        check_refusal(odd, status, said)
        assert not list(tmp_path.glob("out/shard-*"))
        return
    assert status == 0, said
    assert odd.noted in said
    assert (parquet.read_table(out).num_rows, left_out(said)) == (odd.read, odd.left), said
    status, said = run(checkpoint, data, "--out", tmp_path / "strict", "--strict", *odd.options)
    if odd.refused:
        check_refusal(odd, status, said)
        assert not list(tmp_path.glob("strict/shard-*"))
    else:
        assert status == 0, said


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("the film is good\nparis\n" + "good " * 200 + "\n")
    return path


def test_what_is_said_of_a_run(tmp_path, checkpoint, texts):
    out = tmp_path / "out"
    status, said = run(checkpoint, texts, "--out", out, "--shard-rows", 2, "--device", "cpu")
    assert status == 0, said
    assert "the mean of all tokens is taken; --pooling says otherwise" in said
    assert "cut to 96 tokens: 1 text" in said
    assert re.search(r"encoded 3 texts in [\d.]+ s: [\d,]+ texts/s [\d,]+ tokens/s", said)
    assert "3 embeddings of 8 numbers, 2 shards" in said
    status, said = run(checkpoint, texts, "--out", out, "--shard-rows", 2, "--device", "cpu")
    assert status == 2
    assert "holds finished embeddings already: go on with --resume" in said
    status, said = run(checkpoint, texts, "--out", out, "--shard-rows", 2, "--device", "cpu", "--resume")
    assert status == 0, said
    assert "there already: 3 texts in 2 shards" in said
    assert "encoded" not in said
    (out / "shard-00000.parquet").write_bytes(b"damaged")
    status, said = run(checkpoint, texts, "--out", out, "--shard-rows", 2, "--device", "cpu", "--resume")
    assert status == 0, said
    assert "shard 0 was missing or did not match its checksum, and was made again" in said
    assert "there already: 1 text in 1 shard" in said


def test_files_and_options_reach_the_library(tmp_path, checkpoint):
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        path.write_text(json.dumps({"body": "good", "key": path.name}) + "\n")
    out = tmp_path / "out"
    more = (
        "--field",
        "body",
        "--id-field",
        "key",
        "--keep-text",
        "--dtype",
        "float16",
        "--pooling",
        "cls,max",
        "--normalize",
    )
    status, said = run(
        checkpoint, *paths, "--out", out, *more, "--max-length", 9, "--prompt", "the ", "--precision", "bfloat16"
    )
    assert status == 0, said
    table = parquet.read_table(out)
    assert table.schema.field("embedding").type.value_type == "halffloat"
    assert table.schema.field("embedding").type.list_size == 16
    assert table.to_pydict()["id"] == ["a.jsonl", "b.jsonl"]
    settings = json.loads((out / "_bertfast" / "settings.json").read_text())
    given = {name: settings[name] for name in ("pooling", "normalize", "max_length", "prompt", "precision")}
    assert given == {
        "pooling": ["cls", "max"],
        "normalize": True,
        "max_length": 9,
        "prompt": "the ",
        "precision": "bfloat16",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pooling", "median"), "pooling 'median' is unknown"),
        (("--prompt-name", "passage"), "no prompt 'passage'; there are query, document: choose one, or give the text"),
        (("--max-length", "97"), "has 96 positions"),
        (("--shard-rows", "0"), "--shard-rows"),
        (("--device", "tpu"), "device must be one of auto, cpu, cuda"),
        (("--device", "cpu", "--precision", "float16"), "float16 is not for cpu"),
        (("--format", "npy", "--keep-text"), "npy files hold no texts"),
        (("--format", "csv"), "csv"),
        (("--encoding", "x"), "encoding 'x' is unknown to Python"),
    ],
)
def test_options_that_cannot_be(tmp_path, checkpoint, texts, options, said):
    status, found = run(checkpoint, texts, "--out", tmp_path / "out", *options)
    assert status == 2
    assert said in found
    assert not (tmp_path / "out").exists()


def test_models_that_are_none(tmp_path, checkpoint, texts):
    for model, said in ((tmp_path / "absent", "there is no folder"), (tmp_path, "no config.json")):
        status, found = run(model, texts, "--out", tmp_path / "out")
        assert (status, said in found) == (2, True), found
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in checkpoint.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "model.safetensors").write_bytes(b"none")
    status, found = run(damaged, texts, "--out", tmp_path / "out")
    assert (status, f"transformers cannot load {damaged} (Error while" in found) == (2, True), found
    (damaged / "modules.json").write_text("{")
    status, found = run(damaged, texts, "--out", tmp_path / "out")
    assert (status, "modules.json cannot be read" in found) == (2, True), found


def test_an_output_that_is_a_file(tmp_path, checkpoint, texts):
    status, said = run(checkpoint, texts, "--out", texts)
    assert status == 2
    assert f"{texts} cannot be written" in said


def test_interrupted(tmp_path, checkpoint, texts, monkeypatch):
    from bertfast.encoding.encoder import Encoder

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode_tokens", interrupted)
    status, said = run(checkpoint, texts, "--out", tmp_path / "out")
    assert status == 130
    assert "go on with --resume" in said


def test_without_pyarrow_it_says_what_to_install(tmp_path, checkpoint, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, said = run(checkpoint, texts, "--out", tmp_path / "out")
    assert status == 2
    assert "-e '.[encode]'" in said


def test_the_table_is_large_and_has_no_name_twice():
    names = [odd.name for odd in TEXTS]
    assert len(names) == len(set(names)) >= 60
