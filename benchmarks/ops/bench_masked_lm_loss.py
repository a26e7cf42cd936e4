"""linear_cross_entropy, the vocabulary half of the masked-LM loss, forward and backward against eager PyTorch."""

import pytest
import torch
import torch.nn.functional as F

import bertfast.ops  # noqa: F401  defines the ops

# masked tokens: of one sentence, of a batch of 1000 tokens, of 8192; BERT-base.
ROWS, SIZE, VOCABULARY = (20, 160, 1228), 768, 30522
CASES = [(rows, dtype) for rows in ROWS for dtype in (torch.float32, torch.bfloat16)]


def case_id(case) -> str:
    rows, dtype = case
    return f"{rows}x{SIZE}x{VOCABULARY}-{str(dtype).removeprefix('torch.')}"


def step(case, side):
    rows, dtype = case
    x, weight, bias = torch.randn(rows, SIZE), 2 * torch.randn(VOCABULARY, SIZE) / SIZE**0.5, torch.randn(VOCABULARY)
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
    labels = torch.randint(0, VOCABULARY, (rows,))

    def bertfast_loss():
        return torch.ops.bertfast.linear_cross_entropy_fwd(*leaves, labels, True)[0].sum() / rows

    def eager_loss():
        return F.cross_entropy(F.linear(*leaves), labels)

    loss = bertfast_loss if side == "bertfast" else eager_loss
    return loss, lambda: torch.autograd.grad(loss(), leaves)


@pytest.mark.parametrize("side", ["bertfast", "eager"])
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_training(benchmark, case, direction, side):
    benchmark.group = f"linear_cross_entropy {direction} {case_id(case)}"
    forward, both = step(case, side)
    if direction == "both":
        benchmark(both)
    else:
        with torch.no_grad():
            benchmark(forward)
