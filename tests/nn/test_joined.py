"""The weights of all layers for a GPU's products: which are copies, when they are written again and when made again."""

import copy
import gc
import weakref

import pytest
import torch
from device_cases import WHERE, E, make_stack
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from bertfast.nn import joined
from bertfast.nn.joined import Joined
from bertfast.nn.parts import parts_of
from bertfast.ops.stamps import stamp


def weights_of(stack, dtype=torch.float32):
    found = Joined.of(stack, [parts_of(layer) for layer in stack], dtype)
    assert found is not None
    return found


def refreshed(stack, dtype=torch.float32):
    found = weights_of(stack, dtype)
    with torch.no_grad():
        found.refresh()
    return found


def copies_of(found):
    """Addresses of the joined matrices."""
    return {weights.qkv.data_ptr() for weights in found.layers}


def assert_current(found, stack, dtype=torch.float32):
    """Every field holds the parameters' numbers."""
    for weights, layer in zip(found.layers, stack, strict=True):
        (q, k, v, dense, norm, _, _), (up, down, last, _) = parts_of(layer)
        expected = (
            torch.cat([q.weight, k.weight, v.weight]).to(dtype).t(),
            torch.cat([q.bias, k.bias, v.bias]).to(dtype),
            *(dense.weight.to(dtype).t(), dense.bias, norm.weight, norm.bias),
            *(up.weight.to(dtype).t(), up.bias.to(dtype), down.weight.to(dtype).t(), down.bias, last.weight, last.bias),
        )
        assert len(expected) == len(weights)
        for value, parameter in zip(weights, expected, strict=True):
            assert value.dtype == parameter.dtype
            assert torch.equal(value, parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights(dtype):
    stack = make_stack()
    assert_current(refreshed(stack, dtype), stack, dtype)


def test_tensors_are_what_is_read_by_address():
    """Every parameter's memory, and that of the copies, whose stamp says whether a captured call is still good."""
    stack = make_stack()
    found = weights_of(stack)
    memory = {tensor.untyped_storage().data_ptr() for tensor in found.tensors}
    assert {parameter.untyped_storage().data_ptr() for parameter in stack.parameters()} < memory
    copies = {weights.qkv.untyped_storage().data_ptr() for weights in found.layers}
    assert copies < memory
    seen = stamp(found.tensors)
    assert seen.holds(weights_of(stack).tensors)
    swap_data(stack[0])
    assert not seen.holds(weights_of(stack).tensors)


class Functions(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refreshing_is_one_function(dtype):
    found = weights_of(make_stack(), dtype)
    with torch.no_grad(), Functions() as functions:
        found.refresh()
    assert functions.names == ["_foreach_copy_.default"]


def test_only_what_must_be_copied_is():
    stack = make_stack()
    products = sum(p.nbytes for n, p in stack.named_parameters() if "norm" not in n.lower())
    joined_alone = sum(
        p.nbytes for n, p in stack.named_parameters() if any(f".{x}." in n for x in ("query", "key", "value"))
    )
    second_biases = sum(layer.attention.output.dense.bias.nbytes + layer.output.dense.bias.nbytes for layer in stack)
    weights_of(stack)
    assert joined.memory(stack) == joined_alone
    weights_of(stack, torch.bfloat16)
    assert joined.memory(stack) == joined_alone + (products - second_biases) // 2
    joined.clear(stack)
    assert joined.memory(stack) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edits_in_place_are_seen_without_anything_made_again(dtype):
    stack = make_stack()
    found = refreshed(stack, dtype)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.data.add_(1.0)  # leaves no other version behind
            parameter.mul_(2.0)
    assert copies_of(weights_of(stack, dtype)) == copies_of(found)
    with torch.no_grad():
        found.refresh()
    assert_current(found, stack, dtype)


def swap_data(layer):
    layer.intermediate.dense.weight.data = layer.intermediate.dense.weight.data.clone()


def narrow(layer):
    """The same address, stride and object, of another shape."""
    dense = layer.attention.self.query
    layer.attention.self.query.weight.data = dense.weight.data[: E // 2]


def transpose(layer):
    weight = layer.attention.output.dense.weight
    weight.data = weight.data.t()


def replace_parameter(layer):
    layer.attention.self.value.bias = nn.Parameter(torch.ones(E, device=WHERE))


def replace_module(layer):
    layer.output.LayerNorm = nn.LayerNorm(E, device=WHERE)


def load(layer):
    layer.load_state_dict({name: tensor.clone() for name, tensor in layer.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [swap_data, narrow, transpose, replace_parameter, replace_module, load])
def test_moved_parameters_are_noticed(change):
    stack = make_stack()
    before, other = weights_of(stack), weights_of(stack, torch.bfloat16)
    change(stack[1])
    found = refreshed(stack)
    assert copies_of(found).isdisjoint(copies_of(before))
    assert_current(found, stack)
    memory = joined.memory(stack)
    assert copies_of(weights_of(stack, torch.bfloat16)).isdisjoint(copies_of(other))
    assert joined.memory(stack) > memory  # the other dtype's copies were as stale and gone


def test_another_dtype_or_device_of_the_model():
    stack = make_stack()
    weights_of(stack)
    stack.bfloat16()
    found = refreshed(stack, torch.bfloat16)
    assert_current(found, stack, torch.bfloat16)
    stack.to("meta")
    assert weights_of(stack, torch.bfloat16).layers[0].qkv.is_meta


def test_copies_go_with_their_owner():
    stack = make_stack()
    weights_of(stack)
    (copies,) = joined._cache[stack].values()
    qkv = weakref.ref(copies.layers[0].qkv)
    del copies
    twin = copy.deepcopy(stack)
    assert qkv() is not None
    assert joined.memory(twin) == 0
    assert weights_of(twin).layers[0].qkv is not qkv()
    del stack
    gc.collect()
    assert qkv() is None


def test_parameters_are_not_held_beyond_a_call():
    """A model that moves to another device frees the memory on this one."""
    stack = make_stack()
    weights_of(stack)
    storages = [StorageWeakRef(parameter.untyped_storage()) for parameter in stack.parameters()]
    stack.to("meta")
    assert all(storage.expired() for storage in storages)


def test_streams_that_read_the_copies(monkeypatch):
    """Memory belongs to the stream that it was made on; each other one waits for that and is told to it, once. One that is being
    captured may not wait, and runs nothing."""
    told = []
    copies = weights_of(make_stack())._copies
    copies._made = "event"
    current, capturing = [0], [False]

    class Stream(int):
        def wait_event(self, event):
            told.append((int(self), event))

    monkeypatch.setattr(joined._torch, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(current[0]))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: told.append((stream, tensor.data_ptr())))
    for current[0], capturing[0] in ((1, False), (3, True), (2, False), (1, False)):
        copies._keep_for_stream(torch.device("cuda", 0))
    addresses = [target.data_ptr() for target in copies.targets]
    assert told == [(stream, what) for stream in (1, 2) for what in ("event", *addresses)]


def test_made_in_one_mode_and_used_in_another():
    stack = make_stack()
    with torch.inference_mode():
        found = refreshed(stack)
    assert not found.layers[0].qkv.is_inference()
    with torch.no_grad():
        found.refresh()
    with torch.inference_mode():
        found.refresh()
    assert_current(found, stack)


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        stack = make_stack()
    found = refreshed(stack)
    assert not found.layers[0].qkv.is_inference()
    assert_current(found, stack)


def test_alike():
    assert weights_of(make_stack()).alike
    stack = make_stack()
    stack[2].output.LayerNorm.weight = nn.Parameter(torch.ones(E + 1, device=WHERE)[1:])  # not on 16 bytes
    assert not weights_of(stack).alike
    stack = make_stack()
    stack[0].output.dense.bias = None
    assert not weights_of(stack).alike


@pytest.mark.parametrize("name", ["attention.self.key", "intermediate.dense", "output.LayerNorm"])
def test_a_bias_that_the_kernels_need(name):
    stack = make_stack()
    stack[1].get_submodule(name).bias = None
    assert Joined.of(stack, [parts_of(layer) for layer in stack], torch.float32) is None


def test_parameters_on_several_devices():
    stack = make_stack()
    stack[1].to("meta")
    assert Joined.of(stack, [parts_of(layer) for layer in stack], torch.float32) is None
