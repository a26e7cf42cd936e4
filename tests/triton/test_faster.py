"""The look-up of committed times: which line is nearest to a call, and what it says."""

import json

import pytest
import torch

from benchmarks.gpu import faster as writer
from benchmarks.gpu import results
from bertfast.triton import faster

BF16 = torch.bfloat16


def line(
    case: str,
    ratio: float,
    hidden=768,
    layers=12,
    tokens=16384,
    seqlen=128,
    dtype="bfloat16",
    device="NVIDIA H200",
    train=False,
):
    return {
        "case": case,
        "device": device,
        "date": "2026-01-01T00:00:00+00:00",
        "commit": "abc",
        "dtype": dtype,
        "hidden": hidden,
        "layers": layers,
        "tokens": tokens,
        "seqlen": seqlen,
        "train": train,
        "ratio": ratio,
    }


@pytest.fixture
def table(monkeypatch):
    """Sets the committed lines of sm_90."""

    def install(*lines):
        monkeypatch.setattr(faster, "_table", lambda: {"90": list(lines)})
        faster._slower.cache_clear()

    yield install
    faster._slower.cache_clear()


def test_without_lines_nothing_is_known_to_be_slower(table):
    table()
    assert faster.slower_reason(90, BF16, 768, 12, 16384) is None
    assert faster.dtype_reason(90, BF16) is None
    assert faster.dtype_reason(90, torch.float16) is None
    assert "float32" in faster.dtype_reason(90, torch.float32)
    assert "not yet timed" in faster.remark(90, BF16)
    assert "0.42 to 0.9" in faster.remark(90, BF16)
    assert "0.42 to 0.9" not in faster.remark(90, torch.float32)


def test_the_nearest_size_decides(table):
    table(line("many", 0.9), line("one", 9.0, tokens=128), line("large", 1.2, hidden=1024, layers=24))
    assert "0.90 of stock's speed in many (NVIDIA H200, 2026-01-01)" in faster.slower_reason(90, BF16, 768, 12, 8192)
    assert faster.slower_reason(90, BF16, 768, 12, 256) is None
    assert faster.slower_reason(90, BF16, 1024, 24, 16384) is None
    assert faster.slower_reason(90, BF16, 384, 6, 16) is None
    assert "many" in faster.slower_reason(90, BF16, 384, 6, 4096)


def test_other_dtypes_and_architectures_do_not_count(table):
    table(line("many", 0.9), line("float32", 1.1, dtype="float32"))
    assert faster.slower_reason(90, torch.float32, 768, 12, 16384) is None
    assert faster.slower_reason(80, BF16, 768, 12, 16384) is None
    assert faster.dtype_reason(90, torch.float32) is None
    assert "float32" in faster.dtype_reason(80, torch.float32)


def test_inference_and_training_do_not_count_for_each_other(table):
    table(line("inference", 0.9), line("training", 1.2, train=True), line("training", 1.1, train=True, dtype="float32"))
    assert "0.90" in faster.slower_reason(90, BF16, 768, 12, 16384)
    assert faster.slower_reason(90, BF16, 768, 12, 16384, train=True) is None
    assert "no committed result shows float32 faster" in faster.dtype_reason(90, torch.float32)
    assert faster.dtype_reason(90, torch.float32, True) is None
    assert "float32 training faster" in faster.dtype_reason(80, torch.float32, True)
    assert "0.90 to 0.90" in faster.remark(90, BF16)
    assert "captured training calls in bfloat16 ran at 1.20 to 1.20" in faster.remark(90, BF16, True)
    assert [len(faster.slower(90, BF16, train)) for train in (False, True)] == [1, 0]


def test_of_equally_near_lines_the_slowest_decides_and_length_tells_them_apart(table):
    table(line("short", 1.3), line("long", 0.8, seqlen=512), line("long, half", 2.3, seqlen=512))
    assert "long" in faster.slower_reason(90, BF16, 768, 12, 16384)
    assert faster.slower_reason(90, BF16, 768, 12, 16384, seqlen=128) is None
    assert "0.80" in faster.slower_reason(90, BF16, 768, 12, 16384, seqlen=384)


def test_equal_speed_is_not_slower(table):
    table(line("equal", 1.0))
    assert faster.slower_reason(90, BF16, 768, 12, 16384) is None


def test_numbers_of_tokens_share_look_ups(table):
    table(line("many", 0.9))
    for tokens in range(1, 5000):
        faster.slower_reason(90, BF16, 768, 12, tokens)
    assert faster._slower.cache_info().currsize < 100


def _committed(case: str, **more):
    shared = {"stage": "encoder", "ok": True, "arch": 90, "dirty": False, "path": "captured"}
    return shared | line(case, 0.0) | {"peers": {"stock": {"ratio": 1.5}, "stock cudnn": {"ratio": 0.5}}} | more


def test_only_captured_lines_that_went_well_are_written():
    lines = [
        _committed("a"),
        _committed("a", date="2026-01-02T00:00:00+00:00", peers={"stock": {"ratio": 0.94321}}, dirty=True),
        _committed("eager", path="eager"),
        _committed("training", train=True),
        _committed("eager training", train=True, path="eager"),
        _committed("failed", ok=False),
        _committed("no GPU", arch=0),
        _committed("stock failed", peers={"stock": {"error": "no memory"}}),
        {name: value for name, value in _committed("older").items() if name != "path"},
    ]
    ((arch, rows),) = writer.table(lines).items()
    assert arch == "90"
    assert rows == [
        line("a", 0.9432) | {"date": "2026-01-02T00:00:00+00:00", "commit": "abc+dirty"},
        line("training", 1.5, train=True),
    ]


def test_shipped_table_is_what_the_command_writes(tmp_path):
    writer.write(tmp_path / "faster.json")
    assert faster.FILE.read_text() == (tmp_path / "faster.json").read_text(), "run: python -m benchmarks.gpu verified"
    assert json.loads(faster.FILE.read_text()) == faster._table()


def test_times_are_no_code(tmp_path):
    (tmp_path / "bertfast").mkdir()
    before = results.code(tmp_path)
    (tmp_path / "bertfast" / "faster.json").write_text("{}")
    assert results.code(tmp_path) == before
