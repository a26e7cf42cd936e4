"""The candidate for linear's backward: what its owner's test asks, the gradient's dtype, and how rows are split and ended."""

import pytest
import torch
from test_linear import test_parity_of_the_implementations  # noqa: F401  collected here with the candidate

from bertfast.testing import assert_within_budget

pytest.importorskip("triton")
from bertfast import _library
from bertfast.ops.linear import ending_sums
from bertfast.triton import counters, launch


@pytest.fixture(params=["triton"])
def implementation(candidate_ops):
    """Linear's forward has no candidate."""

    class Both:
        linear_bwd = staticmethod(candidate_ops.linear_bwd)

        def linear_fwd(self, *args):
            device = "cpu" if candidate_ops.interpreted else "cuda"
            moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
            return _library.owner("linear_fwd", "CUDA")(*moved).cpu()

    return Both()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 5, 700])
def test_a_float32_weight_gets_a_float32_bias_gradient(implementation, rows, dtype):
    dy, weight = torch.randn(rows, 300).to(dtype), torch.zeros(300, 8)
    *_, dbias = implementation.linear_bwd(dy, torch.zeros(rows, 8, dtype=dtype), weight, True, False, False)
    assert dbias.dtype == torch.float32
    assert_within_budget(dbias, dy.float().sum(0), dy.double().sum(0), "dbias")


def test_without_counters_the_bits_are_the_same(implementation, monkeypatch):
    # As in a capture by somebody else, whose graphs may run beside one another.
    dy, weight = torch.randn(1100, 40), torch.zeros(40, 8)
    call = (dy, torch.zeros(1100, 8), weight, True, False, False)
    *_, found = implementation.linear_bwd(*call)
    monkeypatch.setattr(counters, "of", lambda x, count: None)
    assert torch.equal(implementation.linear_bwd(*call)[2], found)


@pytest.mark.parametrize(
    ("rows", "cols", "chunk", "parts"),
    [(128, 2304, 16, 8), (8192, 2304, 128, 64), (16384, 2304, 256, 64), (16384, 3072, 256, 64), (65536, 768, 256, 256)],
)
def test_how_rows_are_split(triton_ops, rows, cols, chunk, parts):
    with launch.recording(90) as launches:
        ending_sums.column_sum(torch.empty(rows, cols, dtype=torch.bfloat16, device="meta"), torch.float32)
    (only,) = launches
    constants = dict(only.constants)
    assert constants["CHUNK"] == chunk
    assert constants["DEEP"] == (parts > 16)
    assert only.grid == (-(-cols // 256), parts)
    assert ("out_ptr", "*fp32") in only.signature


def test_without_counters_sets_are_added_by_launches(triton_ops, monkeypatch):
    monkeypatch.setattr(counters, "of", lambda x, count: None)
    with launch.recording(90) as launches:
        ending_sums.column_sum(torch.empty(16384, 2304, dtype=torch.bfloat16, device="meta"))
    assert [(one.kernel.__name__, one.grid) for one in launches] == [
        ("ending_column_sum_kernel", (9, 64)),
        ("last_sums_kernel", (9, 4)),
        ("last_sums_kernel", (9, 1)),
    ]
