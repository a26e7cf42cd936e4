"""A second derivative through an op is an error, never a number with terms left out; packing, which is linear, has one."""

import pytest
import torch

from bertfast import ops

IDS = torch.tensor([1, 0, 2])
HEAD = {
    "dense_weight": torch.eye(4),
    "dense_bias": torch.ones(4),
    "norm_weight": torch.ones(4),
    "norm_bias": torch.ones(4),
}
ROWS = {
    "dropout_add_norm": lambda w: ops.dropout_add_norm(torch.ones(3, 4) + w, None, w[0], w[1]),
    "embedding_sum_norm": lambda w: ops.embedding_sum_norm(IDS, w, w, w, w[0], w[1]),
    "linear": lambda w: ops.linear(w, w, w[:, 0]),
    "linear_gelu": lambda w: ops.linear_gelu(w, w, w[:, 0]),
    "masked_lm_loss": lambda w: ops.masked_lm_loss(w, IDS, **HEAD, decoder_weight=w, decoder_bias=w[:, 0])[0],
    "attention": lambda w: ops.attention(w.view(1, 3, 2, 2), torch.tensor([0, 1], dtype=torch.int32), 1),
    "attention_padded": lambda w: ops.attention_padded(w.view(1, 1, 3, 2, 2)),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_second_derivatives_are_refused(name):
    w = torch.randn(3, 4, requires_grad=True)
    # After sum() the incoming gradient is a constant; only w itself would carry the second derivative.
    (once,) = torch.autograd.grad(ROWS[name](w).sum(), w)
    (twice,) = torch.autograd.grad(ROWS[name](w).sum(), w, create_graph=True)
    torch.testing.assert_close(once, twice)
    with pytest.raises(RuntimeError, match="no second derivative"):
        twice.square().sum().backward()


def test_packing_differentiates_twice():
    packing = ops.pack(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ops.repad(ops.unpad(x, packing).sin(), packing), (x,))
