"""A whole inference call on a pretended GPU, from the call of the model to its output: what waits for the device, and what is launched.

Nothing waits where all tokens are real and where a caller gives lengths; a mask is waited for once, by `ops.survey`, which says how
many tokens are real. The rest of a replayed call is the launches that bring its tokens into the graph's buffers and its rows out.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
import transformers
from fake_cuda import Wait, fake_cuda
from pretend_streams import Cuda
from torch._subclasses.fake_tensor import FakeTensor

import bertfast
from bertfast import _torch, graphs, models, ops
from bertfast.convert import checks, counts
from bertfast.convert import model as whole
from bertfast.graphs import cache
from bertfast.graphs.inputs import Inputs
from bertfast.nn import device, joined, snapshots
from bertfast.triton import verified

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
BATCH, SEQLEN, REAL, DEPTH = 4, 16, 50, 3
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
HOWS = ("eager: first call of its bucket", "captured", "replayed", "replayed")


class _Good:
    """A stamp or a snapshot that always holds: a fake tensor has no address."""

    def holds(self, *_):
        return True


class Called:
    """Whole calls on a pretended GPU.

    Attributes:
        gpu: what was launched.
        cuda: the streams and graphs.
        surveys: how often a mask was looked through.
    """

    def __init__(self, patch, gpu):
        self.gpu, self.cuda, self.surveys = gpu, Cuda(patch), 0
        make = Inputs.__init__

        def prepared(*given):
            with gpu.preparing():  # buffers are made once, from numbers of the host
                make(*given)

        def survey(mask):
            self.surveys += 1
            return ops.packing.op.Survey(self.real, SEQLEN, True)

        self.real = REAL
        patch.setattr(Inputs, "__init__", prepared)
        patch.setattr(ops, "survey", survey)
        for module in (cache, joined):
            patch.setattr(module, "stamp", lambda tensors: _Good())
        patch.setattr(snapshots, "take", lambda *_: _Good())
        patch.setattr(graphs.inference, "_difference", lambda replayed, rows: None)
        # What a fake tensor is watched by, a real one is not; and its class is another.
        patch.setattr(_torch, "is_watched", lambda: False)
        patch.setattr(_torch, "is_transformed", lambda: False)
        for module in (whole, checks, device):
            patch.setattr(module, "Tensor", FakeTensor)
        patch.setattr(device, "_TYPES", (FakeTensor,))

    def on_gpu(self, inputs):
        with self.gpu.preparing():
            return {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in inputs.items()}

    def run(self, model, inputs):
        """The launches of a call: torch's functions by name, and the number of our kernels."""
        self.gpu.ops.clear()
        self.gpu.launches.clear()
        self.surveys = 0
        model(**inputs)
        return dict(self.gpu.ops), len(self.gpu.launches)


@contextmanager
def calling(model):
    with (
        verified.allow_unverified(),
        fake_cuda() as gpu,
        torch.no_grad(),
        pytest.MonkeyPatch.context() as patch,
    ):
        called = Called(patch, gpu)
        with gpu.preparing():
            model.cuda()
        yield called
        graphs.clear(model)


def drop_in(head):
    model = getattr(transformers, head)(transformers.BertConfig(**SIZES)).bfloat16().eval()
    return bertfast.optimize(model, gpu_kernels=True)


def own(head):
    return getattr(models, head)(models.BertConfig(**SIZES)).bfloat16().eval()


def padded(mask):
    ids = torch.ones(BATCH, SEQLEN, dtype=torch.int64)
    return {"input_ids": ids} | ({} if mask is None else {"attention_mask": ids.clone()})


def packed():
    bounds = torch.zeros(BATCH + 1, dtype=torch.int32)
    return {"input_ids": torch.ones(REAL, dtype=torch.int64), "cu_seqlens": bounds, "max_seqlen": SEQLEN}
