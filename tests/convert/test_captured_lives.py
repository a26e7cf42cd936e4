"""The life of a model whose calls are captured: what optimize, restore, copies, adapters and the end of a model do with graphs;
and how many graphs there may be."""

import copy
import gc
import json
import pickle
import weakref

import pytest
import torch
from bert_cases import assert_same, batch_of, outcome, pair
from captured import captured_on_cpu
from torch import nn

import bertfast
from bertfast.nn import joined

WHOLE = "fast, from ids to hidden states"
FIRST, CAPTURED, REPLAYED = (f"{WHOLE}: {how}" for how in ("eager: first call of its bucket", "captured", "replayed"))
ONCE = {FIRST: 1, CAPTURED: 1, REPLAYED: 1}


@pytest.fixture(autouse=True)
def on_a_stand_in():
    with captured_on_cpu():
        yield


def real_states(model, number: int = 0, batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    inputs = {name: value[:batch] for name, value in batch_of("right").items()}
    inputs["input_ids"] = torch.randint(1, 90, inputs["input_ids"].shape, generator=generator)
    with torch.no_grad():
        return model(**inputs).last_hidden_state[inputs["attention_mask"].bool()]


def assert_alike(fast, stock, tolerance: float = 2e-5) -> None:
    for number in range(3):
        assert_same(real_states(fast, number), real_states(stock, number), f"call {number}", tolerance)


def replaying(**options):
    stock, fast = pair(options=options)
    assert_alike(fast, stock)
    return stock, fast


def graphs_of(model) -> dict[str, int]:
    return bertfast.report(model).to_dict()["graphs"]


def test_restore_gives_the_memory_back():
    stock, fast = replaying()
    assert graphs_of(fast)["number"] == 1
    assert joined.memory(fast) > 0
    assert bertfast.restore(fast) is fast
    assert graphs_of(fast) == {"number": 0, "bytes": 0}
    assert joined.memory(fast) == 0
    assert all(torch.equal(real_states(fast, n), real_states(stock, n)) for n in range(3))


def test_optimize_again():
    stock, fast = replaying()
    bertfast.optimize(fast, max_graphs=1)
    assert graphs_of(fast)["number"] == 0
    assert_alike(fast, stock)
    assert outcome(fast, "BertModel") == dict.fromkeys(ONCE, 2)


def test_restore_and_optimize():
    stock, fast = replaying()
    bertfast.optimize(bertfast.restore(fast))
    assert_alike(fast, stock)
    assert outcome(fast, "BertModel") == ONCE


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_have_graphs_of_their_own(how):
    stock, fast = replaying()
    twin = copy.deepcopy(fast) if how == "deepcopy" else pickle.loads(pickle.dumps(fast))
    assert graphs_of(twin)["number"] == 0
    assert_alike(twin, stock)
    assert outcome(twin, "BertModel") == ONCE
    with torch.no_grad():
        twin.encoder.layer[0].output.dense.weight.mul_(3)
    assert_alike(fast, stock)
    assert not torch.allclose(real_states(twin), real_states(stock))
    assert outcome(fast, "BertModel") == ONCE | {REPLAYED: 4}


@pytest.mark.parametrize("name", ["embeddings", "encoder.layer.1", "encoder.layer.0.attention.output.LayerNorm"])
def test_hooks_that_come_and_go(name):
    stock, fast = replaying()
    seen = []
    handle = fast.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    assert_alike(fast, stock)
    assert seen == [name] * 3
    handle.remove()
    assert_alike(fast, stock)
    assert seen == [name] * 3
    counts = outcome(fast, "BertModel")
    assert counts.pop(REPLAYED) == 4
    assert len(counts) == 3  # the module by module ones besides
    assert graphs_of(fast)["number"] == 1


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora(order):
    peft = pytest.importorskip("peft")
    stock, fast = replaying()
    if order == "after":
        bertfast.restore(fast)
    config = peft.LoraConfig(target_modules=["query", "value"], r=4, init_lora_weights=False)
    adapted = []
    for model in (stock, fast):
        torch.manual_seed(6)
        adapted.append(peft.get_peft_model(model, config).eval())
    if order == "after":
        bertfast.optimize(fast)
    assert_alike(*adapted[::-1])
    replays = 1 if order == "before" else 0
    assert outcome(fast, "BertModel").get(REPLAYED, 0) == replays
    merged = [model.merge_and_unload() for model in adapted]
    assert_alike(*merged[::-1], tolerance=1e-4)
    # Merging writes into the weights: a graph from before is good again.
    assert outcome(fast, "BertModel")[REPLAYED] == (4 if order == "before" else 1)
    assert graphs_of(fast)["number"] == 1


def test_a_model_inside_others():
    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            first = self.inner(**inputs)
            again = self.inner(**(inputs | {"input_ids": inputs["input_ids"].flip(0)}))
            first.last_hidden_state = first.last_hidden_state - 2 * again.last_hidden_state
            return first

    stock, fast = pair()
    assert_alike(bertfast.optimize(Twice(fast)), Twice(stock))
    assert outcome(fast, "BertModel") == {FIRST: 1, CAPTURED: 1, REPLAYED: 4}


@pytest.mark.parametrize("leads_back", [False, True])
def test_memory_goes_with_the_model(leads_back):
    released = []
    with captured_on_cpu() as backend, pytest.MonkeyPatch.context() as patch:
        bury = backend.bury
        patch.setattr(backend, "bury", lambda release: (released.append(release), bury(release)))
        fast = replaying()[1]
        if leads_back:  # a user's attributes may lead back to the model
            fast.again, fast.kept = fast.get_input_embeddings, [fast]
        gone = weakref.ref(fast), weakref.ref(fast.encoder.layer[0].output.dense.weight)
        del fast
        gc.collect()
        assert [reference() for reference in gone] == [None, None]
        assert len(released) == 1


def sizes(model, batches) -> list[str]:
    """How each call of so many sequences came about."""
    hows = []
    for batch in batches:
        before = outcome(model, "BertModel")
        real_states(model, batch=batch)
        after = outcome(model, "BertModel")
        hows += [how.removeprefix(f"{WHOLE}: ") for how in after if after[how] != before.get(how, 0)]
    return hows


def test_no_graphs():
    fast = replaying(max_graphs=0)[1]
    assert outcome(fast, "BertModel") == {f"{WHOLE}: eager: max_graphs is 0": 3}
    assert graphs_of(fast) == {"number": 0, "bytes": 0}


@pytest.mark.parametrize("most", [1, 2])
def test_the_number_of_graphs(most):
    stock, fast = pair(options={"max_graphs": most})
    other = [4, 1, 2][: most + 1]  # buckets of 24, 16 and 8 rows or so
    hows = sizes(fast, [size for size in other for _ in range(2)])
    assert hows[: 2 * most] == ["eager: first call of its bucket", "captured"] * most
    for size in other:
        assert_same(real_states(fast, batch=size), real_states(stock, batch=size))
    assert graphs_of(fast)["number"] == most


def test_bytes_of_graphs():
    stock, fast = pair(options={"max_graph_bytes": 10})
    assert_alike(fast, stock)
    hows = outcome(fast, "BertModel")
    refused = [how for how in hows if "more than max_graph_bytes" in how]
    assert len(refused) == 1
    assert hows == {FIRST: 1, refused[0]: 2}
    report = bertfast.report(fast)
    assert report.to_dict()["graphs"] == {"number": 0, "bytes": 0}
    assert any(note.startswith("some calls are not captured in graphs: its graph needs ") for note in report.notes)


@pytest.mark.parametrize("name", ["max_graphs", "max_graph_bytes"])
def test_negative_bounds_are_errors(name):
    stock = pair()[0]
    with pytest.raises(ValueError, match=f"{name} must be an integer of 0 or more, got -1"):
        bertfast.optimize(stock, **{name: -1})
    assert type(stock.encoder).__name__ == "BertEncoder"


def test_the_report():
    fast = replaying()[1]
    report = bertfast.report(fast)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["graphs"]["number"] == 1
    assert told["graphs"]["bytes"] > 0
    lines = [line.strip() for line in str(report).splitlines()]
    first = next(place for place, line in enumerate(lines) if line.endswith(f"1 x {FIRST}"))
    assert lines[first + 1 : first + 3] == [f"1 x {CAPTURED}", f"1 x {REPLAYED}"]
    assert "captured graphs: 1, 0.0 MiB" in str(report)
    counted = {row["kind"]: row["calls"] for row in told["modules"]}
    assert counted["BertEmbeddings"] == {"fast": 3}
    assert counted["BertEncoder"] == counted["BertLayer"] == {"fast, padding removed": 3}


def test_a_capture_that_fails():
    """One warning, right numbers, and a reason in the report; calls of other sizes are tried once more."""

    def refuse(function):
        raise RuntimeError("no capture today")

    with captured_on_cpu() as backend, pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "capture", refuse)
        stock, fast = pair()
        with pytest.warns(UserWarning, match="could not be captured in a graph and runs eagerly.*no capture today"):
            assert_alike(fast, stock)
        assert any("no capture today" in note for note in bertfast.report(fast).notes)
        assert outcome(fast, "BertModel")[f"{WHOLE}: eager: capturing it raised RuntimeError: no capture today"] == 2
        patch.undo()
        bertfast.optimize(fast)
        assert_alike(fast, stock)
        assert outcome(fast, "BertModel")[REPLAYED] == 1


def test_without_prepacked_weights():
    """That option is the CPU's."""
    fast = replaying(prepack=False)[1]
    assert outcome(fast, "BertModel") == ONCE
