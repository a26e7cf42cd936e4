"""torch.compile of optimised models where calls are captured in graphs, and in its mode that captures graphs of its own.

Nothing of ours is captured inside a traced region; an optimised model that a compiled function calls across a graph break is.
"""

import shutil

import pytest
import torch
from bert_cases import assert_same, batch_of, outcome, pair
from captured import captured_on_cpu
from transformers.models.bert import modeling_bert as hf

from bertfast import graphs

HEADS = (hf.BertModel, hf.BertForSequenceClassification, hf.BertForTokenClassification)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not here")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def shorter(inputs, batch, seqlen):
    return {name: value[:batch, :seqlen] for name, value in inputs.items()}


def compare(got, want, inputs):
    """Every output at real tokens."""
    real = inputs["attention_mask"].bool()
    assert set(got) == set(want)
    for name, value in want.items():
        tokens = value.shape[:2] == real.shape
        assert_same(*((t[real] if tokens else t) for t in (got[name], value)), name)


def outcomes(model):
    """What the calls of the BertModel inside did, as counts by the first word of how it was run."""
    return outcome(model, "BertModel")


@pytest.mark.tool("torch.compile", 'mode="reduce-overhead"', "fast")
@needs_compiler
@pytest.mark.parametrize(("head", "dynamic"), zip(HEADS, (True, False, True), strict=True))
def test_reduce_overhead(head, dynamic):
    """On a GPU the compiler captures graphs in this mode; on a CPU what can be seen is that its graph is whole and right."""
    stock, fast = pair(head, num_hidden_layers=1)
    compiled = torch.compile(fast, fullgraph=True, dynamic=dynamic, mode="reduce-overhead")
    batches = [batch_of("right"), batch_of("left"), batch_of("none")]
    if dynamic:
        batches.append(shorter(batch_of("right"), 3, 9))
    with torch.no_grad():
        for inputs in batches:
            if head is hf.BertForSequenceClassification and not inputs["attention_mask"][:, 0].all():
                continue  # stock's pooler reads padding there
            compare(compiled(**inputs), stock(**inputs), inputs)
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] <= 2
    assert not counts["graph_break"]


@pytest.mark.parametrize(("head", "dynamic"), zip(HEADS, (False, True, False), strict=True))
def test_nothing_is_captured_in_a_traced_region(head, dynamic):
    stock, fast = pair(head)
    inputs = batch_of("right")
    with torch.no_grad(), captured_on_cpu():
        compiled = torch.compile(fast, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for _ in range(4):
            compare(compiled(**inputs), stock(**inputs), inputs)
        assert graphs.memory(fast) == (0, 0)
        for _ in range(3):  # and the model itself is captured still
            compare(fast(**inputs), stock(**inputs), inputs)
        assert graphs.memory(fast).graphs == 1
        compare(compiled(**inputs), stock(**inputs), inputs)
        assert graphs.memory(fast).graphs == 1
    assert sum(count for how, count in outcomes(fast).items() if "replayed" in how) == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_model_called_across_a_graph_break_is_captured(backend):
    """A compiled function whose graph breaks around the model, which then runs as anywhere else."""
    stock, fast = pair(hf.BertForTokenClassification)
    inputs = batch_of("right")

    @torch.compile(backend=backend)
    def scores(model, inputs):
        mask = inputs["attention_mask"] * 1
        logits = torch.compiler.disable(model)(**inputs | {"attention_mask": mask}).logits
        return torch.softmax(logits, -1)

    real = inputs["attention_mask"].bool()
    with torch.no_grad(), captured_on_cpu():
        for _ in range(4):
            want = torch.softmax(stock(**inputs).logits, -1)
            assert_same(scores(fast, inputs)[real], want[real])
        assert graphs.memory(fast).graphs == 1
    assert sum(count for how, count in outcomes(fast).items() if "replayed" in how) == 2


def test_a_break_inside_the_model(monkeypatch):
    """The compiler that gives up inside a model runs its pieces; numbers stay right, before and after."""
    stock, fast = pair(hf.BertForTokenClassification)
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    fast.dropout.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with torch.no_grad(), captured_on_cpu():
        compiled = torch.compile(fast, backend="aot_eager")
        for _ in range(4):
            assert_same(compiled(**inputs).logits[real], stock(**inputs).logits[real])
    assert torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    """An export holds nothing of a captured call, and neither disturbs the other."""
    stock, fast = pair(hf.BertForTokenClassification)
    inputs = batch_of("right")
    dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with torch.no_grad(), captured_on_cpu():
        for _ in range(3):
            fast(**inputs)
        exported = torch.export.export(fast, (), inputs, dynamic_shapes=dict.fromkeys(inputs, dims), strict=strict)
        assert "_foreach_copy_" not in str(exported.graph)  # which fills buffers
        for batch in (inputs, shorter(inputs, 2, 7)):
            compare(exported.module()(**batch), stock(**batch), batch)
        compare(fast(**inputs), stock(**inputs), inputs)
    assert graphs.memory(fast).graphs == 1


def test_a_trace():
    stock, fast = pair(hf.BertForTokenClassification, return_dict=False)
    inputs = batch_of("right", types=False)
    arguments = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad(), captured_on_cpu():
        traced = torch.jit.trace(fast, arguments, check_trace=False)
        assert graphs.memory(fast) == (0, 0)
        other = arguments[1].flip(0)
        got, want = (model(arguments[0], other)[0][other.bool()] for model in (traced, stock))
        assert_same(got, want)
