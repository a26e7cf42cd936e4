"""Inference in a compiled graph takes the padding out, by one node for all layers, and gives an eager call's numbers."""

import copy

import pytest
import torch
from bert_cases import HIDDEN, PADDINGS, batch_of, pair
from torch import nn
from transformers.models.bert import modeling_bert as hf

from bertfast import optimize, report, restore
from bertfast.convert import compiled, counts
from bertfast.convert.families import FAMILIES
from bertfast.nn.layout import Packed
from bertfast.testing import assert_within_budget

NODE = "bertfast.encoder_layers.default"


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def no_graphs_before(monkeypatch):
    monkeypatch.setattr(counts, "_uncounted", {})


class Graphs:
    """A backend that runs the graphs as they are, and keeps them."""

    def __init__(self):
        self.made = []

    def __call__(self, graph, example_inputs):
        self.made.append(graph)
        return graph.forward

    @property
    def nodes(self):
        """How many of each graph's nodes are all layers at once."""
        return [sum(str(node.target) == NODE for node in graph.graph.nodes) for graph in self.made]


@pytest.fixture
def graphs():
    return Graphs()


@pytest.fixture
def layouts(monkeypatch):
    """A list that gets the rows and the layout of every later run of all layers inside a node."""
    seen = []
    through = compiled._Layers.through

    def spied(self, x, layout):
        seen.append((tuple(x.shape[:-1]), type(layout)))
        return through(self, x, layout)

    monkeypatch.setattr(compiled._Layers, "through", spied)
    return seen


def sized(padding, batch=4, seqlen=12):
    """A batch of its own memory: a view's base is one more size that a graph depends on."""
    return {name: value[:batch, :seqlen].clone() for name, value in batch_of(padding).items()}


def calls_of(model, kind="BertEncoder"):
    return next(row.calls for row in report(model).rows if row.kind == kind)


def uncounted_notes(model):
    return [note for note in report(model).notes if "not counted" in note]


def real_tokens(inputs):
    return int(inputs["attention_mask"].sum())


@torch.no_grad()
@pytest.mark.tool("torch.compile", "inference without padding, one graph for all sizes", "fast")
def test_numbers_are_an_eager_calls_whatever_the_size(graphs, layouts):
    """A model of which nobody reads position 0; one graph for all paddings and sizes."""
    stock, fast = pair(hf.BertForTokenClassification)
    exact = copy.deepcopy(stock).double()
    run = torch.compile(fast, fullgraph=True, dynamic=True, backend=graphs)
    for inputs in (*map(sized, PADDINGS), sized("right", 3, 9), sized("holes", 2, 7)):
        layouts.clear()
        got = run(**inputs).logits
        rows = real_tokens(inputs)
        assert layouts == [((rows,), Packed)]
        assert torch.equal(got, fast(**inputs).logits)
        real = inputs["attention_mask"].bool()
        assert_within_budget(got[real], stock(**inputs).logits[real], exact(**inputs).logits[real])
    assert graphs.nodes == [1]


@torch.no_grad()
def test_zeros_at_padding(graphs):
    _, fast = pair()
    inputs = sized("right")
    states = torch.compile(fast, fullgraph=True, backend=graphs)(**inputs).last_hidden_state
    assert not states[~inputs["attention_mask"].bool()].any()
    assert graphs.nodes == [1]


@torch.no_grad()
def test_position_0_is_read(graphs, layouts):
    """Sequences that begin with padding stay padded where the pooler looks at them: all, or those alone where that saves work."""
    stock, fast = pair()
    exact = copy.deepcopy(stock).double()
    run = torch.compile(fast, fullgraph=True, dynamic=True, backend=graphs)
    mixed = sized("right")
    mixed["attention_mask"] = torch.zeros_like(mixed["attention_mask"])
    mixed["attention_mask"][:3, :2] = 1
    mixed["attention_mask"][3, 5:] = 1
    for inputs, shapes in ((sized("left"), [(4, 12)]), (mixed, [(6,), (1, 12)])):
        layouts.clear()
        got = run(**inputs)
        assert [shape for shape, _ in layouts] == shapes
        real = inputs["attention_mask"].bool()
        for name in ("last_hidden_state", "pooler_output"):
            mine, eager, theirs, true = (model[name] for model in (got, *(m(**inputs) for m in (fast, stock, exact))))
            torch.testing.assert_close(mine, eager, rtol=0, atol=1e-5 * float(eager.abs().max()))
            rows = real if name == "last_hidden_state" else ...
            assert_within_budget(mine[rows], theirs[rows], true[rows])
    assert graphs.nodes == [1]


@torch.no_grad()
def test_a_mask_that_is_more_than_padding(graphs, layouts):
    stock, fast = pair()
    exact = copy.deepcopy(stock).double()
    inputs = sized("none")
    causal = torch.ones(12, 12, dtype=torch.bool).tril().expand(4, 1, 12, 12)
    inputs["attention_mask"] = causal
    got = torch.compile(fast, fullgraph=True, backend=graphs)(**inputs).last_hidden_state
    assert [shape for shape, _ in layouts] == [(4, 12)]
    assert_within_budget(got, stock(**inputs).last_hidden_state, exact(**inputs).last_hidden_state)


@torch.no_grad()
def test_weights_are_those_of_now_and_of_the_model_at_hand(graphs):
    """One graph serves every model of the same form, and weights that change in place."""
    _, one = pair()
    other = copy.deepcopy(one)
    inputs = sized("right")

    @torch.compile(fullgraph=True, backend=graphs)
    def states(model):
        return model(**inputs).last_hidden_state

    for model in (one, other):
        for parameter in model.encoder.parameters():
            parameter.mul_(0.9 if model is one else 1.2)
        assert torch.equal(states(model), model(**inputs).last_hidden_state)
    one.encoder.layer[1].output.dense.weight.neg_()
    assert torch.equal(states(one), one(**inputs).last_hidden_state)
    assert set(graphs.nodes) == {1}


class _Low(nn.Linear):
    """A product that is not a plain one."""


def _replace(model):
    model.encoder.layer[1].output.dense.__class__ = _Low


def _chunk(model):
    model.encoder.layer[1].chunk_size_feed_forward = 4


CHANGES = {
    "training mode": lambda model: model.train(),
    "unpad=False": lambda model: optimize(model, unpad=False),
    "a product of another class": _replace,
    "chunks": _chunk,
    "a hook on a layer": lambda model: model.encoder.layer[0].register_forward_hook(lambda *_: None),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_kept_padded(graphs, change):
    stock, fast = pair()
    CHANGES[change](fast)
    inputs = sized("right")
    real = inputs["attention_mask"].bool()
    got = torch.compile(fast, fullgraph=True, backend=graphs)(**inputs).last_hidden_state
    assert graphs.nodes == [0]
    (note,) = uncounted_notes(fast)
    assert {"training mode": "(dropout is on)", "a product of another class": "with adapters"}.get(change, "") in note
    assert not calls_of(fast)
    exact = copy.deepcopy(stock).double()
    assert_within_budget(got[real], stock(**inputs).last_hidden_state[real], exact(**inputs).last_hidden_state[real])


def test_gradients_keep_the_padding(graphs):
    _, fast = pair()
    run = torch.compile(fast, fullgraph=True, backend=graphs)
    inputs = sized("right")
    run(**inputs).last_hidden_state.sum().backward()
    assert fast.encoder.layer[0].output.dense.weight.grad is not None
    with torch.no_grad():
        run(**inputs)
    fast.requires_grad_(False)
    run(**inputs)
    assert graphs.nodes == [0, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("strict", [True, False])
def test_an_export_has_no_such_node(strict):
    _, fast = pair(num_hidden_layers=1)
    program = torch.export.export(fast, (), sized("right"), strict=strict)
    assert all(str(node.target) != NODE for node in program.graph.nodes)
    assert not uncounted_notes(fast)


@torch.no_grad()
@pytest.mark.tool("torch.compile", "inference without padding under autocast to bfloat16", "fast")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_autocast(backend, layouts):
    """Compilers that trace below autograd run their graphs with autocast off, others with it on."""
    stock, fast = pair(hf.BertForTokenClassification, num_hidden_layers=1)
    exact = copy.deepcopy(stock).double()
    run = torch.compile(fast, fullgraph=True, dynamic=True, backend=backend)
    for inputs in (sized("right"), sized("holes", 3, 9)):
        layouts.clear()
        real = inputs["attention_mask"].bool()
        true = exact(**inputs).logits[real]
        with torch.autocast("cpu", torch.bfloat16):
            compiled_logits, fast_logits, stock_logits = (model(**inputs).logits for model in (run, fast, stock))
        assert layouts == [((real_tokens(inputs),), Packed)]
        assert torch.equal(compiled_logits, fast_logits)
        assert_within_budget(compiled_logits[real], stock_logits[real], true)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert calls_of(fast)["fast, padding removed (compiled)"] == 2


@torch.no_grad()
def test_calls_are_counted(graphs):
    """By what each did, for each model that a graph serves, and without a graph more."""
    _, one = pair(num_hidden_layers=1)
    other = copy.deepcopy(one)

    @torch.compile(fullgraph=True, dynamic=True, backend=graphs)
    def states(model, inputs):
        return model(**inputs).last_hidden_state

    mixed = sized("right")
    mixed["attention_mask"][0] = mixed["attention_mask"][0].flip(0)
    mixed["attention_mask"][3] = mixed["attention_mask"][3].flip(0)
    for model, batches in ((one, ["right", "none", "left", "holes"]), (other, ["right"])):
        for padding in batches:
            states(model, sized(padding))
    states(other, mixed)
    states(other, sized("right") | {"attention_mask": torch.ones(4, 1, 12, 12, dtype=torch.bool).tril()})
    removed, split, more, position = (
        f"{outcome} (compiled)"
        for outcome in (
            counts.UNPADDED,
            counts.SPLIT,
            "kept padded: the mask is more than padding",
            "kept padded: the pooler reads position 0, which is padding in some sequence",
        )
    )
    assert calls_of(one) == {removed: 3, position: 1}
    assert calls_of(other) == {removed: 1, split: 1, more: 1}
    assert calls_of(one, "BertLayer") == {removed: 3, "fast (compiled)": 1}
    assert set(graphs.nodes) == {1}
    assert not uncounted_notes(one)
    one(**sized("right"))
    assert calls_of(one)[counts.UNPADDED] == 1
    assert calls_of(optimize(restore(one))) == {}
    assert not calls_of(copy.deepcopy(other))


@torch.no_grad()
@pytest.mark.tool("torch.compile", "inference without padding, other families (MPNet stays padded)", "fast")
@pytest.mark.parametrize("family", ["distilbert", "electra", "mpnet", "roberta"])
def test_families(graphs, family):
    """MPNet's layers need relative positions, and stay padded."""
    record = FAMILIES[family]
    torch.manual_seed(2)
    stock = record.model(record.tiny(initializer_range=0.2)).eval()
    fast = optimize(copy.deepcopy(stock))
    exact = copy.deepcopy(stock).double()
    run = torch.compile(fast, fullgraph=True, dynamic=True, backend=graphs)
    for batch, seqlen in ((3, 10), (2, 8)):
        ids = torch.randint(5, 50, (batch, seqlen))
        mask = torch.ones_like(ids)
        mask[1:, 4:] = 0
        ids[mask == 0] = stock.config.pad_token_id
        inputs, real = {"input_ids": ids, "attention_mask": mask}, mask.bool()
        got, theirs, true = (m(**inputs).last_hidden_state[real] for m in (run, stock, exact))
        assert_within_budget(got, theirs, true)
    assert graphs.nodes == [0 if family == "mpnet" else 1]
    assert len(uncounted_notes(fast)) == (family == "mpnet")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_node_is_an_op(dtype):
    """Its schema, and what it says of its result without running; and the same without reordered weights."""
    stock, fast = pair(dtype=dtype)
    exact = copy.deepcopy(stock).double()
    states = torch.randn(4, 12, HIDDEN, dtype=dtype)
    real = batch_of("holes")["attention_mask"].bool()
    layers = list(fast.encoder.layer)
    parameters = [p for layer in layers for p in compiled.parts_of(layer).parameters()]
    eps = [1e-12] * (2 * len(layers))
    for prepack in (True, False):
        arguments = (
            states,
            real[:, None, None],
            parameters,
            2,
            (HIDDEN // 2) ** -0.5,
            "none",
            eps,
            False,
            prepack,
            False,
            None,
        )
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(compiled._layers, arguments, test_utils=checks)
        got = compiled._layers(*arguments)
        mask = real[:, None, None].expand(4, 1, 12, 12)
        want, true = (m.encoder(states.to(m.dtype), attention_mask=mask).last_hidden_state for m in (stock, exact))
        assert_within_budget(got[real], want[real], true[real])
        assert not got[~real].any()
