"""A model on a GPU is fast by default only where every kernel has passed there; the rest needs unverified_kernels=True."""

import pytest
import torch
from transformers import BertConfig, BertModel

import bertfast
from bertfast.convert import checks
from bertfast.triton import verified


@pytest.fixture
def hopper(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    checks._gpu_reason.cache_clear()
    yield monkeypatch
    checks._gpu_reason.cache_clear()


def table(monkeypatch, ops):
    entry = {"date": "2026-01-01", "device": "test", "commit": "0"}
    monkeypatch.setattr(verified, "_table", lambda: {"90": dict.fromkeys(ops, entry)})


def test_all_verified_is_fast(hopper):
    table(hopper, verified.folders())
    assert checks._gpu_reason(0, False) is None
    assert verified.architectures() == [90]


def test_one_missing_stays_stock_unless_allowed(hopper):
    table(hopper, verified.folders()[1:])
    reason = checks._gpu_reason(0, False)
    assert "not been verified on sm_90" in reason
    assert "unverified_kernels=True" in reason
    assert checks._gpu_reason(0, True) is None
    assert verified.architectures() == []


def test_the_option_reaches_every_module():
    model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    bertfast.optimize(model, unverified_kernels=True)
    options = [m.__dict__["_bertfast"]["unverified_kernels"] for m in model.modules() if "_bertfast" in m.__dict__]
    assert options == [True] * len(options)
    assert len(options) >= 3


def test_half_precision_by_device():
    assert "take float32 and bfloat16" in checks.tensor_reason(torch.zeros(1, dtype=torch.float16))
    assert "no kernels exist for the meta device" in checks.tensor_reason(torch.zeros(1, device="meta"))
