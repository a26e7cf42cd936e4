"""Pre-training beside stock transformers: the same weights and batches give the same losses, in both dtypes."""

from importlib.resources import files
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("datasets")

from benchmarks.pretraining import __main__ as command
from benchmarks.pretraining import measure
from bertfast.data.build import build
from bertfast.data.build_options import Options
from bertfast.data.corpus import Corpus
from bertfast.data.sources import FileSource
from bertfast.data.tokenizer import load_tokenizer
from bertfast.data.vocab import VocabularyOptions, train_vocabulary

SIZE = "2x64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of the project's own sentences, in documents of a dozen."""
    place = tmp_path_factory.mktemp("corpus")
    lines = (files("bertfast.bench") / "data/sentences.txt").read_text().splitlines()
    text = place / "text.txt"
    text.write_text("\n\n".join("\n".join(lines[i : i + 12]) for i in range(0, len(lines), 12)))
    source = FileSource([text], "text")
    tokenizer = train_vocabulary(source, place / "vocab", VocabularyOptions(size=500), split=False)
    build(source, tokenizer, place / "corpus", Options())
    return place / "corpus"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(measure.SIZES, SIZE, (64, 2, 4))


@pytest.mark.parametrize("dtype", measure.DTYPES)
def test_loss_curves_stay_within_the_bands(folder, dtype):
    found = measure.convergence(Corpus.open(folder), load_tokenizer(folder / "tokenizer"), dtype, 20, SIZE, 512, 1e-3)
    assert found["passed"], {k: found[k] for k in ("loss_of_band", "weights_of_band")}
    assert found["ours"][-1] < found["ours"][0] - 0.1  # or there was nothing to come apart


def test_a_wrong_gradient_leaves_the_band(folder, monkeypatch):
    """The bands are narrow enough to notice one term of the loss that counts a tenth too much."""
    plain = measure.sides

    def skewed(*args, **options):
        stock, ours = plain(*args, **options)
        forward = ours.model.forward

        def heavier(**inputs):
            out = forward(**inputs)
            out.loss = out.loss + 0.1 * (out.nsp_loss - out.nsp_loss.detach())
            return out

        ours.model.forward = heavier
        return stock, ours

    monkeypatch.setattr(measure, "sides", skewed)
    tokenizer = load_tokenizer(folder / "tokenizer")
    found = measure.convergence(Corpus.open(folder), tokenizer, measure.FLOAT32, 20, SIZE, 512, 1e-3)
    assert not found["passed"]


def test_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROWS", (measure.Row(SIZE, 64, 256),))
    app = typer.Typer()
    app.command()(command.main)
    done = CliRunner().invoke(
        app, [str(folder), "--turns", "1", "--steps", "2", "--out", str(tmp_path), "--size", SIZE]
    )
    assert done.exit_code == 0, done.output
    assert {p.name for p in Path(tmp_path).iterdir()} == {"pretraining.json", "pretraining.png"}
    assert "over stock" in done.output
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 2
    assert CliRunner().invoke(app, [str(folder), "--dtype", "float8"]).exit_code == 2
