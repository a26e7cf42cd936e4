"""A GPU that is not there, as far as the policy of what is fast by default asks for one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bertfast.convert import checks
from bertfast.triton import faster, verified

LINE = {
    "case": "BERT-base inference 32x512 full",
    "device": "NVIDIA H200",
    "date": "2026-01-01T00:00:00+00:00",
    "commit": "abc",
    "dtype": "bfloat16",
    "hidden": 768,
    "layers": 12,
    "tokens": 16384,
    "seqlen": 512,
    "train": False,
    "ratio": 0.93,
}


@contextmanager
def pretended_hopper() -> Iterator[pytest.MonkeyPatch]:
    """sm_90 with every op verified and no committed line of a captured call."""
    pytest.importorskip("triton", reason="Triton is not installed")
    caches = (checks.gpu_reason, checks.architecture, faster._slower)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
        patch.setattr(verified, "gate", lambda arch: {})
        patch.setattr(faster, "_table", dict)
        for cache in caches:
            cache.cache_clear()
        yield patch
    for cache in caches:
        cache.cache_clear()
