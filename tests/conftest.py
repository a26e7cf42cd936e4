"""Fixtures that every test shares, and the implementation axis: each op test runs on the reference and on the CPU's owner."""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from bertfast import _ext


def pytest_report_header() -> str:
    absent = _ext.why_absent()
    return f"bertfast extension: {'loaded' if absent is None else 'ABSENT: ' + absent}"


def pytest_collection_finish(session: pytest.Session) -> None:
    # CI sets this: a silent fallback to the references would hide a broken build.
    if os.environ.get("BERTFAST_DEMAND_EXT") == "1" and _ext.why_absent() is not None:
        raise pytest.UsageError(f"BERTFAST_DEMAND_EXT=1 but {_ext.why_absent()}")


@pytest.fixture(params=["reference", "cpu"])
def implementation(request: pytest.FixtureRequest):
    """The namespace of one implementation's ops: the eager reference, or whatever owns the CPU."""
    if request.param == "cpu" and _ext.why_absent() is not None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    return torch.ops.bertfast_reference if request.param == "reference" else torch.ops.bertfast


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend of torch.compile: the traced graph alone, or with code generated around our ops."""
    if request.param == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor compiles with g++, which is not here")
    return request.param


@pytest.fixture(scope="session", autouse=True)
def fresh_inductor_cache(tmp_path_factory: pytest.TempPathFactory):
    # Compiled graphs are cached by their ops, not by the fakes and kernels behind them: one from before a change would pass.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
