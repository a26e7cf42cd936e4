"""The engines. Each loads a stock model in its process and returns a function from a batch to its outputs.

OpenVINO traces the sdpa model and compiles it with the latency hint on one stream; ONNX Runtime exports the eager one,
whose attention its transformer optimizer knows, and fuses it. Both are given the threads torch has.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bertfast
from bertfast.bench.cases import DTYPES, Batch, BenchError
from bertfast.ops import onednn, packed_linear

Call = Callable[[Batch], list[np.ndarray]]
EXTRA = "make bench-cpu (or pip install openvino onnxruntime onnx 'numpy<2.4')"


class SideError(BenchError):
    """Why a side is not in the table, in words."""


class _Outputs(nn.Module):
    """Positional inputs and a plain tuple: what both exporters take."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(t for t in (out.last_hidden_state, out.pooler_output) if t is not None)


def _example() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    return torch.full((2, 16), 5), mask


def _torch(model: Callable[..., Any]) -> Call:
    def call(batch: Batch) -> list[np.ndarray]:
        with torch.inference_mode():
            out = model(**batch.inputs())
        tensors = (t for t in (out.last_hidden_state, out.pooler_output) if t is not None)
        return [t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy() for t in tensors]

    return call


def stock(model: nn.Module, dtype: str, folder: Path) -> Call:
    return _torch(model.to(DTYPES[dtype]))


def exact(model: nn.Module, dtype: str, folder: Path) -> Call:
    return _torch(model.double())


def ours(model: nn.Module, dtype: str, folder: Path) -> Call:
    return _torch(bertfast.optimize(model.to(DTYPES[dtype])))


def stock_compiled(model: nn.Module, dtype: str, folder: Path) -> Call:
    """A graph for each shape, which is the fastest that the compiler makes."""
    return _torch(torch.compile(model.to(DTYPES[dtype]), dynamic=False))


def ours_compiled(model: nn.Module, dtype: str, folder: Path) -> Call:
    return _torch(torch.compile(bertfast.optimize(model.to(DTYPES[dtype])), dynamic=False))


def int8(model: nn.Module, dtype: str, folder: Path) -> Call:
    return _torch(bertfast.optimize(model.to(DTYPES[dtype]), dtype="int8"))


def openvino(model: nn.Module, dtype: str, folder: Path) -> Call:
    try:
        import openvino as ov
    except ImportError as error:
        raise SideError(f"openvino is not installed: {EXTRA}") from error
    with torch.inference_mode():
        converted = ov.convert_model(_Outputs(model).eval(), example_input=_example())
    options = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = ov.Core().compile_model(converted, "CPU", options).create_infer_request()

    def call(batch: Batch) -> list[np.ndarray]:
        inputs = [batch.input_ids.numpy(), batch.attention_mask.numpy()]
        return list(request.infer(inputs, share_inputs=True, share_outputs=True).values())

    return call


def onnxruntime(model: Any, dtype: str, folder: Path) -> Call:
    if dtype != "float32":
        raise SideError("ONNX Runtime has no bfloat16 on a CPU")
    try:
        import onnxruntime as ort
        from onnxruntime.transformers import optimizer
    except ImportError as error:
        raise SideError(f"onnxruntime and onnx are not installed: {EXTRA}") from error
    exported = copy.deepcopy(model)
    exported.set_attn_implementation("eager")
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "length"} for name in names}
    with torch.no_grad():
        # The older exporter writes the patterns that the optimizer looks for.
        torch.onnx.export(
            _Outputs(exported).eval(),
            _example(),
            str(plain),
            input_names=names,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    config = model.config
    optimized = optimizer.optimize_model(
        str(plain), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    found = optimized.get_fused_operator_statistics()
    if found.get("Attention", 0) != config.num_hidden_layers:
        raise SideError(f"ONNX Runtime's optimizer fused {found.get('Attention', 0)} attentions, not every layer's")
    optimized.save_model_to_file(str(fused))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = ort.InferenceSession(str(fused), options, providers=["CPUExecutionProvider"])

    def call(batch: Batch) -> list[np.ndarray]:
        return session.run(None, {names[0]: batch.input_ids.numpy(), names[1]: batch.attention_mask.numpy()})

    return call


SIDES: dict[str, Callable[[Any, str, Path], Call]] = {
    "bertfast": ours,
    "stock": stock,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "stock compiled": stock_compiled,
    "bertfast compiled": ours_compiled,
    "int8": int8,
    "exact": exact,
}
# A product of this size counts as what the machine can do: 2048 tokens through BERT-base's second feed-forward weight.
_PRODUCT = (2048, 3072, 768)


def matrix_rate(dtype: str) -> Callable[[], float]:
    """A function that measures FLOP/s of the fastest of MKL, prepacked oneDNN and our own product, once each."""
    rows, inner, outputs = _PRODUCT
    x, weight = torch.randn(rows, inner).to(DTYPES[dtype]), torch.randn(outputs, inner).to(DTYPES[dtype])
    ways: list[Callable[[], Tensor]] = [lambda: x @ weight.t()]
    if onednn.can_prepack(weight):
        reordered = onednn.prepack(weight)
        ways.append(lambda: onednn.linear_packed(x, reordered, None, "none"))
    if packed_linear.available(x.dtype, inner):
        packed = packed_linear.pack(weight, x.dtype)
        ways.append(lambda: packed_linear.linear(x, packed, None))

    def measure() -> float:
        best = float("inf")
        with torch.inference_mode():
            for way in ways:
                for _ in range(3):
                    begin = time.perf_counter()
                    way()
                    best = min(best, time.perf_counter() - begin)
        return 2.0 * rows * inner * outputs / best

    return measure
