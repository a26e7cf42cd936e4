"""Every kernel that a benchmark case launches compiles for sm_80, sm_90 and sm_100 and shows the instructions its case asks for."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parent.parent


def run(*command: str, seconds: float = 1800) -> subprocess.CompletedProcess[str]:
    """A module in another process: in this one Triton may interpret. -m finds benchmarks and bertfast from the root."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)


def test_kernels_compile_and_pass_their_checks():
    got = run("benchmarks.gpu.kernels", "--brief")
    assert got.returncode == 0, f"{got.stdout}\n{got.stderr[-4000:]}"
    assert "0 failed checks" in got.stdout


def test_launch_tables_have_no_fault():
    got = run("benchmarks.tune", "--check")
    assert got.returncode == 0, f"{got.stdout}\n{got.stderr[-4000:]}"


@pytest.mark.parametrize("module", ["benchmarks.gpu.kernels", "benchmarks.tune"])
def test_interpreting_is_refused(module, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="unset it"):
        importlib.import_module(module).main()
