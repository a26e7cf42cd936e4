"""Which of oneDNN's kernels our products get: its reference loops are right but a hundred times slower."""

import os
import subprocess
import sys

import pytest
import torch

from bertfast.ops import onednn
from bertfast.testing import assert_within_budget, rms_error

_PRODUCTS = """
import torch
from bertfast.ops import onednn
onednn.prefers_unpacked = lambda: onednn.available()
for tokens, inputs, outputs in ((64, 3072, 48), (64, 48, 3072), (1100, 64, 48)):
    x, weight, dy = torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs)
    onednn.linear(x, weight)
    onednn.matmul(dy, weight)
    onednn.matmul(dy.t(), x)
    onednn.matmul(dy[:, ::2], weight[::2])
    onednn.linear(x[:, ::2], weight[:, ::2])
"""


@pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")
def test_no_product_gets_the_reference_loop():
    run = subprocess.run(
        [sys.executable, "-c", _PRODUCTS],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"ONEDNN_VERBOSE": "1"},
    )
    products = [line for line in run.stdout.splitlines() if "exec,cpu,inner_product" in line]
    assert len(products) >= 15, run.stdout[-2000:]
    assert not [line for line in products if "ref" in line.split(",")[6]]


@pytest.mark.parametrize("terms", [768, 1024, 1025, 2304, 3072])
def test_long_sums_stay_within_the_budget(terms, monkeypatch):
    monkeypatch.setattr(onednn, "prefers_unpacked", onednn.available)
    x, weight = torch.randn(96, terms), torch.randn(80, terms)
    bias = torch.randn(80)
    oracle = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    eager = torch.nn.functional.linear(x, weight, bias)
    assert_within_budget(onednn.linear(x, weight, bias), eager, oracle, "product", rms_error)
