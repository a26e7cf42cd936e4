"""bertfast.triton.sums: the second stage against float64, whatever the number of parts and outputs."""

import pytest
import torch

pytest.importorskip("triton")
from bertfast.triton import sums


@pytest.mark.parametrize(
    ("parts", "outs", "size", "columns"), [(0, 2, 5, 5), (3, 1, 40, 64), (33, 3, 40, 40), (300, 4, 7, 7)]
)
def test_parts_are_added(triton_ops, poisoned, parts, outs, size, columns):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    partial = torch.randn(parts, outs, columns).to(device)

    def run():
        first, second = (torch.empty(size, dtype=torch.float16, device=device) for _ in range(2))
        rest = torch.empty(max(outs - 2, 1), size, device=device)
        given = partial[:, 0].contiguous() if outs == 1 else partial
        sums.add_up(given, first, second if outs > 1 else None, rest if outs > 2 else None)
        return [first, second, *rest][:outs]

    found = run()
    for ours, exact in zip(found, partial.double().sum(0)[:, :size], strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(found, run(), strict=True))
