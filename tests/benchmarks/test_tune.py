"""The tuner without a GPU: which tiles are tried, which wins, and how it is written down."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import tune
from benchmarks.gpu import results
from benchmarks.gpu.case import Case
from bertfast.triton import tables

TEXT = """{
 "copy": {
  "fields": {"rows": [1, 2], "warps": [2, 4, 8]},
  "also": [{"rows": 16, "warps": 1}],
  "entries": [
   {"arch": 80, "bits": 16, "tile": {"rows": 2, "warps": 4}, "reason": "predicted: two"},
   {"arch": 90, "bits": 16, "tile": {"rows": 1, "warps": 4}, "reason": "predicted: one"},
   {"arch": 80, "bits": 32, "tile": {"rows": 1, "warps": 8}, "reason": "predicted: wide"}
  ]
 }
}
"""


@pytest.fixture
def found(tmp_path: Path) -> tables.Tables:
    file = tmp_path / "launch.json"
    file.write_text(TEXT)
    return tables.Tables("x", file)


def test_an_entry_serves_its_architecture_and_newer_ones(found):
    assert found.find("copy", 80, bits=16) == {"rows": 2, "warps": 4}
    assert found.find("copy", 89, bits=16) == {"rows": 2, "warps": 4}
    assert found.find("copy", 120, bits=16) == {"rows": 1, "warps": 4}
    assert found.get("copy", 75, bits=16) is None
    assert found.find("copy", 90, bits=16, d=64) == {"rows": 1, "warps": 4}
    with pytest.raises(KeyError, match=r"no entry of 'copy' for sm_90 and \{'bits': 8\}"):
        found.find("copy", 90, bits=8)


def test_overrides_end_and_reached_entries_are_seen(found):
    first = found.entries[0]
    with tables.reached() as seen, tables.override({first: {"rows": 1, "warps": 2}}):
        assert found.find("copy", 80, bits=16) == {"rows": 1, "warps": 2}
        found.find("copy", 80, used=False, bits=32)
    assert seen == {first}
    assert found.find("copy", 80, bits=16) == {"rows": 2, "warps": 4}


def test_all_combinations_or_one_and_two_steps(found):
    first = found.entries[0]
    tiles = tune.candidates(found, first)
    assert tiles[:2] == [{"rows": 2, "warps": 4}, {"rows": 16, "warps": 1}]
    assert len(tiles) == 7
    found.fields["copy"]["warps"] = [*range(1, 41)]
    # 80 combinations: one and two steps away, which here is all but what repeats.
    around = tune.candidates(found, first)
    assert {"rows": 1, "warps": 40} in around
    assert len(around) == 81
    found.fields["copy"] |= {"stages": [1, 2, 3], "k": [1, 2]}
    first.tile.update(stages=1, k=1)
    far = [tile for tile in tune.candidates(found, first)[2:] if sum(tile[f] != first.tile[f] for f in first.tile) > 2]
    assert not far


def test_a_winner_gains_clearly_and_loses_nowhere():
    assert tune.choose([[1.0, 0.5, 0.99], [1.0, 0.5, 0.99]]) == (1, 2.0)
    assert tune.choose([[1.0, 0.99], [1.0, 0.99]]) == (0, 1.0)  # less than GAIN
    assert tune.choose([[1.0, 0.5], [1.0, 1.1]]) == (0, 1.0)  # slower on one case
    assert tune.choose([[1.0, 0.5], [1.0, math.inf]]) == (0, 1.0)  # failed on one case
    assert tune.finalists([[1.0, 3.0, math.inf, 0.5], [1.0, 1.0, 1.0, 0.5]]) == [0, 3, 1]


def test_what_was_measured_is_written_beside_or_in_place(found):
    measured = {"device": "NVIDIA H200", "date": "2026-11-24", "code": "abc", "gain": 1.25, "cases": {"x": 3.0}}
    found.record(found.entries[1], 90, {"rows": 2, "warps": 8}, "measured on it", measured)
    found.record(found.entries[2], 90, {"rows": 2, "warps": 2}, "measured on it", measured)
    again = tables.Tables("x", found.file)
    assert again.find("copy", 90, bits=16) == {"rows": 2, "warps": 8}
    assert again.find("copy", 80, bits=16) == {"rows": 2, "warps": 4}
    assert again.find("copy", 90, bits=32) == {"rows": 2, "warps": 2}
    assert again.find("copy", 80, bits=32) == {"rows": 1, "warps": 8}
    assert [entry.measured for entry in again.entries] == [None, measured, None, measured]
    before = found.file.read_text()
    assert before.count("\n") == TEXT.count("\n") + 1  # one entry a line


def test_a_broken_tile_does_not_agree():
    x = torch.randn(64, 64).bfloat16()
    assert tune.agrees((x, torch.arange(3)), (x + 2**-8 * x, torch.arange(3)))
    assert not tune.agrees(x, x.roll(1, 0))
    assert not tune.agrees(torch.arange(3), torch.arange(3) + 1)
    assert not tune.agrees(torch.full_like(x, math.nan), x)


def test_residency_is_limited_by_what_runs_out_first():
    good = {"registers": 128, "stack": 0, "shared": 0, "warps": 4, "sass": {}}
    assert tune.summarise(90, [(good, "")]).programs == 4
    assert tune.summarise(90, [(good | {"shared": 100 * 1024}, "")]).programs == 2
    assert tune.summarise(90, [(good | {"registers": 24}, "")]).warps == 64
    assert tune.summarise(80, [(good | {"shared": 200 * 1024}, "")]).error == "204800 bytes of shared memory"
    assert tune.summarise(80, [(good, ""), (None, "no")]).error == "no"


def test_a_tile_that_spills_in_any_case_spills():
    small, large = tune.Code(registers=255, stack=600, programs=1, spills=True), tune.Code(registers=40, shared=9)
    both = tune.worst([small, large])
    assert (both.spills, both.registers, both.stack, both.shared, both.programs) == (True, 255, 600, 9, 1)
    assert tune.worst([large, tune.Code(error="no")]).error == "no"


def test_tuning_finds_the_fastest_tile_that_agrees(found, capsys):
    entry, costs = found.entries[0], []

    class Cost:
        """A clock on which a tile takes its rows times its warps, to the power of `weight`, whatever the machine does."""

        def __init__(self, weight):
            self.weight = weight

        def start(self, thunk):
            thunk()
            return costs[-1] ** self.weight

        def seconds(self, token):
            return token

    def run(x):
        tile = found.find("copy", 80, bits=16)
        costs.append(tile["rows"] * tile["warps"])
        if tile == {"rows": 1, "warps": 8}:
            raise RuntimeError("misaligned address")
        return torch.full_like(x, -1.0) if tile == {"rows": 1, "warps": 2} else x  # the cheapest is wrong

    case = Case("unpad", "x", torch.float32, lambda device: (torch.ones(3, 3, device=device),), bytes=1, run=run)
    tiles, device = tune.candidates(found, entry)[:1] + tune.candidates(found, entry)[2:], torch.device("cpu")
    tile, reason, measured = tune.tune(entry, tiles, [case], device, Cost(1))
    assert "misaligned address" in capsys.readouterr().err
    assert tile == {"rows": 1, "warps": 4}
    assert reason.startswith("measured on")
    assert "2.00x as fast as the tile before, of 6 over 1 cases" in reason
    assert measured["cases"] == {case.name: 4e6}
    tile, reason, _ = tune.tune(entry, tiles, [case], device, Cost(0.01))  # at most 0.7 % to gain
    assert tile == entry.tile
    assert "none faster" in reason


def test_a_faulty_table_is_named(found, monkeypatch):
    monkeypatch.setattr(tables, "_loaded", {"x": found})
    everything = {entry: [] for entry in found.entries}
    assert tune.faults({80: everything, 90: everything}) == []
    (wrong,) = tune.faults({80: {found.entries[0]: []}, 90: everything})
    assert wrong.endswith("copy sm_80 bits=32: no case reaches it")
    found.file.write_text(json.dumps(json.loads(TEXT), indent=1))
    assert "one entry must be one line" in tune.faults({})[0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"rows": 2, "warps": 4}', '"rows": 2, "warps": 3}', "table 'copy', entry 0: warps 3 is not among its fields'"),
        ('"rows": 2, "warps": 4}', '"rows": 2, "warps": "4"}', "entry 0: tile must have the numbers"),
        ('"rows": 2, "warps": 4}', '"rows": 2, "wraps": 4}', "entry 0: tile must have the numbers"),
        ('"rows": 16, "warps": 1}', '"rows": 16, "wraps": 1}', "a tile under also must have the numbers"),
        ('"arch": 90', '"arch": 95', "entry 1: arch must be one of"),
        ('"arch": 90', '"arch": "90"', "entry 1: arch must be one of"),
        ('"arch": 90, ', "", "entry 1: must have arch, tile and reason"),
        ('"predicted: one"', '"because"', "entry 1: reason must begin with"),
        ('"predicted: one"', '"measured on my word"', "entry 1: reason must begin with"),
        ('"predicted: one"}', '"measured on it", "measured": {"device": "x"}}', "entry 1: measured must have"),
        ('"fields"', '"fieldss"', "table 'copy' must have fields and entries"),
        ('"predicted: two"},', '"predicted: two"}', "no JSON"),
    ],
)
def test_what_a_file_must_hold(tmp_path, before, after, message):
    file = tmp_path / "launch.json"
    assert before in TEXT
    file.write_text(TEXT.replace(before, after))
    with pytest.raises(ValueError, match=re.escape(str(file)) + f".*{re.escape(message)}"):
        tables.Tables("x", file)


def test_the_tuner_goes_on_behind_what_it_measured_on_this_device(found, monkeypatch):
    monkeypatch.setattr(tables, "_loaded", {"x": found})
    monkeypatch.setattr(tune._library, "owners", lambda key: {})
    measured = {
        "device": results.environment()["device"],
        "date": "2026-11-24",
        "code": "abc",
        "gain": 1.0,
        "cases": {},
    }
    assert tune.measured_here() == frozenset()
    found.record(found.entries[1], 90, {"rows": 1, "warps": 4}, "measured on it", measured)
    found.record(found.entries[2], 90, {"rows": 1, "warps": 4}, "measured on it", measured | {"device": "another"})
    monkeypatch.setattr(tables, "_loaded", {"x": tables.Tables("x", found.file)})
    assert tune.measured_here() == {"x copy sm_90 bits=16"}
