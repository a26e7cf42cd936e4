"""Calls of a model whose inference is captured: unusual inputs, autocast, wrong ids, what is not captured and why, threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bert_cases import PADDINGS, VOCAB, assert_same, batch_of, outcome, outputs_at_tokens, pair
from captured import captured_on_cpu
from torch import nn
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.testing import assert_within_budget, rms_error

WHOLE = "fast, from ids to hidden states"
FIRST, CAPTURED, REPLAYED = (f"{WHOLE}: {how}" for how in ("eager: first call of its bucket", "captured", "replayed"))
ONCE = {FIRST: 1, CAPTURED: 1, REPLAYED: 1}


@pytest.fixture(autouse=True)
def on_a_stand_in():
    with captured_on_cpu():
        yield


def other_ids(inputs, number: int):
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(1, VOCAB, inputs["input_ids"].shape, generator=generator)
    return inputs | {"input_ids": ids.to(inputs["input_ids"].dtype)}


def assert_alike(fast, stock, inputs, numbers=range(3), **options) -> None:
    """Both give the same for three batches; at real tokens."""
    mask = inputs.get("attention_mask")
    mask = torch.ones(inputs["input_ids"].shape) if mask is None or mask.dim() != 2 else mask
    for number in numbers:
        batch = other_ids(inputs, number)
        with torch.no_grad():
            ours, theirs = (outputs_at_tokens(model(**batch, **options), mask) for model in (fast, stock))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert_same(ours[name], value, f"{name} of call {number}")


def replaying(**config):
    stock, fast = pair(**config)
    assert_alike(fast, stock, batch_of("right"))
    assert outcome(fast, "BertModel") == ONCE
    return stock, fast


def forms():
    right = batch_of("right")
    mask = right["attention_mask"]
    yield "one sequence", {name: value[:1] for name, value in right.items()}
    yield "length 1", {name: value[:, :1] for name, value in right.items()}
    yield "one token", {name: value[:1, :1] for name, value in right.items()}
    longest = {"input_ids": torch.ones(2, 40, dtype=torch.int64), "attention_mask": torch.ones(2, 40)}
    longest["attention_mask"][1, 17:] = 0
    yield "longest", longest
    yield "int32 ids", right | {"input_ids": right["input_ids"].int()}
    yield "int32 segments", right | {"token_type_ids": right["token_type_ids"].int()}
    yield "a row of segments", right | {"token_type_ids": (torch.arange(12) % 2)[None]}
    yield "positions", right | {"position_ids": torch.arange(12).flip(0).expand(4, -1) + torch.arange(4)[:, None]}
    yield "a row of positions", right | {"position_ids": torch.arange(12).flip(0)[None]}
    yield "no segments", {name: value for name, value in right.items() if name != "token_type_ids"}
    yield "no mask", {name: value for name, value in right.items() if name != "attention_mask"}
    for dtype in (torch.bool, torch.int32, torch.float32):
        yield f"a mask of {dtype}", right | {"attention_mask": mask.to(dtype)}
    yield "ids not contiguous", right | {"input_ids": right["input_ids"].t().contiguous().t()}
    yield "an expanded mask", right | {"attention_mask": mask[2:3].expand(4, -1)}


@pytest.mark.parametrize("form", [name for name, _ in forms()])
def test_forms_of_input(form):
    stock, fast = pair()
    assert_alike(fast, stock, dict(forms())[form])
    assert outcome(fast, "BertModel") == ONCE


def test_ids_and_segments_that_change_between_replays():
    stock, fast = replaying()
    inputs = batch_of("right")
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        inputs["token_type_ids"] = torch.randint(0, 2, (4, 12), generator=generator)
        inputs["position_ids"] = torch.randint(0, 40, (4, 12), generator=generator)
        assert_alike(fast, stock, inputs, [number])
    assert outcome(fast, "BertModel") == ONCE | {REPLAYED: 5}


@pytest.mark.parametrize("head", [hf.BertModel, hf.BertForTokenClassification])
def test_one_graph_serves_all_sizes_of_a_bucket(head):
    """23 tokens and 17 to 24 more are one bucket each, whatever the padding and the lengths are."""
    stock, fast = pair(head)
    for number in range(24):
        generator = torch.Generator().manual_seed(number)
        lengths = torch.randint(1, 13, (4,), generator=generator)
        inputs = batch_of("right")
        inputs["attention_mask"] = (torch.arange(12) < lengths[:, None]).long()
        assert_alike(fast, stock, inputs, [number])
    counts = outcome(fast, "BertModel")
    assert counts[FIRST] + counts[CAPTURED] + counts[REPLAYED] == 24
    assert bertfast.report(fast).to_dict()["graphs"]["number"] == counts[CAPTURED] <= 5
    assert counts[REPLAYED] >= 12


def test_results_are_the_callers():
    """Later calls do not write into them, nor do edits of them reach later calls."""
    fast = replaying()[1]
    for padding in ("none", "right"):
        inputs = batch_of(padding)
        with torch.no_grad():
            for _ in range(3):
                first = fast(**inputs)
            kept = {name: value.clone() for name, value in first.items()}
            again = fast(**inputs)
            for name, value in again.items():
                assert torch.equal(value, kept[name])
                value.fill_(7)
            fast(**other_ids(inputs, 5))
            for name, value in first.items():
                assert torch.equal(value, kept[name])
            for name, value in fast(**inputs).items():
                assert torch.equal(value, kept[name])


@pytest.mark.parametrize("order", [("no_grad", "inference"), ("inference", "no_grad")])
def test_modes_share_a_graph(order):
    stock, fast = pair()
    inputs = batch_of("right")
    for number in range(6):
        inference = order[number % 2] == "inference"
        with torch.inference_mode() if inference else torch.no_grad():
            state = fast(**other_ids(inputs, number)).last_hidden_state
        assert state.is_inference() == inference
        with torch.no_grad():
            expected = stock(**other_ids(inputs, number)).last_hidden_state
        real = inputs["attention_mask"].bool()
        assert_same(state[real], expected[real])
    assert outcome(fast, "BertModel") == ONCE | {REPLAYED: 4}
    assert fast(**inputs).last_hidden_state.requires_grad  # of weights that no mode has spoilt
    fast(**inputs).last_hidden_state.sum().backward()


def test_autocast():
    """Graphs of either are kept apart, and both are right in turn."""
    stock, fast = pair()
    exact = pair()[0].double()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    for number in range(8):
        batch = other_ids(inputs, number)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=number % 2 == 1):
            ours, theirs = (model(**batch).last_hidden_state for model in (fast, stock))
        with torch.no_grad():
            oracle = exact(**batch).last_hidden_state
        assert ours.dtype == theirs.dtype
        assert_within_budget(ours[real], theirs[real], oracle[real], f"call {number}", measure=rms_error)
    assert outcome(fast, "BertModel") == {FIRST: 2, CAPTURED: 2, REPLAYED: 4}
    with torch.no_grad():
        for model in (stock, fast, exact):
            model.encoder.layer[0].attention.self.query.weight.mul_(2)
            model.encoder.layer[1].output.dense.weight.mul_(2)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (model(**inputs).last_hidden_state for model in (fast, stock))
        oracle = exact(**inputs).last_hidden_state
    assert_within_budget(ours[real], theirs[real], oracle[real], measure=rms_error)


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("when", [0, 1, 2], ids=["eager", "captured", "replayed"])
def test_wrong_ids(when, name):
    """The error of an eager call, at once on a CPU; and the calls after it are right."""
    stock, fast = pair()
    positions = torch.arange(12).expand(4, -1).clone()
    inputs = batch_of("right") | {"position_ids": positions}
    for number in range(when):
        assert_alike(fast, stock, inputs, [number])
    at_padding, at_token = (inputs[name].clone() for _ in range(2))
    at_padding[1, -1] = at_token[1, 0] = 1000
    with torch.no_grad():
        fast(**{**inputs, name: at_padding})
        for _ in range(2):
            with pytest.raises(IndexError, match="1000"):
                fast(**{**inputs, name: at_token})
    assert_alike(fast, stock, inputs)
    assert outcome(fast, "BertModel")[REPLAYED] >= 1


def reasons(model) -> set[str]:
    return {how.removeprefix("module by module: ") for how in outcome(model, "BertModel")} - {FIRST, CAPTURED, REPLAYED}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output_hidden_states": True}, "output_hidden_states was given"),
        ({"return_dict": False}, "a tuple of outputs was asked for"),
    ],
    ids=["hidden states", "tuple"],
)
def test_other_outputs_are_not_captured(options, reason):
    stock, fast = replaying()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = (model(**inputs, **options) for model in (fast, stock))
    assert reasons(fast) == {reason}
    assert_same(ours[0][real], theirs[0][real])
    if "output_hidden_states" in options:
        for one, two in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            assert_same(one[real], two[real])
    assert_alike(fast, stock, inputs)
    assert outcome(fast, "BertModel")[REPLAYED] == 4


def test_gradients_are_not_captured():
    stock, fast = replaying()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    ours, theirs = (model(**inputs).last_hidden_state[real] for model in (fast, stock))
    assert_same(ours, theirs)
    assert reasons(fast) == {"gradients are enabled"}
    for states in (ours, theirs):
        states.square().sum().backward()
    for (name, one), two in zip(stock.named_parameters(), fast.parameters(), strict=True):
        if one.grad is not None and not name.endswith("key.bias"):
            assert_same(two.grad, one.grad, name, tolerance=1e-4)
    assert_alike(fast, stock, inputs)


@pytest.mark.parametrize("place", ["embeddings", "layers"])
def test_dropout_is_not_captured(place):
    stock, fast = replaying()
    dropout = fast.embeddings.dropout if place == "embeddings" else fast.encoder.layer[0].output.dropout
    dropout.p = 0.5
    dropout.train()
    with torch.no_grad():
        one, two = (fast(**batch_of("right")).last_hidden_state for _ in range(2))
    assert not torch.equal(one, two)
    assert outcome(fast, "BertModel")[REPLAYED] == 1
    dropout.eval()
    assert_alike(fast, stock, batch_of("right"))


@pytest.mark.parametrize("transform", ["vmap", "jvp", "functional_call"])
def test_transforms_are_not_captured(transform):
    stock, fast = replaying(attn_implementation="eager")  # sdpa knows no forward derivative
    inputs = batch_of("none")
    half = {name: p.detach() * 0.5 for name, p in stock.named_parameters()}

    def called(model, parameters):
        return torch.func.functional_call(model, parameters, (), inputs).last_hidden_state

    def transformed(model):
        if transform == "functional_call":
            return called(model, half)
        if transform == "jvp":
            return torch.func.jvp(lambda p: called(model, p), (half,), (half,))[1]
        return torch.func.vmap(lambda p: called(model, p))({n: torch.stack([p, p * 2]) for n, p in half.items()})

    with torch.no_grad():
        for _ in range(3):
            assert_same(transformed(fast), transformed(stock), tolerance=1e-4)
    assert_alike(fast, stock, inputs)
    assert_alike(fast, stock, batch_of("right"))


def test_compiled_code_holds_no_replay():
    stock, fast = replaying()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for number in range(3):
            batch = other_ids(inputs, number)
            assert_same(compiled(**batch).last_hidden_state[real], stock(**batch).last_hidden_state[real])
    assert outcome(fast, "BertModel")[REPLAYED] == 1
    assert_alike(fast, stock, inputs)


def test_traced():
    stock, fast = replaying()
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    fast.config.return_dict = False
    with torch.no_grad():
        traced = torch.jit.trace(fast, (inputs["input_ids"], inputs["attention_mask"]), check_trace=False)
        fast.config.return_dict = True
        for number in range(3):
            batch = other_ids(inputs, number)
            del batch["token_type_ids"]
            ours = traced(batch["input_ids"], batch["attention_mask"])[0]
            assert_same(ours[real], stock(**batch).last_hidden_state[real])
    assert_alike(fast, stock, inputs)


def in_threads(works) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result(timeout=1800)


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "several models"])
def test_threads(shared):
    pairs = [pair()] * 4 if shared else [pair() for _ in range(4)]

    def work(number, models):
        stock, fast = models
        for step in range(24):
            assert_alike(fast, stock, batch_of(PADDINGS[(0, 1, 3)[(number + step) % 3]]), [100 * number + step])

    in_threads([lambda n=n, p=p: work(n, p) for n, p in enumerate(pairs)])
    for stock, fast in {id(models): models for models in pairs}.values():
        # A call that meets another thread's capture runs eagerly, so that a model may have had no replay yet.
        assert_alike(fast, stock, batch_of("none"), range(3))
        counts = outcome(fast, "BertModel")
        assert all(how.startswith(WHOLE) for how in counts)
        assert counts[REPLAYED] >= 1
        assert sum(counts.values()) == (96 if shared else 24) + 3


def test_threads_while_a_weight_changes():
    """Every result is of one weight or of the other, and a call after the last change of the last."""
    stock, fast = replaying()
    other, place = pair()[0], "encoder.layer.1.output.dense"
    with torch.no_grad():
        other.get_submodule(place).weight.mul_(2)
    weights = [nn.Parameter(model.get_submodule(place).weight.detach().clone()) for model in (stock, other)]
    inputs = batch_of("none")
    with torch.no_grad():
        expected = [model(**inputs).last_hidden_state for model in (stock, other)]
    assert not torch.allclose(*expected)
    ended = threading.Event()

    def calls():
        while not ended.is_set():
            with torch.no_grad():
                state = fast(**inputs).last_hidden_state
            assert min(float((state - each).abs().max()) for each in expected) < 1e-4

    def changes():
        try:
            for step in range(40):
                fast.get_submodule(place).weight = weights[step % 2]
                time.sleep(0.01)
        finally:
            ended.set()

    in_threads([calls] * 3 + [changes])
    assert_alike(fast, other, inputs)
