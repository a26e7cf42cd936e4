"""What `optimize(model)` does by default on a GPU whose kernels are verified, call by call: here the CPU takes its place, so that
calls run, and what stays stock is stock's to the bit."""

import pytest
import torch
from bert_cases import assert_same, batch_of, outcome, pair
from captured import captured_on_cpu
from pretended_gpu import LINE, pretended_hopper

import bertfast
from bertfast.convert import checks
from bertfast.convert.encoder import FastEncoder
from bertfast.convert.model import FastModel
from bertfast.triton import faster, verified

WHOLE = "fast, from ids to hidden states"
FIRST, CAPTURED, REPLAYED = (f"{WHOLE}: {how}" for how in ("eager: first call of its bucket", "captured", "replayed"))
ONCE = {FIRST: 1, CAPTURED: 1, REPLAYED: 1}
SLOW = LINE | {"hidden": 64, "layers": 2, "tokens": 48, "seqlen": 12}


@pytest.fixture
def hopper():
    """The CPU is asked about as a GPU is."""

    def tensor_reason(x, gpu_kernels=None, captured=False, train=False):
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return checks.gpu_reason(None, gpu_kernels, captured=captured, dtype=autocast, train=train)

    verdict_of = FastModel._verdict

    def with_speed(self, call):
        verdict, reason = verdict_of(self, call)
        reason = reason or self._speed_reason(call["input_ids"], verdict)
        return (verdict, None) if reason is None else (None, reason)

    reason_of = FastEncoder._reason

    def with_training_speed(self, call):
        return reason_of(self, call) or self._speed_reason(call["hidden_states"])

    with captured_on_cpu(), pretended_hopper() as patch:
        patch.setattr(checks, "tensor_reason", tensor_reason)
        patch.setattr(FastModel, "_verdict", with_speed)
        patch.setattr(FastEncoder, "_reason", with_training_speed)
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


UNPADDED = "fast, padding removed"
TRAINED = {f"{UNPADDED}: {how}": 1 for how in ("eager: first call of its bucket", "captured", "replayed")}


def trained(model, **changes):
    """Gradients of the last of three steps."""
    for _ in range(3):
        model.zero_grad()
        hidden = model(**(batch_of("right") | changes)).last_hidden_state
        (hidden * batch_of("right")["attention_mask"][..., None]).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def assert_trains_as_stock(fast, stock, *words: str) -> None:
    gradients = [trained(model) for model in (stock, fast)]
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
    (said,) = outcome(fast, "BertEncoder")
    for word in words:
        assert word in said
    assert not any(how.startswith("fast") for how in outcome(fast, "BertLayer"))
    assert bertfast.report(fast).to_dict()["graphs"]["number"] == 0


def test_training_in_bfloat16_is_captured(hopper):
    """And embeddings, called as a module, are stock's."""
    stock, fast = pair(dtype=torch.bfloat16, train=True)
    gradients = [trained(model) for model in (stock, fast)]
    names = [name for name, p in stock.named_parameters() if p.grad is not None]
    for name, one, two in zip(names, *gradients, strict=True):
        if not name.endswith("key.bias"):  # whose gradient is zero but for rounding
            assert_same(two, one, name, tolerance=0.1)
    assert outcome(fast, "BertModel") == {"module by module: gradients are enabled": 3}
    assert outcome(fast, "BertEncoder") == TRAINED
    assert "eager calls launch more slowly" in next(iter(outcome(fast, "BertEmbeddings")))


def test_training_under_autocast_is_captured(hopper):
    fast = pair(train=True)[1]
    with torch.autocast("cpu", torch.bfloat16):
        trained(fast)
    assert outcome(fast, "BertEncoder") == TRAINED


def test_training_in_float32_is_stock(hopper):
    stock, fast = pair(train=True)
    assert_trains_as_stock(fast, stock, "no committed result shows float32 training faster than stock on sm_90")


def test_training_where_backward_is_unverified_is_stock(hopper):
    hopper.setattr(verified, "gate", lambda arch: {"attention": "its kernels never passed"})
    stock, fast = pair(dtype=torch.bfloat16, train=True)
    assert_trains_as_stock(fast, stock, "attention not verified on sm_90")


def test_training_without_graphs_is_stock(hopper):
    stock, fast = pair(dtype=torch.bfloat16, train=True, options={"max_graphs": 0})
    assert_trains_as_stock(fast, stock, "eager calls launch more slowly")


def test_training_with_checkpointed_layers_is_stock(hopper):
    stock, fast = pair(dtype=torch.bfloat16, train=True)
    for model in (stock, fast):
        model.gradient_checkpointing_enable()
    assert_trains_as_stock(fast, stock, "eager calls launch more slowly")


def test_a_size_whose_training_is_slower_is_stock(hopper):
    """Whatever is known of inference."""
    hopper.setattr(faster, "_table", lambda: {"90": [SLOW | {"train": True}, SLOW | {"ratio": 2.0}]})
    stock, fast = pair(dtype=torch.bfloat16, train=True)
    assert_trains_as_stock(fast, stock, "stock is faster near this size: 0.93 of stock's speed")
    fast = pair(dtype=torch.bfloat16, train=True, options={"gpu_kernels": True})[1]
    trained(fast)
    assert outcome(fast, "BertEncoder") == TRAINED


@pytest.mark.parametrize("only", [None, "encoder"])
def test_dropout_does_not_depend_on_gradients(hopper, only):
    """With dropout on, passes with and without gradients go one way: with one random state they drop the same."""
    fast = pair(dtype=torch.bfloat16, dropout=0.3)[1]
    (fast if only is None else fast.encoder).train()
    inputs, states = batch_of("right"), []
    real = inputs["attention_mask"].bool()
    for grad in (True, False, True, False, True):
        torch.manual_seed(5)
        with torch.set_grad_enabled(grad):
            states.append(fast(**inputs).last_hidden_state[real].detach())
    for state in states[1:]:
        assert_same(state, states[0], tolerance=0.02)
    assert set(outcome(fast, "BertEncoder")) == {*TRAINED, UNPADDED}


def test_inference_with_gradients_enabled_by_mistake(hopper):
    """Nothing there needs one: no backward will come, and modules are called."""
    stock, fast = pair(dtype=torch.bfloat16)
    for model in (stock, fast):
        model.requires_grad_(False)
    ours, theirs = (model(**batch_of("right")).last_hidden_state for model in (fast, stock))
    assert torch.equal(ours, theirs)


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
    assert_is_stock(fast, stock, "are captured; eager calls launch more slowly")
    fast = pair(dtype=torch.bfloat16, options={"max_graphs": 0, "gpu_kernels": True})[1]
    three_calls(fast)
    assert outcome(fast, "BertModel") == {f"{WHOLE}: eager: max_graphs is 0": 3}
