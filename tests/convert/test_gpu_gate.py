"""A model on a GPU is fast by default only on architectures where that was measured; elsewhere it needs gpu_kernels=True."""

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
    monkeypatch.setattr(verified, "gate", lambda arch: {})
    checks._gpu_reason.cache_clear()
    yield monkeypatch
    checks._gpu_reason.cache_clear()


def test_verified_is_not_yet_faster(hopper):
    reason = checks._gpu_reason(0, None)
    assert "verified on sm_90, not yet faster than stock" in reason
    assert "gpu_kernels=True" in reason


def test_measured_faster_is_on_by_default(hopper):
    hopper.setattr(verified, "FASTER_THAN_STOCK", frozenset({90}))
    assert checks._gpu_reason(0, None) is None


@pytest.mark.parametrize("unverified", [{}, {"packing": "its kernels never passed"}])
def test_asked_for(hopper, unverified):
    """One op that is not verified is torch's, not a reason to leave the model stock."""
    hopper.setattr(verified, "gate", lambda arch: unverified)
    assert checks._gpu_reason(0, True) is None


def test_refused(hopper):
    hopper.setattr(verified, "FASTER_THAN_STOCK", frozenset({90}))
    assert checks._gpu_reason(0, False) == "gpu_kernels=False"


def test_unverified_ops_are_named(hopper):
    hopper.setattr(verified, "gate", lambda arch: {"packing": "its kernels never passed"})
    reason = checks._gpu_reason(0, None)
    assert "packing not verified on sm_90" in reason
    assert "gpu_kernels=True" in reason


@pytest.mark.parametrize("gpu_kernels", [True, False, None])
def test_the_option_reaches_every_module(gpu_kernels):
    model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    bertfast.optimize(model, gpu_kernels=gpu_kernels)
    options = [m.__dict__["_bertfast"]["gpu_kernels"] for m in model.modules() if "_bertfast" in m.__dict__]
    assert options == [gpu_kernels] * len(options)
    assert len(options) >= 3


def test_half_precision_by_device():
    assert "take float32 and bfloat16" in checks.tensor_reason(torch.zeros(1, dtype=torch.float16))
    assert "no kernels exist for the meta device" in checks.tensor_reason(torch.zeros(1, device="meta"))
