"""What changes about a model between captured calls: the next call's numbers are at once stock's of the changed model, although
a graph goes on computing what was captured with what it was captured with."""

import copy

import pytest
import torch
from bert_cases import assert_same, batch_of, outcome, outputs_at_tokens, pair
from captured import captured_on_cpu
from torch import nn

from bertfast import graphs

WHOLE = "fast, from ids to hidden states"
FIRST, CAPTURED, REPLAYED = (f"{WHOLE}: {how}" for how in ("eager: first call of its bucket", "captured", "replayed"))


@pytest.fixture(autouse=True)
def on_a_stand_in():
    with captured_on_cpu():
        yield


def inputs_of(number: int):
    """A batch in the same bucket as every other, with ids of its own."""
    generator = torch.Generator().manual_seed(number)
    inputs = batch_of("right", types=False)
    return inputs | {"input_ids": torch.randint(1, 90, inputs["input_ids"].shape, generator=generator)}


def call(model, number: int = 0):
    with torch.no_grad():
        return model(**inputs_of(number))


def assert_alike(fast, stock, numbers=range(3), tolerance: float = 2e-5) -> None:
    mask = batch_of("right")["attention_mask"]
    for number in numbers:
        ours, theirs = (outputs_at_tokens(call(model, number), mask) for model in (fast, stock))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype
            assert_same(ours[name], value, f"{name} of call {number}", tolerance)


def replaying(**options):
    """A stock model and an optimised one that has a graph and has replayed it."""
    stock, fast = pair(**options)
    assert_alike(fast, stock)
    assert outcome(fast, "BertModel") == {FIRST: 1, CAPTURED: 1, REPLAYED: 1}
    return stock, fast


def edited(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)


def edited_behind(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.3)


def edited_table(model):
    model.embeddings.position_embeddings.weight.data.mul_(2)


def optimizer_step(model):
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    torch.optim.SGD(model.parameters(), lr=0.02).step()
    model.zero_grad(set_to_none=True)


def loaded(model):
    model.load_state_dict({name: value * 1.3 for name, value in model.state_dict().items()})


def positions_buffer(model):
    model.embeddings.position_ids = model.embeddings.position_ids.flip(1)


def positions_buffer_in_place(model):
    model.embeddings.position_ids[:, 1:] -= 1


def segments_buffer(model):
    model.embeddings.token_type_ids = torch.ones_like(model.embeddings.position_ids)


# Seen by the graph as it is: numbers in the memory that it reads.
IN_PLACE = [edited, edited_behind, edited_table, optimizer_step, loaded, positions_buffer_in_place]


def load_assigned(model):
    model.load_state_dict({name: value * 1.3 for name, value in model.state_dict().items()}, assign=True)


def data_swapped(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.3


def data_of_one_swapped(model):
    bias = model.encoder.layer[1].output.dense.bias
    bias.data = bias.data * -3


def new_parameter(model):
    norm = model.embeddings.LayerNorm
    norm.weight = nn.Parameter(norm.weight.detach() * 2)


def new_table(model):
    torch.manual_seed(6)
    model.set_input_embeddings(nn.Embedding(99, 64))


def resized(model):
    torch.manual_seed(7)
    model.resize_token_embeddings(128, mean_resizing=False)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(1.3)


def replaced_linear(model):
    torch.manual_seed(5)
    model.encoder.layer[1].output.dense = nn.Linear(128, 64)


def other_scale(model):
    for layer in model.encoder.layer:
        layer.attention.self.scaling = 0.5


def other_eps(model):
    model.encoder.layer[1].output.LayerNorm.eps = 1.0


def other_eps_of_attention(model):
    model.encoder.layer[0].attention.output.LayerNorm.eps = 1.0


def other_eps_of_embeddings(model):
    model.embeddings.LayerNorm.eps = 1.0


def other_gelu(model):
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.GELU("tanh")


def other_head_size(model):
    for layer in model.encoder.layer:
        layer.attention.self.attention_head_size //= 2


def new_layer(model):
    model.encoder.layer[0] = copy.deepcopy(model.encoder.layer[1])


def reordered_layers(model):
    model.encoder.layer = nn.ModuleList(reversed(model.encoder.layer))


def repeated_layer(model):
    model.encoder.layer.append(model.encoder.layer[0])


def fewer_layers(model):
    del model.encoder.layer[1]


def tied_parameters(model):
    first, second = model.encoder.layer
    second.output.dense.weight = first.output.dense.weight


def to_bfloat16(model):
    model.bfloat16()


def there_and_back(model):
    """Every parameter is where it was by name, and elsewhere in memory."""
    model.double().float()
    edited(model)


# A new graph: the first call runs eagerly, the second captures.
ANOTHER_GRAPH = [
    load_assigned, data_swapped, data_of_one_swapped, new_parameter, new_table, resized, replaced_linear, other_scale, other_eps,
    other_eps_of_attention, other_eps_of_embeddings, other_gelu, other_head_size, new_layer, reordered_layers, repeated_layer,
    fewer_layers, tied_parameters, to_bfloat16, there_and_back,
]  # fmt: skip


def hooked(model):
    model.encoder.layer[1].intermediate.register_forward_hook(lambda module, args, output: output * 2)


def hooked_before(model):
    model.embeddings.word_embeddings.register_forward_pre_hook(lambda module, args: (args[0] * 0 + 1,))


def replaced_forward(model):
    dense = model.encoder.layer[0].output.dense
    dense.forward = lambda x: type(dense).forward(dense, x) * 2


def replaced_activation(model):
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()


def to_float64(model):
    model.double()


def mixed_kinds(model):
    """Layers of two kinds are called one by one."""
    model.encoder.layer[0].attention.self.scaling = 0.5
    model.encoder.layer[1].attention.self.scaling = 0.25


def linear_without_bias(model):
    model.encoder.layer[0].attention.self.key.bias = None


# Calls go module by module, or layer by layer, as long as it is so.
NOT_CAPTURED = [
    hooked, hooked_before, replaced_forward, replaced_activation, to_float64, mixed_kinds, linear_without_bias,
]  # fmt: skip


@pytest.mark.parametrize("change", [*IN_PLACE, positions_buffer, segments_buffer], ids=lambda change: change.__name__)
def test_graphs_see_what_is_written_in_place(change):
    stock, fast = replaying()
    before = call(stock).last_hidden_state
    for model in (stock, fast):
        change(model)
    assert not torch.equal(call(stock).last_hidden_state, before)
    assert_alike(fast, stock)
    assert outcome(fast, "BertModel") == {FIRST: 1, CAPTURED: 1, REPLAYED: 4}
    assert graphs.memory(fast).graphs == 1


@pytest.mark.parametrize("change", ANOTHER_GRAPH, ids=lambda change: change.__name__)
def test_another_graph_is_made(change):
    stock, fast = replaying()
    before = call(stock).last_hidden_state
    for model in (stock, fast):
        change(model)
    after = call(stock).last_hidden_state
    assert after.dtype != before.dtype or not torch.equal(after, before)
    tolerance = 0.06 if after.dtype is torch.bfloat16 else 2e-5
    assert_alike(fast, stock, tolerance=tolerance)
    assert outcome(fast, "BertModel") == {FIRST: 2, CAPTURED: 2, REPLAYED: 2}


@pytest.mark.parametrize("change", NOT_CAPTURED, ids=lambda change: change.__name__)
def test_what_is_attached_is_called(change):
    stock, fast = replaying()
    before = call(stock).last_hidden_state
    for model in (stock, fast):
        change(model)
    after = call(stock).last_hidden_state
    assert after.dtype != before.dtype or not torch.equal(after, before)
    assert_alike(fast, stock)
    assert sum(n for how, n in outcome(fast, "BertModel").items() if how in (FIRST, CAPTURED, REPLAYED)) == 3


@pytest.mark.parametrize("part", ["embeddings", "encoder", "encoder.layer.1"])
def test_a_part_in_another_dtype(part):
    """Stock's products refuse two dtypes."""
    stock, fast = replaying()
    for model in (stock, fast):
        model.get_submodule(part).double()
    errors = []
    for model in (stock, fast):
        with pytest.raises(RuntimeError) as caught:
            call(model)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    for model in (stock, fast):
        model.float()
    assert_alike(fast, stock)
