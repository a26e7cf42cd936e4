"""torch.compile without graph breaks, torch.export with dynamic shapes, and jit traces that do not bake in a padding."""

import copy

import pytest
import torch
from bert_cases import HIDDEN, assert_same, batch_of, loss_of, pair

import bertfast


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def layers(backend):
    """Two in one graph; one where code is generated, which would be the same code twice."""
    return 1 if backend == "inductor" else 2


def shorter(inputs, batch, seqlen):
    return {name: value[:batch, :seqlen] for name, value in inputs.items()}


@pytest.mark.tool("torch.compile", "inference, full graph, dynamic shapes", "fast")
@pytest.mark.parametrize(
    ("implementation", "backend"),
    [("sdpa", "aot_eager"), ("eager", "aot_eager"), ("sdpa", "inductor")],
    indirect=["backend"],
)
def test_full_graph_inference_with_dynamic_shapes(implementation, backend):
    count = layers(backend) if implementation == "sdpa" else 1
    stock, fast = pair(attn_implementation=implementation, num_hidden_layers=count)
    compiled = torch.compile(fast, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for inputs in (batch_of("right"), shorter(batch_of("right"), 3, 9), batch_of("none")):
            real = inputs["attention_mask"].bool()
            assert_same(compiled(**inputs).last_hidden_state[real], stock(**inputs).last_hidden_state[real])
    counts = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counts <= 2, f"{counts} graphs: shapes were specialised"
    told = next(row.calls for row in bertfast.report(fast).rows if row.kind == "BertEncoder")
    assert told == {"fast, padding removed (compiled)": 3}


def test_full_graph_inference_with_static_shapes():
    """Where code is generated for them: test_compile_captured.py."""
    stock, fast = pair(num_hidden_layers=1)
    inputs = batch_of("right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        got = torch.compile(fast, fullgraph=True, dynamic=False, backend="aot_eager")(**inputs)
        assert_same(got.last_hidden_state[real], stock(**inputs).last_hidden_state[real])


@pytest.mark.tool("torch.compile", "training, full graph", "fast")
@pytest.mark.parametrize(
    ("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)], indirect=["backend"]
)
def test_full_graph_training(backend, dynamic):
    stock, fast = pair(train=True, num_hidden_layers=layers(backend))
    compiled = torch.compile(fast, fullgraph=True, dynamic=dynamic, backend=backend)
    inputs = batch_of("right")
    for model in (stock, compiled):
        loss_of(model(**inputs), inputs["attention_mask"]).backward()
    for (name, want), got in zip(stock.named_parameters(), fast.parameters(), strict=True):
        if want.grad is not None and not name.endswith("key.bias"):
            assert_same(got.grad, want.grad, name, tolerance=1e-4)


@pytest.mark.parametrize("recorded", ["hidden_states", "attentions"])
def test_full_graph_after_and_while_recording(recorded):
    """One recorded call comes first: since 5.2 transformers puts its hooks in place then, under a lock that breaks graphs."""
    stock, fast = pair(attn_implementation="eager")
    inputs, asked = batch_of("right"), {f"output_{recorded}": True}
    real = inputs["attention_mask"].bool()
    fast(**inputs, **asked)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(**inputs).last_hidden_state[real], stock(**inputs).last_hidden_state[real])
        want, got = (model(**inputs, **asked)[recorded] for model in (stock, compiled))
    for ours, theirs in zip(got, want, strict=True):
        assert_same(ours[real], theirs[real]) if recorded == "hidden_states" else assert_same(ours, theirs)


@pytest.mark.parametrize("backend", ["inductor"], indirect=True)
def test_full_graph_training_with_dropout(backend):
    """One seed gives one sequence of losses, another seed another one, and the loss falls."""
    inputs = batch_of("right")

    def losses(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        steps = []
        for _ in range(8):
            loss = compiled(**inputs).last_hidden_state[inputs["attention_mask"].bool()].sub(target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.detach())
        return torch.stack(steps)

    _, model = pair(train=True, dropout=0.1, num_hidden_layers=1)
    start = copy.deepcopy(model.state_dict())
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    target = torch.randn(int(inputs["attention_mask"].sum()), HIDDEN)
    first = losses(7)
    assert torch.equal(losses(7), first)
    assert not torch.equal(losses(8), first)
    assert first[-1] < first[0]


@pytest.mark.tool("torch.export", "dynamic batch and length", "falls back")
def test_export_with_dynamic_shapes():
    stock, fast = pair()
    inputs = batch_of("right", types=False)
    dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    exported = torch.export.export(fast, (), inputs, dynamic_shapes=dict.fromkeys(inputs, dims)).module()
    for batch, seqlen in ((4, 12), (2, 7)):
        small = shorter(inputs, batch, seqlen)
        real = small["attention_mask"].bool()
        assert_same(exported(**small).last_hidden_state[real], stock(**small).last_hidden_state[real])


@pytest.mark.parametrize("gradients", [True, False])
def test_a_trace_does_not_keep_the_padding_it_saw(gradients):
    stock, fast = pair(return_dict=False)
    inputs = batch_of("right", types=False)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(fast, (inputs["input_ids"], inputs["attention_mask"]), check_trace=False)
        other = inputs["attention_mask"].flip(0)
        want, got = (m(inputs["input_ids"], other)[0][other.bool()] for m in (stock, traced))
    assert_same(got, want)


def test_optimizing_does_not_disturb_a_compiled_stock_copy():
    stock, fast = pair()
    inputs = batch_of("none")
    compiled = torch.compile(copy.deepcopy(stock), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(**inputs).pooler_output, fast(**inputs).pooler_output)
        bertfast.restore(fast)
        assert torch.equal(fast(**inputs).pooler_output, stock(**inputs).pooler_output)
