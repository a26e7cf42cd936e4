"""What the tests of captured models share: calls of every layout, a stand-in that counts, the comparison with the CPU's own way."""

import copy

import pytest
import torch
from model_cases import PADDINGS, VOCAB, packed, padded

from bertfast.graphs.backend import StandIn
from bertfast.testing import assert_within_budget, rms_error

LAYOUTS = (*PADDINGS, "packed", "packed with a tail", "packed, lengths unseen", "packed with a tail, lengths unseen")


class Counting(StandIn):
    """Counts captures, replays of them by calls, and graphs that were reset."""

    def __init__(self):
        super().__init__()
        self.captures = self.replays = self.resets = 0

    def capture(self, function, pool="inference"):
        self.captures += 1
        self.replays -= 1  # what is captured is replayed once in the same call
        graph = super().capture(function)
        replay, reset = graph.replay, graph.reset

        def replayed(function):
            self.replays += 1
            replay(function)

        def given_back():
            self.resets += 1
            reset()

        graph.replay, graph.reset = replayed, given_back
        return graph


def inputs_of(layout, number=0):
    """Calls of one bucket with other tokens each; the layout of a packed one as its caller has it on a GPU or on a CPU."""
    inputs = padded(layout if layout in PADDINGS else "right")
    generator = torch.Generator().manual_seed(100 + number)
    inputs["input_ids"] = torch.randint(1, VOCAB, inputs["input_ids"].shape, generator=generator)
    if layout in PADDINGS:
        return inputs
    return packed(inputs, tail=5 if "tail" in layout else 0)


def tensors_of(output):
    """The outputs of a head by name, without what it leaves out."""
    return {name: value for name, value in vars(output).items() if isinstance(value, torch.Tensor)}


def real_of(inputs, value):
    """What is defined of an output: not the hidden states at padding, nor of tokens past the last sequence."""
    ids = inputs["input_ids"]
    if value.shape[: ids.dim()] != ids.shape:
        return value
    if "cu_seqlens" in inputs:
        return value[: int(inputs["cu_seqlens"][-1])]
    return value[inputs["attention_mask"].bool()] if "attention_mask" in inputs else value


@torch.no_grad()
def eagerly(model, inputs):
    """The same call on the CPU's own way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertfast.nn.device.KINDS", frozenset())
        return tensors_of(model(**inputs))


def assert_right(got, model, inputs):
    """`got` beside the same call on the CPU's own way, errors against float64."""
    eager, oracle = eagerly(model, inputs), eagerly(copy.deepcopy(model).double(), inputs)
    got = tensors_of(got)
    assert got
    assert set(got) == set(oracle)
    for name, value in got.items():
        each = (real_of(inputs, t) for t in (value, eager[name], oracle[name]))
        assert_within_budget(*each, what=name, measure=rms_error)
