"""The builds of the kernels below what this processor takes pass the same parity tests, forced in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertfast import _ext


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_parity_of_other_builds(isa):
    extension = _ext.load()
    if extension is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    order = ["portable", "avx2", "avx512", "avx512bf16"]
    if order.index(extension.build_info()["isa_detected"]) <= order.index(isa):
        pytest.skip(f"{isa} is not below what this processor has")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(Path(__file__).parent),
            "-k",
            "parity and cpu and not other_builds",
            "-p",
            "no:cacheprovider",
        ],
        env={**os.environ, "BERTFAST_CPU_ISA": isa, "BERTFAST_DEMAND_EXT": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_forcing_is_seen():
    if _ext.load() is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    code = "from bertfast import _ext; print(_ext.load().build_info()['isa'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "BERTFAST_CPU_ISA": "portable"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "portable"
