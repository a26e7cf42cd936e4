"""The benchmark of FP8: recipes trained beside bfloat16, what is drawn of them, and what is predicted from measured times."""

import json
from pathlib import Path

import pytest

from benchmarks import fp8, fp8_counts
from benchmarks.pretraining.measure import BANDS, BFLOAT16


def test_committed_curves_are_within_the_band():
    """The default recipe's over 300 steps, which is what docs/fp8.md says of it."""
    runs = json.loads((fp8.RESULTS / "fp8_curves.json").read_text())["runs"]
    base, default = runs[0], next(run for run in runs if run["name"] == fp8.VARIANTS[1].name)
    assert base["name"] == "bfloat16"
    assert len(base["losses"]) == len(default["losses"]) == 300
    again = fp8.compared({key: default[key] for key in ("name", "losses", "held_out")}, base)
    assert again == default
    assert default["of_band"] <= 1
    assert default["losses"] != base["losses"]


def test_a_loss_outside_of_the_band():
    base = {"losses": [2.0, 2.0], "held_out": 1.0}
    band = BANDS[BFLOAT16]
    far = fp8.compared({"losses": [2.0, 2.0 + 2 * (band.atol + band.rtol * 2)], "held_out": 1.5}, base)
    assert far["of_band"] == pytest.approx(2)
    assert far["held_out_difference"] == 0.5


def test_committed_sentences():
    rows = json.loads((fp8.RESULTS / "fp8_sentences.json").read_text())["rows"]
    bfloat16, in_fp8 = rows
    assert (bfloat16["products"], in_fp8["products"]) == ("bfloat16", "fp8")
    assert bfloat16["token_error"] < in_fp8["token_error"] < 0.1
    assert 0.995 < in_fp8["cosine_mean"] < bfloat16["cosine_mean"]


def test_draw(tmp_path: Path):
    pytest.importorskip("matplotlib")
    runs = [{"name": n, "losses": [3.0, 2.0], "held_out": 2.0, "of_band": 0.0, "last": 0.0} for n in ("bfloat16", "b")]
    runs = [run | {"held_out_difference": 0.0} for run in runs]
    (tmp_path / "fp8_curves.json").write_text(json.dumps({"runs": runs}))
    fp8.draw(tmp_path)
    assert (tmp_path / "fp8_curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", fp8_counts.SIZES)
def test_counts(name):
    columns, layers, step, call, _ = fp8_counts.SIZES[name]
    training, inference = fp8_counts.training(columns, layers), fp8_counts.inference(columns, layers)
    assert 0 < training["a step"] < step
    assert 0 < inference["a pass"] < call
    assert all(
        (value > 0) == part.startswith("products") for part, value in training.items() if not part.startswith("a ")
    )
