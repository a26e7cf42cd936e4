"""What casts and products in FP8 launch, on a pretended GPU: torch's scaled product takes what it is given, and nothing waits."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from fake_cuda import fake_cuda

from bertfast.ops.fp8_cast import triton as casts
from bertfast.ops.fp8_linear.torch_products import fp8_linear

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BF16, FP32 = torch.bfloat16, torch.float32
# Rows, K, N, formats, scales by rows, bias, result; and whether torch's scaled product takes it.
PRODUCTS = [
    (32, 64, 48, (E4M3, E4M3), False, True, BF16, True),
    (7, 64, 48, (E4M3, E4M3), True, True, BF16, True),
    (7, 64, 48, (E5M2, E4M3), False, False, BF16, True),
    (32, 1001, 48, (E5M2, E4M3), False, False, FP32, True),  # a weight's gradient over any number of tokens
    (32, 64, 48, (E4M3, E4M3), False, True, FP32, True),
    (32, 64, 48, (E4M3, E4M3), True, False, FP32, False),
    (32, 64, 40, (E4M3, E4M3), False, False, BF16, False),
    (32, 64, 48, (E5M2, E5M2), False, False, BF16, False),
    (0, 64, 48, (E4M3, E4M3), False, False, BF16, False),
]


@pytest.mark.parametrize(("m", "k", "n", "kinds", "by_rows", "bias", "dtype", "scaled"), PRODUCTS)
def test_product(m, k, n, kinds, by_rows, bias, dtype, scaled):
    with fake_cuda() as gpu:
        with gpu.preparing():
            a, b = torch.empty(m, k, dtype=kinds[0], device="cuda"), torch.empty(n, k, dtype=kinds[1], device="cuda")
            scales = [torch.ones((rows, 1) if by_rows else (), device="cuda") for rows in (m, n)]
            added = torch.zeros(n, device="cuda") if bias else None
        y = fp8_linear(a, b, *scales, added, dtype, True)
        assert y.shape == (m, n)
        assert y.dtype == dtype
    assert gpu.ops["_scaled_mm"] == scaled
    assert gpu.ops["mm"] == (not scaled)


def weights(shapes):
    sources = [torch.empty(shape, dtype=BF16, device="cuda") for shape in shapes]
    targets = [torch.empty(shape, dtype=E4M3, device="cuda") for shape in shapes]
    turned = [torch.empty(shape[::-1], dtype=E4M3, device="cuda") for shape in shapes]
    return sources, torch.empty(len(shapes), device="cuda"), targets, turned


@pytest.mark.parametrize("arch", [80, 90])
def test_casts(arch):
    with fake_cuda(arch) as gpu:
        with gpu.preparing():
            x = torch.empty(64, 48, dtype=BF16, device="cuda")
            scale, amax = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
            many = weights([(48, 32), (32, 48), (16, 16)])
        casts.fp8_cast(x, scale, amax, E4M3, True)
        casts.fp8_cast_rows(x, E4M3)
        casts.fp8_cast_weights(*many)
    names = [launch.kernel.fn.__name__ for launch in gpu.launches]
    ours = ["fp8_cast_kernel", "fp8_cast_rows_kernel", *["fp8_cast_kernel"] * 3]
    assert names == (ours if arch == 90 else [])  # an sm_80 has no instruction for e4m3


def test_weights_are_cast_in_a_launch_each():
    counts = []
    for layers in (2, 12):
        with fake_cuda() as gpu:
            with gpu.preparing():
                many = weights([(96, 32), (32, 32), (64, 32), (32, 64)] * layers)
            casts.fp8_cast_weights(*many)
        counts.append((len(gpu.launches), sum(gpu.ops.values())))
    (few, torchs_few), (many, torchs_many) = counts
    assert (few, many) == (8, 48)
    assert torchs_many == torchs_few  # no op of torch's for each weight
