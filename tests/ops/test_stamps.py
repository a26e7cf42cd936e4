"""Stamps of tensors, in C++ and in Python: they hold for the same tensors in the same places alone."""

import gc

import pytest
import torch
from torch import nn

from bertfast import _ext
from bertfast.ops import stamps


@pytest.fixture(params=["python", "extension"])
def make(request):
    if request.param == "python":
        return stamps.PythonStamp
    if _ext.load() is None:
        pytest.skip(f"no extension: {_ext.why_absent()}")
    return _ext.load().Stamp


def tensors():
    return [nn.Parameter(torch.randn(4, 6)), None, torch.randn(3), torch.randn(4, 4)[1:, 1:], torch.zeros(0, 5)]


def test_what_is_written_does_not_count(make):
    held = tensors()
    stamp = make(held)
    assert stamp.holds(held)
    assert stamp.holds(tuple(held))
    with torch.no_grad():
        held[0].add_(1)
    held[0].requires_grad_(False)
    assert stamp.holds(held)
    assert stamp.holds([held[0].detach(), *held[1:]]), "the same memory by another object"


CHANGES = {
    "another": lambda held: held.__setitem__(2, held[2].clone()),
    "swapped through data": lambda held: setattr(held[0], "data", held[0].data.clone()),
    "a view further on": lambda held: held.__setitem__(2, held[2][:3].as_strided((3,), (1,), 0)[1:]),
    "a shorter one": lambda held: held.__setitem__(2, held[2][:2]),
    "other sizes": lambda held: held.__setitem__(0, held[0].data.view(6, 4)),
    "other strides": lambda held: held.__setitem__(0, held[0].data.as_strided((4, 6), (1, 4))),
    "another dtype": lambda held: held.__setitem__(2, held[2].view(torch.int32)),
    "gone": lambda held: held.__setitem__(2, None),
    "new": lambda held: held.__setitem__(1, torch.zeros(1)),
    "one less": lambda held: held.pop(),
    "one more": lambda held: held.append(None),
    "other order": lambda held: held.reverse(),
    "emptied": lambda held: held[2].untyped_storage().resize_(0),
    "on meta": lambda held: held.__setitem__(2, held[2].to("meta")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes(make, name):
    held = tensors()
    stamp = make(held)
    CHANGES[name](held)
    assert not stamp.holds(held)
    assert make(held).holds(held)


def test_an_address_that_is_used_again(make):
    """The allocator gives a new tensor the place of one that is gone: it is another tensor all the same."""
    for _ in range(50):
        old = [torch.randn(1000)]
        stamp, address = make(old), old[0].data_ptr()
        old.clear()
        gc.collect()
        new = [torch.randn(1000)]
        assert not stamp.holds(new)
        if new[0].data_ptr() == address:
            return
    pytest.skip("the allocator never gave the address again")


def test_no_memory_is_kept(make):
    from torch.multiprocessing.reductions import StorageWeakRef

    held = [torch.randn(10)]
    storage = StorageWeakRef(held[0].untyped_storage())
    stamp = make(held)
    held.clear()
    assert storage.expired()
    assert not stamp.holds(held)


def test_what_it_cannot_look_at_never_holds(make):
    from torch.testing._internal.two_tensor import TwoTensor

    for odd in (TwoTensor(torch.ones(2), torch.ones(2)), torch.eye(3).to_sparse()):
        assert not make([odd]).holds([odd])


def test_other_things_are_an_error(make):
    with pytest.raises(TypeError, match="tensors"):
        make([3])


def test_which_one_is_made():
    made = stamps.stamp([None])
    assert isinstance(made, stamps.PythonStamp if _ext.load() is None else _ext.load().Stamp)
    assert made.holds([None])
