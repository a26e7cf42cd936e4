"""Triton's private names: our direct launch is the call that Triton itself makes, and a release that lacks a name has a way out."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
import triton

from bertfast.triton import launch, private

ROOT = Path(__file__).parents[2]
# Triton compiles for sm_90 and hands what it would launch to a driver that only writes it down; then `launch` does it alone.
CONVENTION = """
import torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from bertfast.triton import launch

calls = []

class Launcher:
    def __init__(self, source, metadata):
        pass
    def __call__(self, *args):
        calls.append(args)

class Utils:
    def load_binary(self, *args):
        return 1, 2, 32, 0, 1024
    def unload_module(self, *args):
        pass
    def get_device_properties(self, device):
        return {"max_shared_mem": 1 << 18, "multiprocessor_count": 132, "warpSize": 32}

class Driver:
    launcher_cls, utils = Launcher, Utils()
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 7)
    get_device_capability = staticmethod(lambda device=0: (9, 0))

driver.set_active(Driver())
torch.cuda.current_device = lambda: 0
torch._C._cuda_getCurrentRawStream = lambda device: 7

@triton.jit(do_not_specialize=["rows"])
def kernel(x_ptr, bias_ptr, y_ptr, rows, scale, BLOCK: tl.constexpr, EXTRA: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < rows)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + place)
    tl.store(y_ptr + place, x * scale, mask=place < rows)

x, y = torch.randn(2, 64)
args, constants = (x, None, y, 48, 0.5), {"BLOCK": 64, "EXTRA": True}
for _ in range(2):
    launch.launch(kernel, (3, 2), args, constants, warps=8)
first, second = calls
assert len(launch._compiled) == 1
assert len(first) == len(second), (first, second)
for place, (a, b) in enumerate(zip(first, second)):
    # What profilers hook in: we hand on nothing.
    assert b is None if place in (6, 7, 8) else a is b or a == b, (place, a, b)
assert second[:4] == (3, 2, 1, 7)
print("the same call, options", next(iter(launch._compiled.values())).metadata.enable_fp_fusion)
"""


@pytest.mark.skipif(
    not private.runs_directly(), reason="kernels launch through Triton's own launcher with this release"
)
def test_direct_launches_are_the_calls_that_triton_makes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = tmp_path / "convention.py"  # Triton reads a kernel's source from its file
    script.write_text(CONVENTION)
    # Finds bertfast as this process does.
    command = [
        sys.executable,
        "-c",
        f"import runpy; runpy.run_path({str(script)!r})",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "the same call, options True"


def test_minors():
    assert private.minor_of("3.10.1") == "3.10"
    assert private.minor_of("3.6.0+git12ab") == "3.6"
    assert private.minor() == private.minor_of(triton.__version__)
    assert all(private.runs_directly(f"{minor}.0") for minor in private.DIRECT_MINORS)
    assert not private.runs_directly("3.5.1")
    assert not private.runs_directly("3.10.0")
    assert not private.runs_directly("4.0.0")


def test_an_unknown_release_launches_through_triton(monkeypatch):
    through_triton = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: through_triton.append((grid, args, options))

    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "RUNS_DIRECTLY", False)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    x = torch.zeros(64)
    for _ in range(2):
        launch.launch(Kernel(), (3,), (x, 48), {"BLOCK": 64}, warps=8)
    options = {"BLOCK": 64, "num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
    assert through_triton == [((3,), (x, 48), options)] * 2
    assert launch._compiled == {}


def test_names_that_are_gone_are_said(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match=r"has no JITFunction.arg_names.*use Triton 3.6 to 3.9"):
        private.parameter_names(SimpleNamespace())
    monkeypatch.setattr(triton, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(RuntimeError, match="has no bundled cuobjdump"):
        private.tool("cuobjdump")
    monkeypatch.setitem(sys.modules, "triton.compiler", SimpleNamespace())
    with pytest.raises(RuntimeError, match=r"has no triton.compiler.ASTSource"):
        private.source(None, {}, {}, {})
    monkeypatch.setitem(sys.modules, "triton.backends.compiler", SimpleNamespace())
    with pytest.raises(RuntimeError, match=r"has no triton.backends.compiler.GPUTarget"):
        private.target(90)
    from triton.runtime import interpreter

    monkeypatch.delattr(interpreter.InterpreterBuilder, "create_atomic_rmw")
    with pytest.raises(RuntimeError, match=r"has no InterpreterBuilder.create_atomic_rmw"):
        private.interpreter_builder()
