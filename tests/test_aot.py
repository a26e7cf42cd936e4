"""Every kernel that a benchmark case launches compiles for sm_80, sm_90 and sm_100 and shows the instructions its case asks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_kernels_compile_and_pass_their_checks():
    pytest.importorskip("triton", reason="Triton is not installed")
    # Another process: in this one Triton may interpret. -m finds benchmarks and bertfast from the root of the repository.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.kernels", "--brief"]
    got = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert got.returncode == 0, f"{got.stdout}\n{got.stderr[-4000:]}"
    assert "0 failed checks" in got.stdout


def test_launch_tables_have_no_fault():
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.tune", "--check"]
    got = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert got.returncode == 0, f"{got.stdout}\n{got.stderr[-4000:]}"


def test_interpreting_is_refused():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu.kernels", "--brief"]
    got = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert got.returncode == 1
    assert "unset it" in got.stderr
