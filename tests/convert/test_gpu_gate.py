"""What a model on a GPU does by default: whole inference calls, and all layers in training, are captured and fast, unless a
committed line shows a size slower; everything else, and every model where an op is not verified, stays stock until
gpu_kernels=True asks for it."""

import pytest
import torch
from bert_cases import pair
from pretended_gpu import LINE, pretended_hopper
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertModel

import bertfast
from bertfast.convert import checks
from bertfast.triton import faster, verified

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def hopper():
    with pretended_hopper() as patch:
        yield patch


def gpu_reason(gpu_kernels, captured, dtype=torch.bfloat16, train=False):
    return checks.gpu_reason(0, gpu_kernels, captured=captured, dtype=dtype, train=train)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("train", [True, False])
def test_captured_calls_in_half_precision_are_on_by_default(hopper, dtype, train):
    assert gpu_reason(None, True, dtype, train) is None


def test_captured_calls_in_float32_wait_for_a_result(hopper):
    reason = gpu_reason(None, True, torch.float32)
    assert "no committed result shows float32 faster than stock on sm_90" in reason
    assert "gpu_kernels=True" in reason
    checks.gpu_reason.cache_clear()
    hopper.setattr(faster, "_table", lambda: {"90": [LINE | {"dtype": "float32"}]})
    assert gpu_reason(None, True, torch.float32) is None  # its size decides
    assert "float32 training" in gpu_reason(None, True, torch.float32, train=True)  # which has no line


@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_calls_stay_stock(hopper, dtype):
    reason = gpu_reason(None, False, dtype)
    assert "only whole inference calls, and all layers in training, are captured" in reason
    assert "gpu_kernels=True" in reason


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("unverified", [{}, {"packing": "its kernels never passed"}])
def test_asked_for(hopper, unverified, captured):
    """One op that is not verified is torch's, not a reason to leave the model stock."""
    hopper.setattr(verified, "gate", lambda arch: unverified)
    assert [gpu_reason(True, captured, dtype) for dtype in DTYPES] == [None] * 3


def test_refused(hopper):
    assert gpu_reason(False, True) == "gpu_kernels=False"


@pytest.mark.parametrize("captured", [True, False])
def test_unverified_ops_are_named(hopper, captured):
    hopper.setattr(verified, "gate", lambda arch: {"packing": "its kernels never passed"})
    reason = gpu_reason(None, captured)
    assert "packing not verified on sm_90" in reason
    assert "gpu_kernels=True" in reason


def on_a_gpu(model):
    """The same model with parameters of a GPU that is not there."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda:0")
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
    return model


def test_autocast_decides_the_dtype(hopper):
    weight = next(on_a_gpu(pair()[1]).parameters())
    hopper.setattr(torch, "is_autocast_enabled", lambda kind: True)
    hopper.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert "float32" not in (checks.tensor_reason(weight, None, captured=True) or "")
    hopper.setattr(torch, "is_autocast_enabled", lambda kind: False)
    assert "no committed result shows float32" in checks.tensor_reason(weight, None, captured=True)


def notes_of(model, **options):
    return "\n".join(bertfast.report(on_a_gpu(bertfast.optimize(model, **options))).notes)


def test_report_says_what_is_captured_and_what_is_not(hopper):
    text = notes_of(pair()[0].bfloat16())
    assert "whole inference calls, and all layers in training, run from CUDA graphs" in text
    assert "embeddings in training and modules called one by one take stock" in text
    assert "captured training calls in bfloat16 were not yet timed beside stock on sm_90" in text
    assert "captured calls in bfloat16 were not yet timed beside stock on sm_90" in text
    assert "run our kernels eagerly" in notes_of(pair()[0].bfloat16(), gpu_kernels=True)
    assert "CUDA graphs" not in notes_of(pair()[0].bfloat16(), gpu_kernels=False)
    assert "CUDA graphs" not in "\n".join(bertfast.report(pair()[1]).notes)  # on a CPU
    assert "float32 weights: under bfloat16 or float16 autocast all layers in training run" in notes_of(pair()[0])
    text = notes_of(pair()[0].bfloat16(), max_graphs=0)
    assert "nothing is captured in CUDA graphs: max_graphs is 0" in text
    assert "run from CUDA graphs" not in text


def test_report_says_of_float32_that_autocast_would_do(hopper):
    def layers(**options):
        rows = bertfast.report(on_a_gpu(bertfast.optimize(pair()[0], **options))).rows
        return {(row.state, row.reason) for row in rows if row.kind == "BertLayer"}

    ((state, reason),) = layers()
    assert state == "fallback"
    assert reason.startswith("without autocast no committed result shows float32 faster than stock on sm_90")
    assert layers(gpu_kernels=False) == {("fallback", "gpu_kernels=False")}
    hopper.setattr(torch, "is_autocast_enabled", lambda kind: True)
    hopper.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert layers() == {
        ("fallback", "hidden states are FakeTensor")
    }  # of the pretended parameters: nothing else is wrong


def test_report_quotes_sizes_that_lose(hopper):
    hopper.setattr(faster, "_table", lambda: {"90": [LINE, LINE | {"ratio": 2.3, "case": "half padding"}]})
    text = notes_of(pair()[0].bfloat16())
    assert "0.93 to 2.30 times stock's speed on NVIDIA H200" in text
    assert "take stock: 0.93 of stock's speed in BERT-base inference 32x512 full (NVIDIA H200, 2026-01-01)" in text


def test_parts_of_a_whole_call_count_as_captured(hopper):
    """A layer inside a model is run by the whole call; an encoder on its own is called module by module."""
    asked = set()  # None: by modules themselves, which do not know
    hopper.setattr(checks, "tensor_reason", lambda x, gpu_kernels, captured=None, train=False: asked.add(captured))
    model = pair()[1]
    bertfast.report(model)
    assert asked - {None} == {True}
    asked.clear()
    bertfast.report(model.encoder)
    assert asked - {None} == {False}


@pytest.mark.parametrize("gpu_kernels", [True, False, None])
def test_the_option_reaches_every_module(gpu_kernels):
    model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    bertfast.optimize(model, gpu_kernels=gpu_kernels)
    options = [m.__dict__["_bertfast"]["gpu_kernels"] for m in model.modules() if "_bertfast" in m.__dict__]
    assert options == [gpu_kernels] * len(options)
    assert len(options) >= 3


def test_half_precision_by_device():
    assert "take float32 and bfloat16" in checks.tensor_reason(torch.zeros(1, dtype=torch.float16))
    assert "no kernels exist for the meta device" in checks.tensor_reason(torch.zeros(1, device="meta"))
