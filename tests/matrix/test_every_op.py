"""Every op once, forward and backward, small: what `make matrix` runs on every set of versions, beside the whole suite of one."""

import pytest
import torch

from bertfast import _library
from bertfast.testing import assert_within_budget, rms_error

TOKENS, SIZE, HEADS, HEAD, WORDS = 21, 64, 2, 32, 70
RNG = torch.tensor([7, 3])


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def lengths() -> torch.Tensor:
    return torch.tensor([0, 9, 9, TOKENS], dtype=torch.int32)


def mask() -> torch.Tensor:
    """[3, 1, 1, 8] additive, ragged."""
    real = torch.arange(8) < torch.tensor([8, 3, 5])[:, None]
    return torch.zeros(3, 1, 1, 8).masked_fill_(~real[:, None, None, :], torch.finfo(torch.float32).min)


def norm():
    x, bias, residual, weight, shift = (
        numbers(TOKENS, SIZE),
        numbers(SIZE),
        numbers(TOKENS, SIZE),
        numbers(SIZE),
        numbers(SIZE),
    )
    forward = (x, bias, residual, weight, shift, 1e-12, 0.2, RNG)
    return forward, lambda y, mean, rstd: (numbers(TOKENS, SIZE), x, bias, residual, weight, mean, rstd, 0.2, RNG)


def attention():
    qkv = numbers(TOKENS, 3, HEADS, HEAD)
    rest = (lengths(), 12, 0.2, 0.2, RNG)
    return (qkv, *rest), lambda out, lse: (numbers(*out.shape), qkv, out, lse, *rest)


def attention_padded():
    qkv = numbers(3, 8, 3, HEADS, HEAD)
    rest = (mask(), 0.2, 0.2, RNG)
    return (qkv, *rest), lambda out, lse: (numbers(*out.shape), qkv, out, lse, *rest)


def embeddings():
    ids = (torch.arange(TOKENS) * 5 % WORDS, torch.arange(TOKENS) % 16, torch.arange(TOKENS) % 2)
    tables = (numbers(WORDS, SIZE), numbers(16, SIZE), numbers(2, SIZE), numbers(SIZE))
    forward = (*ids, *tables, numbers(SIZE), 0, 1e-12, 0.2, RNG)
    return forward, lambda y, mean, rstd: (numbers(TOKENS, SIZE), *ids, *tables, mean, rstd, 0, 0.2, RNG)


def tied_embeddings():
    forward, backward = embeddings()
    return forward, lambda *found: (numbers(WORDS, SIZE), *backward(*found))


def linear():
    x, weight, bias = numbers(TOKENS, SIZE), numbers(48, SIZE), numbers(48)
    return (x, weight, bias), lambda y: (numbers(TOKENS, 48), x, weight, True, True, True)


def bias_gelu():
    pre, bias = numbers(TOKENS, SIZE), numbers(SIZE)
    return (pre, bias, False), lambda y: (numbers(TOKENS, SIZE), pre, bias, False)


def linear_gelu():
    x, weight, bias = numbers(TOKENS, SIZE), numbers(48, SIZE), numbers(48)
    return (x, weight, bias, False), lambda y, pre: (numbers(TOKENS, 48), x, weight, bias, pre, False, True, True)


def cross_entropy():
    x, weight, bias = numbers(TOKENS, SIZE), numbers(WORDS, SIZE), numbers(WORDS)
    labels = torch.arange(TOKENS) * 3 % WORDS
    labels[::4] = -100

    def backward(loss, lse, argmax, kept):
        return numbers(TOKENS), x, weight, bias, labels, lse, kept, True, True, True

    return (x, weight, bias, labels, False), backward


def inferred():
    return linear_gelu()[0], None


def dgelu():
    return (numbers(TOKENS, 48), numbers(48, SIZE), numbers(TOKENS, SIZE), numbers(SIZE), False), None


def added():
    return (numbers(TOKENS, 48), numbers(48, SIZE), numbers(TOKENS, SIZE)), None


def weight_gradient():
    return (numbers(TOKENS, 48), numbers(TOKENS, SIZE), torch.float32, True), None


def packing():
    return (torch.arange(8) < torch.tensor([8, 3, 5])[:, None],), None


def unpad():
    return (numbers(24, SIZE), torch.tensor([0, 1, 5, 9, 23])), None


def repad():
    return (numbers(5, SIZE), torch.tensor([0, 1, 5, 9, 23]), 24), None


CASES = {
    ("dropout_add_norm_fwd", "dropout_add_norm_bwd"): norm,
    ("attention_fwd", "attention_bwd"): attention,
    ("attention_padded_fwd", "attention_padded_bwd"): attention_padded,
    ("embedding_sum_norm_fwd", "embedding_sum_norm_bwd"): embeddings,
    ("embedding_sum_norm_fwd", "embedding_sum_norm_tied_bwd"): tied_embeddings,
    ("linear_fwd", "linear_bwd"): linear,
    ("bias_gelu_fwd", "bias_gelu_bwd"): bias_gelu,
    ("linear_gelu_fwd", "linear_gelu_bwd"): linear_gelu,
    ("linear_cross_entropy_fwd", "linear_cross_entropy_bwd"): cross_entropy,
    ("linear_gelu_infer",): inferred,
    ("linear_dgelu",): dgelu,
    ("linear_add_dx",): added,
    ("linear_dweight",): weight_gradient,
    ("pack_mask",): packing,
    ("unpad",): unpad,
    ("repad",): repad,
}


# The argument that an op writes into.
WRITTEN = {"embedding_sum_norm_tied_bwd": 0, "linear_add_dx": 2}
# Of lists, and of FP8 numbers, which a budget of floats says nothing of: tests/ops/test_optimizer.py and test_fp8_*.py have them.
ELSEWHERE = {"gradient_norm", "adamw_step", "lamb_moments", "lamb_step"}


def converted(arguments, dtype=torch.float32):
    """Copies, since an op may write into one."""
    return [
        (a.to(dtype) if a.is_floating_point() else a).clone() if isinstance(a, torch.Tensor) else a for a in arguments
    ]


def call(namespace, name, arguments, dtype=torch.float32):
    """All tensors that the op gives, and the one that it writes into."""
    arguments = converted(arguments, dtype)
    results = getattr(namespace, name)(*arguments)
    written = [arguments[WRITTEN[name]]] if name in WRITTEN else []
    given = results if isinstance(results, tuple | list) else [results]
    return [*written, *(result for result in given if result is not None)]


def check(implementation, name, arguments):
    """The op's outputs, each within the budget of the reference's."""
    ours, eager = call(implementation, name, arguments), call(torch.ops.bertfast_reference, name, arguments)
    exact = call(torch.ops.bertfast_reference, name, arguments, torch.float64)
    for number, (one, other, oracle) in enumerate(zip(ours, eager, exact, strict=True)):
        if not one.is_floating_point():
            assert torch.equal(one, other), f"{name}, output {number}"
        else:
            assert_within_budget(one, other, oracle, f"{name}, output {number}", measure=rms_error)
    return ours


# In bfloat16 the eager side is another one for each op; the ops' own tests and those of whole models have them.
@pytest.mark.parametrize("names", CASES, ids="-".join)
def test_every_op(implementation, names):
    forward, backward = CASES[names]()
    results = check(implementation, names[0], forward)
    if backward is not None:
        check(implementation, names[1], backward(*results))


def test_no_op_is_left_out():
    others = {name for name in _library.names() if name.startswith("fp8_")} | ELSEWHERE
    assert {name for names in CASES for name in names} == set(_library.names()) - others
