"""The builds of the kernels below what this processor takes pass the same parity tests, of ops and of the encoder in one call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertfast import _ext

OTHERS = [("BERTFAST_CPU_ISA", isa) for isa in ("avx512", "avx2", "portable")]
OTHERS += [("BERTFAST_BFLOAT16", how) for how in ("pairs", "float")]


@pytest.mark.parametrize(("variable", "value"), OTHERS, ids=lambda v: v)
def test_parity_of_other_builds(variable, value):
    extension = _ext.load()
    if extension is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    order, info = ["portable", "avx2", "avx512", "avx512bf16"], extension.build_info()
    if variable == "BERTFAST_BFLOAT16":
        if info["isa_detected"] != order[-1] or info["bfloat16"] == value:
            pytest.skip(f"bfloat16 is multiplied as {info['bfloat16']}, and {value} is that or cannot be had")
    elif order.index(info["isa_detected"]) <= order.index(value):
        pytest.skip(f"{value} is not below what this processor has")
    ops = Path(__file__).parent
    chosen = "not other_builds and (parity and cpu or test_stack and (parity or padded))"
    command = [sys.executable, "-m", "pytest", str(ops), str(ops.parent / "nn/test_stack.py"), "-k", chosen]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env={**os.environ, variable: value, "BERTFAST_DEMAND_EXT": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "test_stack.py" in done.stdout


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
