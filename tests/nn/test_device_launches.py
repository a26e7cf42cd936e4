"""What layers without the dispatcher launch, on a pretended GPU: how many kernels, which, and nothing that waits."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton is not installed")
from device_cases import KIND, E, F, H, by_ops, make_stack
from fake_cuda import FakeGpu, fake_cuda

from bertfast.nn import device
from bertfast.nn.joined import Joined
from bertfast.nn.layout import Packed
from bertfast.nn.modules import BertEmbeddings
from bertfast.nn.parts import LayerParts, parts_of
from bertfast.triton import mailbox, repeats, verified

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
DEPTH, TOKENS = 12, 128


class Case(NamedTuple):
    """A stack of BERT-base's depth, its weights, and one sequence, all on the pretended GPU."""

    gpu: FakeGpu
    stack: nn.ModuleList
    parts: list[LayerParts]
    joined: Joined
    x: Tensor
    layout: Packed

    def run(self) -> Tensor:
        return device.layers(self.x, self.parts, KIND, self.layout, self.joined)


@contextmanager
def pretended(*modules: nn.Module) -> Iterator[FakeGpu]:
    """A GPU with these modules on it."""
    with verified.allow_unverified(), fake_cuda() as gpu, pytest.MonkeyPatch.context() as patch:
        with gpu.preparing():
            for module in modules:
                module.cuda()
            box = torch.zeros(mailbox.SLOTS, dtype=torch.int64)
        patch.setattr(mailbox, "box", lambda device: box)  # always the same, as on a real one
        yield gpu


@contextmanager
def case(
    dtype: torch.dtype = torch.bfloat16, products: torch.dtype = torch.bfloat16, read: int | None = None
) -> Iterator[Case]:
    stack = make_stack(dtype, DEPTH)
    with pretended(stack) as gpu:
        with gpu.preparing():
            parts = [parts_of(layer) for layer in stack]
            joined = Joined.of(stack, parts, products)
            x = torch.zeros(TOKENS, E, dtype=dtype, device="cuda")
            bounds = torch.zeros(2, dtype=torch.int32, device="cuda")
            rows = None if read is None else torch.zeros(read, dtype=torch.int64, device="cuda")
        assert joined is not None
        yield Case(gpu, stack, parts, joined, x, Packed(bounds, TOKENS, rows))


@pytest.fixture
def made_repeats(monkeypatch):
    made = []
    original = repeats.repeat
    monkeypatch.setattr(repeats, "repeat", lambda *args: made.append(original(*args)) or made[-1])
    return made


KERNELS = {
    "attention_fwd_single_kernel": DEPTH,
    "dropout_add_norm_fwd_kernel": 2 * DEPTH,
    "bias_gelu_fwd_kernel": DEPTH,
}


def test_eight_launches_a_layer(made_repeats):
    with case() as given:
        y = given.run()
    assert y.shape == given.x.shape
    assert given.gpu.ops == {"addmm": DEPTH, "mm": 3 * DEPTH, "_foreach_copy_": 1}
    assert Counter(found.kernel.__name__ for found in given.gpu.launches) == KERNELS
    assert given.gpu.checks == 1  # of a bad bound, once a call
    assert len(made_repeats) == 4
    assert None not in made_repeats


def test_by_the_ops_there_are_ten():
    """Weights and biases are joined again in each layer."""
    with case() as given:
        by_ops(given.stack, given.x, given.layout)
    once = {"cat": 2, "linear_fwd": 3, "attention_fwd": 1, "dropout_add_norm_fwd": 2}
    twice = {"linear_gelu_fwd": 1}  # a product and GELU
    assert given.gpu.ops == {name: count * DEPTH for name, count in (once | twice).items()}
    assert sum(once.values()) + 2 * sum(twice.values()) == 10


def test_rows_that_are_read():
    with case(read=3) as given:
        y = given.run()
    assert y.shape == (3, E)
    assert given.gpu.ops == {"addmm": DEPTH, "mm": 3 * DEPTH, "_foreach_copy_": 1, "index_select": 2}
    assert Counter(found.kernel.__name__ for found in given.gpu.launches) == KERNELS


def test_autocast_casts_activations_alone():
    """Twice a layer, as the residual stream is float32; the casts of the weights are part of the one copy."""
    with case(torch.float32) as given:
        y = given.run()
    assert y.dtype == torch.float32
    assert given.gpu.ops.pop("copy_") + given.gpu.ops.pop("_to_copy") == 2 * DEPTH
    assert given.gpu.ops == {"addmm": DEPTH, "mm": 3 * DEPTH, "_foreach_copy_": 1}


def test_every_layer_launches_the_same():
    with case() as given:
        given.run()
    launches = given.gpu.launches
    first = launches[: len(launches) // DEPTH]
    assert [found.kernel.__name__ for found in first] == [
        "attention_fwd_single_kernel",
        "dropout_add_norm_fwd_kernel",
        "bias_gelu_fwd_kernel",
        "dropout_add_norm_fwd_kernel",
    ]
    assert launches == first * DEPTH
    constants = dict(first[0].constants)
    assert (constants["H"], constants["D"]) == (H, E // H)
    assert dict(first[2].constants)["F"] == F


@pytest.mark.parametrize("types", [False, True])
def test_embeddings(types):
    module = BertEmbeddings(50, E, TOKENS).eval()
    with pretended(module) as gpu:
        with gpu.preparing():
            ids = torch.zeros(TOKENS, dtype=torch.int64, device="cuda")
        y = device.embed(module, ids, ids if types else None, ids)
    assert y.shape == (TOKENS, E)
    assert gpu.ops == ({} if types else {"zeros_like": 1})
    assert [found.kernel.__name__ for found in gpu.launches] == ["embedding_sum_norm_fwd_kernel"]
    assert gpu.checks == 1
