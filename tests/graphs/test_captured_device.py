"""The whole captured inference call as a GPU runs it: nn.device's embeddings and layers, in graphs."""

import pytest
import torch
from fake_cuda import fake_cuda
from graph_cases import FIRST, packed, standing_in, tokens_of
from pretend_streams import Cuda

from bertfast import _torch, graphs
from bertfast.graphs import cache
from bertfast.graphs.inputs import Inputs
from bertfast.models import BertConfig, BertModel
from bertfast.nn import device
from bertfast.nn.joined import Joined
from bertfast.nn.parts import Kind, parts_of
from bertfast.testing import assert_within_budget

pytest.importorskip("triton", reason="Triton is not installed")
CONFIG = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64,
)  # fmt: skip
KIND = Kind(heads=2, scale=16**-0.5, approximate="none")


def run(model, tokens, read):
    parts = [parts_of(layer) for layer in model.encoder.layer]
    dtype = model.embeddings.word_embeddings.weight.dtype

    def function(tokens, rows):
        x = device.embed(model.embeddings, tokens.input_ids, tokens.token_type_ids, tokens.position_ids)
        return device.layers(x, parts, KIND, tokens.layout(rows), Joined.of(model, parts, dtype))

    def weights():
        return [*model.embeddings.parameters(), *Joined.of(model, parts, dtype).tensors]

    return graphs.run(model, function, tokens, read, weights=weights, key=KIND, finish=torch.clone)


@pytest.mark.parametrize("read", [None, "first"])
def test_neither_the_function_nor_a_replay_waits(monkeypatch, read):
    model = BertModel(CONFIG).to(torch.bfloat16).eval()
    with fake_cuda() as gpu, torch.no_grad():
        cuda, make = Cuda(monkeypatch), Inputs.__init__

        def prepared(*given):
            with gpu.preparing():  # buffers are made once, from numbers of the host
                make(*given)

        # A fake tensor has no address to look at, and being watched by its mode is what a real call is not.
        monkeypatch.setattr(cache, "stamp", lambda tensors: type("Always", (), {"holds": lambda self, tensors: True})())
        monkeypatch.setattr(_torch, "is_watched", lambda: False)
        monkeypatch.setattr(_torch, "is_transformed", lambda: False)
        monkeypatch.setattr(graphs.inference, "_difference", lambda replayed, rows: None)
        monkeypatch.setattr(Inputs, "__init__", prepared)
        with gpu.preparing():
            model.cuda()
            ids, bounds = torch.zeros(24, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
            ids, bounds = ids.cuda(), bounds.cuda()
            tokens = packed(ids, ids.clone(), None, bounds, bounds, 16)
        for how in (FIRST, "captured", "replayed"):
            gpu.ops.clear()
            gpu.launches.clear()
            assert run(model, tokens, read).how == how
        assert cuda.log[-1] == "replay 1"
        assert not gpu.launches
        assert gpu.ops == {"_foreach_copy_": 2, "clamp": 1, "clone": 1}
        graphs.clear(model)


@pytest.mark.parametrize("read", [None, "first"])
def test_replays_in_the_interpreter(triton_ops, read):
    """Kernels on buffers with rows of nobody and empty sequences; an edit in place is seen, another address captured again."""
    torch.manual_seed(2)
    exact = BertModel(CONFIG).eval().double()
    model = BertModel(CONFIG).eval()
    model.load_state_dict(exact.state_dict())

    def check(how, tokens):
        outcome = run(model, tokens, read)
        assert outcome.how == how
        rows = tokens.first if read else None
        with torch.no_grad():
            eager, oracle = (each.encode(tokens, rows)[0] for each in (model, exact))
        assert_within_budget(outcome.result, eager, oracle)

    with standing_in(), torch.inference_mode():
        for number, how in enumerate((FIRST, "captured", "replayed")):
            tokens = tokens_of(9, 3, 2 + number, segments=True, seed=number)
            check(how, tokens)
        for each in (model, exact):
            each.encoder.layer[1].attention.self.query.weight.data.mul_(1.5)
        check("replayed", tokens)
        for each in (model, exact):
            weight = each.encoder.layer[1].attention.self.query.weight
            weight.data = weight.data * 1.5
        check(FIRST, tokens)
        check("captured", tokens)
