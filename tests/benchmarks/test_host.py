"""Host times need no GPU: the suite runs, in a process of its own, and counts what a layer and a call launch."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="module")
def printed():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.host", "--calls", "1"]
    found = subprocess.run(command, env=environment | {"COLUMNS": "120"}, capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr  # 1: over a target, which times of one call may be
    assert "Traceback" not in found.stderr
    return found.stdout


def test_every_op_is_there(printed):
    assert len(re.findall(r"^│ \w+_(?:fwd|bwd) ", printed, re.MULTILINE)) == 11


@pytest.mark.parametrize(
    ("what", "side", "kernels", "functions"),
    [
        ("a layer, inference", "ops", 4, 6),  # two functions join weights and biases
        ("a layer, inference", "direct", 4, 5),  # one brings all joined weights up to date
        ("a call of 12 layers, inference", "ops", 49, 73),
        ("a call of 12 layers, inference", "direct", 49, 50),  # 4 products a layer, the copy, zeros for token types
        ("a layer, forward and backward", "modules", 13, 19),  # weights and biases joined twice, seeds drawn one by one
        ("a layer, forward and backward", "at once", 13, 16),
        ("12 layers, forward and backward", "at once", 156, 148),
        (r"optimize\(model\), a whole call, inference", "eager", 49, 54),
        (r"optimize\(model\), a whole call, inference", "replayed", 0, 8),  # and the graph
    ],
)
def test_launches(printed, what, side, kernels, functions):
    assert re.search(rf"│ {what} +│ {side} +│ +\d+ │ +[\d.]+ │ +{kernels} \+ {functions} │", printed), printed


def test_in_the_interpreter_it_says_what_to_do():
    command = [sys.executable, "-m", "benchmarks.gpu.host"]
    found = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "unset TRITON_INTERPRET" in found.stderr
