"""What tests of launching share."""

import pytest
import torch


@pytest.fixture
def on_gpu(monkeypatch):
    """Launches are direct ones, as on a GPU; its streams and devices are pretended."""
    from bertfast.triton import launch

    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0, raising=False)
