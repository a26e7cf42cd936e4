"""Peers of the GPU cases, on a CPU at the smallest case of each op: they must run, and forward ones must do the same work."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import collect, measure
from benchmarks.gpu.case import Case
from benchmarks.gpu.cases import attention
from bertfast import _library

NOT_ON_A_CPU = {"sdpa efficient", "sdpa cudnn", "varlen flash"}
OTHER_WORK = {"linear alone"}
WRITTEN = {
    "fp8_cast_weights": 1,
    "fp8_update_scales": 2,
    "fp8_linear_add": 4,
}  # the argument that holds the result of an op without one
CAST = {"fp8_norm_fwd": 3, "fp8_norm_rows": 1}  # the result that the peers of an op end with
# Of a hundred million parameters at least; tests/ops/test_optimizer.py has smaller ones beside torch's optimizers.
TOO_LARGE = {"gradient_norm", "adamw_step", "lamb_moments", "lamb_step"}


def smallest() -> dict[str, Case]:
    """Of each op the case of the fewest bytes without dropout."""
    found: dict[str, Case] = {}
    for case in collect.all_cases():
        plain = (
            case.run is None
            and case.op not in TOO_LARGE
            and (("attention" not in case.op and "norm" not in case.op) or "p0.0" in case.shape)
        )
        if plain and (case.op not in found or case.bytes < found[case.op].bytes):
            found[case.op] = case
    return found


@pytest.mark.parametrize("case", smallest().values(), ids=lambda case: case.op)
def test_peers_do_the_same_work(case, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # what it compiles, not how
    # Peers of passes that cast to FP8 are ops of ours, which compute here as their references do.
    monkeypatch.setattr(_library, "owner", lambda name, key: _library.meaning(name))
    torch.manual_seed(3)
    arguments = case.make(torch.device("cpu"))
    wanted = measure.tensors(getattr(torch.ops.bertfast_reference, case.op)(*arguments))
    if case.op in WRITTEN:
        wanted = [arguments[WRITTEN[case.op]].clone()]
    wanted = wanted[CAST.get(case.op, 0) :]
    assert case.peers or not case.kernels
    for name, build in case.peers.items():
        if name in NOT_ON_A_CPU | OTHER_WORK:
            continue
        if case.op in WRITTEN:  # not what the op has already changed
            torch.manual_seed(3)
            arguments = case.make(torch.device("cpu"))
        got = measure.tensors(build(arguments)())
        if case.op.endswith("_bwd") and "attention" not in case.op:  # statistics are made up, so only sizes can agree
            sizes = {
                t.numel() for t in (*wanted, *arguments[:1])
            }  # the first: a tied table's gradient is added to in place
            assert {t.numel() for t in got} & sizes, name
            continue
        # Attention peers have the heads before the tokens.
        first = got[0].transpose(-3, -2) if name.startswith("sdpa") and case.op.endswith("fwd") else got[0]
        step = {1: 2**-3, 2: 2**-6}.get(first.element_size(), 1e-4)  # one step of e4m3 and two of bfloat16
        torch.testing.assert_close(
            first.reshape(wanted[0].shape).float(), wanted[0].float(), atol=step, rtol=step, msg=name
        )


@pytest.mark.parametrize("backward", [False, True])
def test_padded_peers_of_packed_attention(backward):
    case = attention._case([5, 16, 9], 2, 32, 0.0, torch.float32, backward=backward)
    torch.manual_seed(3)
    arguments = case.make(torch.device("cpu"))
    wanted = measure.tensors(getattr(torch.ops.bertfast_reference, case.op)(*arguments))[0]
    (got,) = measure.tensors(case.peers["sdpa math, padded"](arguments)())
    got = got if backward else got.transpose(1, 2)
    real = torch.arange(16) < torch.tensor([5, 16, 9])[:, None]
    torch.testing.assert_close(got[real], wanted, atol=1e-5, rtol=1e-4)
