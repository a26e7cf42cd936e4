"""Own models captured, by the stand-in: weights and modules that change, bounds, copies, training in between."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from captured import captured_on_cpu
from captured_cases import Counting, assert_right, inputs_of
from model_cases import VOCAB, ours

from bertfast import graphs
from bertfast.graphs import Limits


@pytest.fixture
def backend():
    with captured_on_cpu(Counting()) as backend:
        yield backend


def test_limits(backend):
    model = ours("BertForTokenClassification").eval()
    bert = model.bert

    def call(*lengths):
        for length in lengths:
            generator = torch.Generator().manual_seed(length)
            inputs = {"input_ids": torch.randint(1, VOCAB, (2, length), generator=generator)}
            with torch.no_grad():
                assert_right(model(**inputs), model, inputs)
        return graphs.memory(model).graphs

    bert.graph_limits = Limits(max_graphs=0)
    assert call(5, 5, 5) == 0
    bert.graph_limits = Limits(max_graphs=2, pause=0)
    assert call(5, 5, 10, 10) == 2
    assert call(20, 20) == 2
    assert (backend.captures, backend.replays, backend.resets) == (3, 0, 1)
    assert call(20, 10, 10) == 2
    assert (backend.captures, backend.replays) == (3, 3)
    bert.graph_limits = Limits(max_bytes=1, pause=0)
    assert call(40, 40, 40) == 2  # what there is stays until something new is kept
    assert (backend.captures, backend.replays) == (4, 3)
    assert "more than max_graph_bytes" in graphs.reasons(model)[0]
    graphs.clear(model)
    assert graphs.memory(model) == (0, 0)
    assert backend.resets == 4


def of(model, dtype=None):
    """A float of its own for every parameter, so that no change is lost by chance."""
    generator = torch.Generator().manual_seed(9)
    state = {name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in model.state_dict().items()}
    return {name: value.to(dtype or next(model.parameters()).dtype) for name, value in state.items()}


def query(model):
    return model.bert.encoder.layer[0].attention.self.query


def replace_parameter(model):
    query(model).weight = torch.nn.Parameter(query(model).weight.detach() * 2)


def replace_data(model):
    query(model).weight.data = query(model).weight.data * 2


def replace_linear(model):
    linear = query(model)
    model.bert.encoder.layer[0].attention.self.query = torch.nn.Linear(linear.in_features, linear.out_features)


def grow(model):
    model.resize_token_embeddings(VOCAB + 8)


def norm_eps(model):
    model.bert.encoder.layer[1].output.LayerNorm.eps = 0.1


IN_PLACE = {
    "load_state_dict": lambda model: model.load_state_dict(of(model)),
    "mul_": lambda model: query(model).weight.mul_(2),
    "an edit through .data": lambda model: query(model).weight.data.mul_(2),
    "one element through .data": lambda model: query(model).weight.data[3, 5].fill_(9.0),
    "the word table": lambda model: model.bert.embeddings.word_embeddings.weight.mul_(2),
    "a bias": lambda model: query(model).bias.add_(1),
    "the head alone": lambda model: model.classifier.weight.mul_(2),
    "a new head": lambda model: setattr(model, "classifier", torch.nn.Linear(64, 2)),
}
ELSEWHERE = {
    "load_state_dict(assign)": lambda model: model.load_state_dict(of(model), assign=True),
    "another parameter": replace_parameter,
    ".data": replace_data,
    "another Linear": replace_linear,
    "more words": grow,
    "bfloat16": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", [*IN_PLACE, *ELSEWHERE])
def test_changed_weights_are_seen_at_once(backend, change):
    """In place without anything new; elsewhere by another graph, the old one given back."""
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    with torch.no_grad():
        for _ in range(3):
            before = model(**inputs).logits
        (IN_PLACE | ELSEWHERE)[change](model)
        for _ in range(3):
            output = model(**inputs)
            assert change == "more words" or not torch.equal(output.logits.float(), before)
            assert_right(output, model, inputs)
    in_place = change in IN_PLACE
    assert (backend.captures, backend.resets) == ((1, 0) if in_place else (2, 1))
    assert backend.replays == (4 if in_place else 2)


def test_an_eps_is_part_of_what_was_captured(backend):
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
        norm_eps(model)
        for _ in range(3):
            assert_right(model(**inputs), model, inputs)


def test_float64_is_not_captured(backend):
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
        model.double()
        for _ in range(3):
            assert_right(model(**inputs), model, inputs)
    assert backend.replays == 1


def test_hooks_see_their_calls(backend):
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    seen = []
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
        places = (model.bert.embeddings, model.bert.encoder.layer[1], model.bert.encoder.layer[0].attention)
        for number, module in enumerate(places):
            hook = module.register_forward_hook(lambda module, *_: seen.append(module))
            model(**inputs)
            assert len(seen) == number + 1
            hook.remove()
        assert_right(model(**inputs), model, inputs)
    assert backend.replays == 2


def test_evaluation_between_steps_sees_the_new_weights(backend):
    model = ours("BertForSequenceClassification", dropout=0.1)
    inputs, labels = inputs_of("right"), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = None
    for step in range(5):
        model.train()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            output = model(**inputs)
            assert before is None or not torch.equal(output.logits, before)
            before = output.logits
            assert_right(output, model, inputs)
        assert graphs.memory(model).graphs == 2 * min(step, 1)  # of inference and of training
    with graphs.suspended():
        captures, replays = backend.captures, backend.replays
        with torch.no_grad():
            model(**inputs)
        assert (backend.captures, backend.replays) == (captures, replays + 1)


def test_dropout_is_never_captured(backend):
    model, inputs = ours("BertForSequenceClassification", dropout=0.5).train(), inputs_of("right")
    with torch.no_grad():
        outputs = [model(**inputs).logits for _ in range(4)]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 4
    assert backend.captures == 0


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: saved(model),
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_graphs_of_their_own(backend, how):
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
        other = COPIES[how](model)
        assert graphs.memory(other) == (0, 0)
        query(other).weight.mul_(2)
        for _ in range(3):
            assert_right(other(**inputs), other, inputs)
            assert_right(model(**inputs), model, inputs)
    assert (backend.captures, backend.replays) == (2, 5)
    assert other.bert.graph_limits == model.bert.graph_limits


def test_save_and_load(backend, tmp_path):
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    with torch.no_grad():
        outputs = [model(**inputs).logits for _ in range(3)]
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert [torch.equal(loaded(**inputs).logits, output) for output in outputs] == [True] * 3
    assert backend.captures == 2


def test_memory_goes_with_the_model(backend):
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
    assert graphs.memory(model).nbytes > 0
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None
    assert backend.resets == 1
