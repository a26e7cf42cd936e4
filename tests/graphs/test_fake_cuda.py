"""The pretended GPU sees what waits, lets pass what does not, and counts."""

import pytest
import torch
from fake_backward import backward
from fake_cuda import Wait, fake_cuda
from graph_cases import packed

from bertfast import _torch
from bertfast.models import BertConfig, BertForPreTraining, BertModel

pytest.importorskip("triton", reason="Triton is not installed")
SMALL = BertConfig(
    vocab_size=70,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
)


def cuda(*shape, dtype=torch.int64):
    return torch.zeros(*shape, dtype=dtype, device="cuda")


WAITS = {
    "item": lambda x: x[0].item(),
    "int": lambda x: int(x.sum()),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "bool": lambda x: 1 if (x > 0).all() else 2,
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: torch.masked_select(x, x > 0),
    "unique": lambda x: torch.unique(x),
    "repeats": lambda x: torch.repeat_interleave(x, x),
    "slice by a tensor": lambda x: x[: x[0]],
    "cpu": lambda x: x.cpu(),
    "to the host": lambda x: x.to("cpu"),
    "to the host ahead": lambda x: x.to("cpu", non_blocking=True),
    "copy to the host": lambda x: torch.zeros(x.shape, dtype=x.dtype).copy_(x),
    "into pinned memory": lambda x: torch.zeros(4, dtype=x.dtype).pin_memory().copy_(x),
    "ahead to the host, not pinned": lambda x: torch.zeros(4, dtype=x.dtype).copy_(x, non_blocking=True),
    "to the device": lambda x: torch.zeros(4).to("cuda"),
    "to the device ahead, not pinned": lambda x: torch.zeros(4).to("cuda", non_blocking=True),
    "cuda": lambda x: torch.zeros(4).cuda(),
    "copy to the device": lambda x: x.copy_(torch.zeros(4, dtype=torch.int64)),
    "pinned but blocking": lambda x: x.copy_(torch.zeros(4, dtype=torch.int64).pin_memory()),
    "foreach from the host": lambda x: torch._foreach_copy_([x], [torch.zeros(4, dtype=torch.int64)]),
    "new tensor of numbers": lambda x: torch.tensor([1, 2], device="cuda"),
    "new_tensor": lambda x: x.new_tensor([1, 2]),
    "index on the host": lambda x: x[torch.tensor([1, 2])],
    "synchronize": lambda x: torch.cuda.synchronize(),
}

GOES_ON = {
    "arithmetic": (lambda x: x * 2 + torch.tensor(3), {"mul": 1, "add": 1}),
    "views": (lambda x: x[1:][None].view(3).select(0, 1), {}),
    "memory": (lambda x: x.new_empty(4), {}),
    "fill": (lambda x: x.new_full((3,), 2), {"new_full": 1}),
    "arange": (lambda x: torch.arange(4, device=x.device), {"arange": 1}),
    "index on the device": (lambda x: x[x], {"index": 1}),
    "set a place": (lambda x: x.__setitem__(slice(1), 7), {"fill_": 1}),
    "clamp into": (lambda x: torch.clamp(x, min=3, out=x), {"clamp": 1}),
    "foreach": (lambda x: torch._foreach_copy_([x, x], [x, x]), {"_foreach_copy_": 1}),
    "pinned ahead": (
        lambda x: torch.zeros(4, dtype=torch.int64).pin_memory().to("cuda", non_blocking=True),
        {"_to_copy": 1},
    ),
    "into pinned memory ahead": (
        lambda x: torch.zeros(4, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True),
        {"copy_": 1},
    ),
    "made pinned": (
        lambda x: x.copy_(torch.zeros(4, dtype=torch.int64, pin_memory=True)[:], non_blocking=True),
        {"copy_": 1},
    ),
    "another dtype": (lambda x: x.to(torch.int32), {"_to_copy": 1}),
    "on the host": (lambda x: torch.zeros(4) + 1, {}),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_raises(name):
    with fake_cuda() as gpu:
        x = cuda(4)
        with pytest.raises(Wait):
            WAITS[name](x)
        if name not in ("slice by a tensor", "unique", "repeats", "mask", "where", "nonzero", "masked_select", "item", "int",
                        "float", "tolist", "bool", "equal"):  # fmt: skip  # what has no number while preparing either
            with gpu.preparing():
                WAITS[name](x)


@pytest.mark.parametrize("name", GOES_ON)
def test_what_does_not_wait_goes_on(name):
    function, ops = GOES_ON[name]
    with fake_cuda() as gpu:
        with gpu.preparing():
            x = cuda(4)
        found = function(x)
        on_the_host = name in ("on the host", "into pinned memory ahead")
        assert found is None or isinstance(found, list) or on_the_host or found.device.type == "cuda"
    assert gpu.ops == ops
    assert gpu.kernels() == sum(ops.values())


def test_nothing_is_left_behind():
    with fake_cuda():
        assert cuda(4)[1:].device == torch.device("cuda", 0)
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(4, device="cuda")
    assert not _torch.is_watched()
    with fake_cuda(), pytest.raises(Wait):
        cuda(4).tolist()


def test_a_launcher_is_recorded():
    from bertfast.ops.dropout_add_norm import triton as launchers

    with fake_cuda() as gpu:
        with gpu.preparing():
            x, weight = cuda(5, 32, dtype=torch.bfloat16), cuda(32, dtype=torch.bfloat16)
        y = launchers.forward(x, x, cuda(0, dtype=x.dtype), weight, weight, 1e-12, 0.0, None)[0]
        assert y.shape == (5, 32)
        assert y.device.type == "cuda"
    assert len(gpu.launches) == 1
    assert dict(gpu.launches[0].signature)["weight_ptr"] == "*bf16"


@pytest.mark.parametrize("read", [False, True])
def test_a_model_encodes_without_a_wait(read):
    model = BertModel(SMALL).to(torch.bfloat16).eval()
    with fake_cuda() as gpu:
        with gpu.preparing():
            model.cuda()
            ids, bounds = cuda(24), cuda(4, dtype=torch.int32)
            tokens = packed(ids, cuda(24), None, bounds, bounds[:3], 16, exact=False)
        with torch.no_grad():
            rows, _ = model.encode(tokens, tokens.first if read else None)
        assert rows.shape == (2 if read else 24, 32)
        assert rows.dtype == torch.bfloat16
    assert gpu.ops["attention_fwd"] == 2 or gpu.ops["attention_varlen_fwd"] == 2, gpu.ops
    assert gpu.kernels() > 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_without_the_engine_is_the_engines(dtype):
    config = SMALL.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForPreTraining(config).to(dtype).train()
    ids, bounds = torch.randint(0, 70, (12,)), torch.tensor([0, 5, 12], dtype=torch.int32)
    places = torch.tensor([1, 6, 9])
    labels = torch.full((12,), -100).index_copy(0, places, ids[places])
    inputs = {"cu_seqlens": bounds, "max_seqlen": 7, "labels": labels, "next_sentence_label": torch.tensor([0, 1])}
    gradients = []
    for run in (torch.Tensor.backward, backward):
        model.zero_grad()
        for weight in (1.0, 0.5):
            run(model(ids, **inputs, masked_positions=places).loss * weight)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name
