"""What `optimize(model)` does by default on a GPU whose kernels are verified, call by call: here the CPU takes its place, so that
calls run, and what stays stock is stock's to the bit."""

import pytest
import torch
from bert_cases import assert_same, batch_of, outcome, pair
from captured import captured_on_cpu
from pretended_gpu import LINE, pretended_hopper

import bertfast
from bertfast.convert import checks
from bertfast.convert.model import FastBertModel
from bertfast.triton import faster, verified

WHOLE = "fast, from ids to hidden states"
FIRST, CAPTURED, REPLAYED = (f"{WHOLE}: {how}" for how in ("eager: first call of its bucket", "captured", "replayed"))
ONCE = {FIRST: 1, CAPTURED: 1, REPLAYED: 1}
SLOW = LINE | {"hidden": 64, "layers": 2, "tokens": 48, "seqlen": 12}


@pytest.fixture
def hopper():
    """The CPU is asked about as a GPU is."""

    def tensor_reason(x, gpu_kernels=None, captured=False):
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return checks.gpu_reason(None, gpu_kernels, captured=captured, dtype=autocast)

    verdict_of = FastBertModel._verdict

    def with_speed(self, call):
        verdict, reason = verdict_of(self, call)
        reason = reason or self._speed_reason(call["input_ids"], verdict)
        return (verdict, None) if reason is None else (None, reason)

    with captured_on_cpu(), pretended_hopper() as patch:
        patch.setattr(checks, "tensor_reason", tensor_reason)
        patch.setattr(FastBertModel, "_verdict", with_speed)
        yield patch


def three_calls(model, **changes):
    with torch.no_grad():
        return [model(**(batch_of("right") | changes)).last_hidden_state for _ in range(3)][-1]


def assert_is_stock(fast, stock, *words: str) -> None:
    """All of three calls, to the bit; the reason has these words."""
    assert torch.equal(three_calls(fast), three_calls(stock))
    (said,) = outcome(fast, "BertModel")
    assert said.startswith("module by module: ")
    for word in words:
        assert word in said
    assert not any(how.startswith("fast") for kind in ("BertEncoder", "BertLayer") for how in outcome(fast, kind))
    assert bertfast.report(fast).to_dict()["graphs"]["number"] == 0


def test_bfloat16_is_captured(hopper):
    stock, fast = pair(dtype=torch.bfloat16)
    real = batch_of("right")["attention_mask"].bool()
    assert_same(three_calls(fast)[real], three_calls(stock)[real], tolerance=0.05)
    assert outcome(fast, "BertModel") == ONCE


def test_float32_is_stock(hopper):
    stock, fast = pair()
    assert_is_stock(fast, stock, "no committed result shows float32 faster than stock on sm_90", "gpu_kernels=True")


def test_autocast_decides(hopper):
    fast = pair()[1]
    with torch.autocast("cpu", torch.bfloat16):
        three_calls(fast)
    assert outcome(fast, "BertModel") == ONCE


def test_training_is_stock(hopper):
    stock, fast = pair(dtype=torch.bfloat16, train=True)
    gradients = []
    for model in (stock, fast):
        model(**batch_of("right")).last_hidden_state.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
    assert outcome(fast, "BertModel") == {"module by module: gradients are enabled": 1}
    (said,) = outcome(fast, "BertEncoder")
    assert "only whole inference calls are captured" in said


def test_asked_for(hopper):
    hopper.setattr(verified, "gate", lambda arch: {"packing": "its kernels never passed"})
    stock, fast = pair(options={"gpu_kernels": True})
    real = batch_of("right")["attention_mask"].bool()
    assert_same(three_calls(fast)[real], three_calls(stock)[real])
    assert outcome(fast, "BertModel") == ONCE
    assert_same(fast(**batch_of("right")).last_hidden_state[real], stock(**batch_of("right")).last_hidden_state[real])
    assert "fast, padding removed" in outcome(fast, "BertEncoder")


def test_unverified_is_stock(hopper):
    hopper.setattr(verified, "gate", lambda arch: {"packing": "its kernels never passed"})
    stock, fast = pair(dtype=torch.bfloat16)
    assert_is_stock(fast, stock, "packing not verified on sm_90", "gpu_kernels=True")


def test_refused_is_stock(hopper):
    stock, fast = pair(dtype=torch.bfloat16, options={"gpu_kernels": False})
    assert_is_stock(fast, stock, "gpu_kernels=False")


def test_a_size_that_is_slower_is_stock(hopper):
    """And another size of the same model is captured."""
    fast_line = SLOW | {"tokens": 4, "ratio": 1.5}
    hopper.setattr(faster, "_table", lambda: {"90": [SLOW, fast_line]})
    stock, fast = pair(dtype=torch.bfloat16)
    assert_is_stock(fast, stock, "stock is faster near this size: 0.93 of stock's speed")
    with torch.no_grad():
        for _ in range(3):
            fast(**{name: value[2:3, :4] for name, value in batch_of("right").items()})
    assert {how: n for how, n in outcome(fast, "BertModel").items() if how.startswith(WHOLE)} == ONCE


def test_a_slower_size_that_is_asked_for(hopper):
    hopper.setattr(faster, "_table", lambda: {"90": [SLOW]})
    fast = pair(dtype=torch.bfloat16, options={"gpu_kernels": True})[1]
    three_calls(fast)
    assert outcome(fast, "BertModel") == ONCE


def test_no_graphs(hopper):
    """Eager calls launch more slowly than the GPU computes: stock, unless they are asked for."""
    stock, fast = pair(dtype=torch.bfloat16, options={"max_graphs": 0})
    assert_is_stock(fast, stock, "only whole inference calls are captured")
    fast = pair(dtype=torch.bfloat16, options={"max_graphs": 0, "gpu_kernels": True})[1]
    three_calls(fast)
    assert outcome(fast, "BertModel") == {f"{WHOLE}: eager: max_graphs is 0": 3}
