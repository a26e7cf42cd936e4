"""The waterfall: counts from the sizes, measured times by kind of work, and a committed page that follows from the data."""

import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import results, waterfall, waterfall_page, whole_steps
from bertfast.models.flops import forward_flops


def work(name):
    return next(work for work in waterfall.works() if name in work.row.name)


LARGE, BASE, INFERENCE = "large training", "base training", "base inference"


def test_the_committed_page_is_what_the_data_say():
    assert waterfall_page.PAGE.read_text(encoding="utf-8") == waterfall_page.page(results.read())
    assert waterfall_page.PICTURE.stat().st_size > 10_000


def test_the_calls_are_those_that_were_measured_by_kernel():
    names = [work.row.name for work in waterfall.works()]
    assert names == [row.name for row in whole_steps.ROWS[:3]]
    assert [work.run["graph_ms"] for work in waterfall.works()] == [73.6, 22.98, 6.293]
    assert waterfall.works()[2].run["sequences"] == len(waterfall.works()[2].row.lengths)


@pytest.mark.parametrize("name", [LARGE, BASE, INFERENCE])
def test_flops_are_those_of_the_model(name):
    """The floors' FLOPs, where the last layer is counted whole, are the model's."""
    one = work(name)
    products = sum(2 * p.rows * p.k * p.n for p in one.products())
    e = one.hidden
    skipped = 2 * (one.tokens - one.last) * 9 * e**2
    config = whole_steps.config_of(one.row)
    attention = one.layers * 4 * e * one.squares
    assert products + skipped + attention == forward_flops(config, one.tokens, one.squares)
    moved = one.layers * 4 * one.tokens * e * 2
    assert one.floors["attention forward"] == pytest.approx(max(attention / waterfall.MATRIX, moved / waterfall.COPY))


def test_counts_by_hand():
    base, large = work(BASE), work(LARGE)
    assert base.last == 2432 + 128
    assert work(INFERENCE).last == 16384
    assert (base.parameters, large.parameters) == (110106428, 336226108)
    # 16 bytes for each bfloat16 parameter: the norm's pass reads the gradient; the update reads four numbers and writes three.
    assert large.floors["optimizer and clipping"] == pytest.approx(336226108 * 16 / 4251e9)
    # Eleven layers write 16384 x 3072 twice and read it three times; the last one only the rows that the heads read.
    cells = (11 * 16384 + 2560) * 3072
    assert base.floors["GELU passes"] == pytest.approx(cells * 2 * 5 / 4251e9)
    assert waterfall.Product(16384, 768, 3072).floor() == pytest.approx(2 * 16384 * 768 * 3072 / 791e12)
    assert waterfall.Product(16, 768, 3072).floor() == pytest.approx((16 * 768 + 3072 * 768 + 16 * 3072) * 2 / 4251e9)


@pytest.mark.parametrize("name", [LARGE, BASE, INFERENCE])
def test_every_kernel_has_a_kind_and_all_add_up(name):
    one = work(name)
    assert one.measured[waterfall.REST] < 0.025 * sum(one.measured.values())
    assert sum(one.measured.values()) == pytest.approx(max(one.run["graph_ms"], one.run["kernels_ms"]) / 1e3)
    for column in waterfall.COLUMNS.values():
        assert set(column(one)) >= {"products", "norms"}
        assert all(seconds >= 0 for seconds in column(one).values())
    totals = {name: sum(column(one).values()) for name, column in waterfall.COLUMNS.items()}
    assert totals["limit, bf16"] < totals["bf16, candidates"] < totals["measured"]
    assert totals["limit, FP8"] < totals["FP8"] < totals["bf16, candidates"]


def test_kinds_are_what_the_lead_of_the_measurement_summed_up():
    """docs/gpu.md, base: products 12.5 with the decoder's, attention 2.9, GELU 2.3, norms 1.55, optimizer 0.8, adds 0.43."""
    took = {kind: 1e3 * seconds for kind, seconds in work(BASE).measured.items()}
    assert took["products"] + took["head and decoder"] == pytest.approx(12.5, abs=0.3)
    assert took["attention forward"] + took["attention backward"] == pytest.approx(2.9, abs=0.05)
    assert took["GELU passes"] == pytest.approx(2.3, abs=0.05)
    assert took["norms"] == pytest.approx(1.55, abs=0.05)
    assert took["optimizer and clipping"] == pytest.approx(0.8, abs=0.05)
    assert took["adds of gradients"] == pytest.approx(0.43, abs=0.01)


def test_new_lines_go_onto_the_page():
    sides = {whole_steps.OWNERS: {"p50": 0.0736, "rate": 222609.0}, whole_steps.FP8: {"error": "no"}}
    shared = {"device": "NVIDIA H200", "date": "2027-01-01T00:00:00", "commit": "abc", "ok": True}
    line = shared | {"stage": "candidates", "case": whole_steps.ROWS[0].name, "sides": sides}
    text = waterfall_page.measured_since([line])
    assert "| bf16 by owners | 73.60 | 222,609 tokens/s | NVIDIA H200, 2027-01-01, abc |" in text
    assert "fp8" not in text
    assert waterfall_page.measured_since([]) == "No line yet.\n"


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    waterfall_page.draw(tmp_path / "images" / "a.png")
    assert (tmp_path / "images" / "a.png").stat().st_size > 10_000


def test_the_data_are_the_graphs_measured_by_hand():
    by_hand = json.loads((results.FOLDER / "whole_graph_by_hand.json").read_text())["rows"]
    for run in json.loads(waterfall.MEASURED.read_text())["runs"]:
        place = [run[name] for name in ("kind", "model", "longest", "tokens", "weights")]
        same = [
            row for row in by_hand if [row[name] for name in ("kind", "model", "seqlen", "tokens", "weights")] == place
        ]
        assert [row["graph_ms"] for row in same] == [run["graph_ms"]]
