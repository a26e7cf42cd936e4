"""A whole inference call on a pretended GPU, from the call of the model to its output: what waits, and what is launched.

Nothing waits where all tokens are real or a caller gives lengths; a mask is waited for once, by `ops.survey`, which says how many
tokens are real. Around the replay are the launches that bring a call's tokens into the graph's buffers and its rows out of them.
"""

from contextlib import contextmanager

import pytest
import torch
import transformers
from fake_cuda import Wait, fake_cuda
from pretend_streams import Cuda
from torch._subclasses.fake_tensor import FakeTensor

import bertfast
from bertfast import _torch, graphs, models, ops
from bertfast.convert import checks, plain
from bertfast.convert import model as whole
from bertfast.graphs import cache
from bertfast.graphs.encode import Encoder
from bertfast.graphs.inputs import Inputs
from bertfast.nn import device, joined, snapshots
from bertfast.triton import verified

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
BATCH, SEQLEN, REAL = 4, 16, 50
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
HEADS = ("BertModel", "BertForSequenceClassification", "BertForTokenClassification")
OWN_HEADS = (
    *HEADS,
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
)
REAL_TOKENS = {"none": BATCH * SEQLEN, "all real": BATCH * SEQLEN, "padding": REAL}  # by mask


class _Good:
    """A stamp or a snapshot that always holds: a fake tensor has no address."""

    def holds(self, *_):
        return True


class Called:
    """Whole calls on a pretended GPU.

    Attributes:
        gpu: what was launched.
        cuda: the streams and graphs.
        surveys: how often the present call looked through a mask.
        marks: launches of the present call when the encoder began and when it was done; of a capture, of each time.
    """

    def __init__(self, patch, gpu, real):
        self.gpu, self.cuda, self.surveys, self.marks = gpu, Cuda(patch), 0, []
        make_inputs, make_graph, look, rows = Inputs.__init__, torch.cuda.CUDAGraph, ops.survey, Encoder.rows

        def prepared(*given):
            with gpu.preparing():  # buffers are made once, from numbers of the host
                make_inputs(*given)

        def survey(mask):
            self.surveys += 1
            with pytest.raises(Wait, match="waits"):  # at its end: what it launches counts
                look(mask)
            return ops.packing.op.Survey(real, SEQLEN, True)

        def marking(function):
            def marked(*given):
                self.marks.append(gpu.kernels())
                result = function(*given)
                self.marks.append(gpu.kernels())
                return result

            return marked

        def graph():
            made = make_graph()
            made.replay = marking(made.replay)
            return made

        patch.setattr(Inputs, "__init__", prepared)
        patch.setattr(ops, "survey", survey)
        patch.setattr(Encoder, "rows", marking(rows))
        patch.setattr(torch.cuda, "CUDAGraph", graph)
        for module in (cache, joined):
            patch.setattr(module, "stamp", lambda tensors: _Good())
        patch.setattr(snapshots, "take", lambda *_: _Good())
        patch.setattr(graphs.inference, "_difference", lambda replayed, rows: None)
        # A fake tensor is watched, which a real one is not, and of another class.
        patch.setattr(_torch, "is_watched", lambda: False)
        patch.setattr(_torch, "is_transformed", lambda: False)
        for module in (whole, plain, checks, device):
            patch.setattr(module, "Tensor", FakeTensor)
        patch.setattr(device, "_TYPES", (FakeTensor,))

    def run(self, model, inputs):
        """A call: launches before and after the encoder, or its replay."""
        self.gpu.ops.clear()
        self.gpu.launches.clear()
        self.surveys, self.marks = 0, []
        model(**inputs)
        # repad went through the dispatcher, so that its three launches count as one op.
        total = self.gpu.kernels() + 2 * self.gpu.ops["repad"]
        return self.marks[0], total - self.marks[-1]


@contextmanager
def calling(model, inputs, real=REAL):
    """The model and its inputs on the pretended GPU."""
    with verified.allow_unverified(), fake_cuda() as gpu, torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        called = Called(patch, gpu, real)
        with gpu.preparing():
            model.cuda()
            inputs = {
                name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
            }
        yield called, inputs
        graphs.clear(model)


def drop_in(head):
    model = getattr(transformers, head)(transformers.BertConfig(**SIZES)).bfloat16().eval()
    return bertfast.optimize(model, gpu_kernels=True)


def own(head):
    return getattr(models, head)(models.BertConfig(**SIZES)).bfloat16().eval()


def padded(mask, batch=BATCH):
    ids = torch.ones(batch, SEQLEN, dtype=torch.int64)
    return {"input_ids": ids} | ({} if mask == "none" else {"attention_mask": ids.clone()})


def packed():
    bounds = torch.zeros(BATCH + 1, dtype=torch.int32)
    return {"input_ids": torch.ones(REAL, dtype=torch.int64), "cu_seqlens": bounds, "max_seqlen": SEQLEN}


def replays(called):
    return sum(line.startswith("replay") for line in called.cuda.log)


CASES = [(drop_in, head, mask) for head in HEADS for mask in REAL_TOKENS]
CASES += [(own, head, mask) for head in OWN_HEADS for mask in REAL_TOKENS]


# Token types beside every second case: by head and by mask half of them have these.
@pytest.mark.parametrize(("make", "head", "mask", "types"), [(*case, n % 2 == 1) for n, case in enumerate(CASES)])
def test_a_mask_is_waited_for_once_and_nothing_else(make, head, mask, types):
    model, inputs = make(head), padded(mask)
    if types:
        inputs["token_type_ids"] = inputs["input_ids"].clone()
    with calling(model, inputs, REAL_TOKENS[mask]) as (called, inputs):
        for number in range(4):
            called.run(model, inputs)  # any other wait raises
            assert called.surveys == (mask != "none")
            assert replays(called) == number  # a capture is replayed as well


@pytest.mark.parametrize("head", OWN_HEADS)
@pytest.mark.parametrize("positions", [False, True])
def test_packed_calls_wait_for_nothing(head, positions):
    model, inputs = own(head), packed()
    if positions:
        inputs["position_ids"] = inputs["input_ids"].clone()
    with calling(model, inputs) as (called, inputs):
        for number in range(4):
            called.run(model, inputs)
            assert called.surveys == 0
            assert replays(called) == number


# By case: launches before and after the encoder of an eager call, and of a replayed one, whose three more fill the graph's buffers.
# "one": one sequence without a mask. Of a mask 4 are the look at it and its conversion to bool.
LAUNCHES = {
    (drop_in, "BertModel", "one"): ((3, 3), (6, 3)),
    (drop_in, "BertModel", "none"): ((5, 3), (8, 3)),
    (drop_in, "BertModel", "all real"): ((8, 3), (11, 3)),
    (drop_in, "BertModel", "padding"): ((15, 5), (18, 5)),
    (drop_in, "BertForSequenceClassification", "one"): ((5, 5), (6, 5)),
    (drop_in, "BertForSequenceClassification", "none"): ((7, 5), (8, 5)),
    (drop_in, "BertForSequenceClassification", "all real"): ((10, 5), (11, 5)),
    (drop_in, "BertForSequenceClassification", "padding"): ((17, 5), (18, 5)),
    (drop_in, "BertForTokenClassification", "one"): ((3, 2), (6, 2)),
    (drop_in, "BertForTokenClassification", "none"): ((5, 2), (8, 2)),
    (drop_in, "BertForTokenClassification", "all real"): ((8, 2), (11, 2)),
    (drop_in, "BertForTokenClassification", "padding"): ((15, 4), (18, 4)),
    (own, "BertModel", "one"): ((2, 3), (5, 3)),
    (own, "BertModel", "none"): ((3, 4), (6, 4)),
    (own, "BertModel", "all real"): ((6, 4), (9, 4)),
    (own, "BertModel", "padding"): ((12, 11), (15, 11)),
    (own, "BertModel", "packed"): ((8, 8), (11, 8)),
    (own, "BertForSequenceClassification", "one"): ((4, 4), (5, 4)),
    (own, "BertForSequenceClassification", "none"): ((5, 4), (6, 4)),
    (own, "BertForSequenceClassification", "all real"): ((8, 4), (9, 4)),
    (own, "BertForSequenceClassification", "padding"): ((14, 6), (15, 6)),
    (own, "BertForSequenceClassification", "packed"): ((10, 6), (11, 6)),
    (own, "BertForTokenClassification", "one"): ((2, 2), (5, 2)),
    (own, "BertForTokenClassification", "none"): ((3, 2), (6, 2)),
    (own, "BertForTokenClassification", "all real"): ((6, 2), (9, 2)),
    (own, "BertForTokenClassification", "padding"): ((12, 5), (15, 5)),
    (own, "BertForTokenClassification", "packed"): ((8, 2), (11, 2)),
}


@pytest.mark.parametrize(("make", "head", "kind"), list(LAUNCHES), ids=lambda value: getattr(value, "__name__", value))
def test_launches(make, head, kind):
    inputs = {"one": padded("none", 1), "packed": packed()}.get(kind) or padded(kind)
    model = make(head)
    with calling(model, inputs, REAL_TOKENS.get(kind, SEQLEN)) as (called, inputs):
        eager = called.run(model, inputs)
        called.run(model, inputs)
        assert (eager, called.run(model, inputs)) == LAUNCHES[make, head, kind]
