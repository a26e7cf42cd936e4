"""The candidate of linear by CUTLASS, a weight's gradient: as test_linear_gelu_cutlass.py, with the same twin."""

import pytest
import torch
from test_linear_gelu_cutlass import called  # noqa: F401  the fixture

from bertfast.testing import assert_within_budget

pytest.importorskip("triton", reason="Triton is not installed")
from bertfast.ops.linear import cutlass

# Tokens, N, K: fewer tiles than processors; tails of everything, tokens among them; more tiles than processors, on a GPU.
SIZES = [(1024, 256, 512), (1100, 136, 264), (1027, 8, 1032), (2048, 3072, 1032)]


@pytest.fixture(params=["triton"])
def implementation(candidate_ops, called):  # noqa: F811
    return candidate_ops


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_weight_gradient(implementation, size, sums, called):  # noqa: F811
    t, n, k = size
    if not torch.cuda.is_available() and sums and t * n > 2**20:
        pytest.skip("column sums take long in the interpreter")
    dy, x = torch.randn(t, n).bfloat16(), torch.randn(t, k).bfloat16()
    dweight, dbias = implementation.linear_dweight(dy, x, torch.bfloat16, sums)
    assert called == ["linear_dweight"]
    assert_within_budget(dweight, dy.t() @ x, dy.double().t() @ x.double(), "dweight")
    if sums:
        assert_within_budget(dbias, dy.sum(0), dy.double().sum(0), "dbias")
    else:
        assert dbias.shape == (0,)


def test_the_same_bits_again(implementation):
    dy, x = torch.randn(1100, 136).bfloat16(), torch.randn(1100, 264).bfloat16()
    first, again = (implementation.linear_dweight(dy, x, torch.bfloat16, False)[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("t", "n", "dtype", "result"),
    [
        (64, 64, torch.bfloat16, torch.bfloat16),
        (1024, 60, torch.bfloat16, torch.bfloat16),
        (1024, 64, torch.bfloat16, torch.float32),
        (1024, 64, torch.float32, torch.float32),
        (0, 64, torch.bfloat16, torch.bfloat16),
    ],
    ids=["few tokens", "alignment", "float32 result", "float32", "empty"],
)
def test_the_rest_is_the_owners(called, t, n, dtype, result):  # noqa: F811
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dy, x = torch.randn(t, n, device=device).to(dtype), torch.randn(t, 64, device=device).to(dtype)
    dweight, _ = cutlass.linear_dweight(dy, x, result, False)
    assert called == []
    assert (dweight.shape, dweight.dtype) == ((n, 64), result)


def test_sizes_that_differ_are_refused(called):  # noqa: F811
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dy, x = (torch.zeros(t, 64, dtype=torch.bfloat16, device=device) for t in (1024, 1032))
    with pytest.raises(ValueError, match="linear_dweight: the product's depth are 1024 by one tensor and 1032"):
        cutlass.linear_dweight(dy, x, torch.bfloat16, False)
