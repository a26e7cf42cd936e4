"""One backend in a process of its own, which may be another environment's Python: nothing but the library and what it brings is
imported here, and bertfast for its own side. A request is a line of JSON on standard input, its answer one on standard output.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

PACKAGES = {
    "onnx": ("sentence-transformers", "transformers", "optimum-onnx", "onnxruntime"),
    "openvino": ("sentence-transformers", "transformers", "optimum-intel", "openvino"),
}
INT8_FILE = {"onnx": "qint8_avx512_vnni", "openvino": "qint8_quantized"}


class Worker:
    """A SentenceTransformer ("encode") or a CrossEncoder ("predict") of one backend."""

    def __init__(self) -> None:
        self.model: Any = None
        self.inputs: list[Any] = []
        self.encodes = True

    def load(self, backend: str, task: str, dtype: str, folder: str, exports: str, threads: int) -> dict[str, str]:
        torch.set_num_threads(threads)
        self.encodes = task == "encode"
        library = SentenceTransformer if self.encodes else CrossEncoder
        if backend in PACKAGES:
            self.model = _exported(library, backend, dtype, folder, Path(exports) / f"{task}_{backend}", threads)
        else:
            self.model = library(folder, device="cpu")
            own = torch.float32 if dtype == "float32" else torch.bfloat16  # what int8 keeps its weights in
            self.model.to(torch.float64 if backend == "exact" else own)
            if backend == "bertfast":
                import bertfast

                bertfast.optimize(self.model, dtype="int8" if dtype == "int8" else None)
        names = PACKAGES.get(backend, ("sentence-transformers", "transformers", "torch"))
        return {name: importlib.metadata.version(name) for name in names}

    def read(self, path: str) -> None:
        self.inputs = json.loads(Path(path).read_text(encoding="utf-8"))

    def _call(self, inputs: list[Any]) -> np.ndarray:
        if self.encodes:
            return self.model.encode(inputs, show_progress_bar=False)
        pairs = [tuple(pair) for pair in inputs]
        return self.model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)

    def turn(self) -> float:
        begin = time.perf_counter()
        self._call(self.inputs)
        return time.perf_counter() - begin

    def vectors(self, every: int, path: str) -> None:
        np.save(path, self._call(self.inputs[::every]).astype(np.float64))

    def padding(self) -> dict[str, float]:
        """Real tokens, and what padding the library's default batches add to them, as a share of the real ones."""
        lengths = [sum(map(len, text)) if isinstance(text, list) else len(text) for text in self.inputs]
        order = np.argsort([-length for length in lengths])
        inputs = [tuple(text) if isinstance(text, list) else text for text in self.inputs]
        given = [inputs[i] for i in order]
        limit = self.model.max_seq_length
        tokens = np.array(
            [len(ids) for ids in self.model.tokenizer(given, truncation=True, max_length=limit)["input_ids"]]
        )
        batches = [tokens[begin : begin + 32] for begin in range(0, len(tokens), 32)]
        places = sum(len(batch) * int(batch.max()) for batch in batches)
        return {"tokens": int(tokens.sum()), "padding": places / int(tokens.sum()) - 1}


def _exported(library: Any, backend: str, dtype: str, folder: str, exports: Path, threads: int) -> Any:
    """The library's own export of a model, made once: ONNX at level O3, the highest for a CPU; int8 as its helpers make it."""
    if backend == "onnx" and dtype == "bfloat16":
        raise ValueError("ONNX Runtime has no bfloat16 products on a CPU")
    options: dict[str, Any] = {"provider": "CPUExecutionProvider"} if backend == "onnx" else {}
    name = "model_O3.onnx" if backend == "onnx" else "openvino_model.xml"
    if not list(exports.rglob(name)):
        made = library(folder, device="cpu", backend=backend, model_kwargs={"export": True, **options})
        made.save_pretrained(str(exports))
        if backend == "onnx":
            from sentence_transformers import export_optimized_onnx_model

            export_optimized_onnx_model(made, "O3", str(exports))
    if dtype == "int8":
        name = f"{Path(name).stem.removesuffix('_O3')}_{INT8_FILE[backend]}{Path(name).suffix}"
        if not list(exports.rglob(name)):
            _quantize(library, backend, exports, options)
    if backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        options["session_options"] = session
    else:
        hint = "bf16" if dtype == "bfloat16" else "f32"
        options["ov_config"] = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1"}
    return library(str(exports), device="cpu", backend=backend, model_kwargs={"file_name": name, **options})


def _quantize(library: Any, backend: str, exports: Path, options: dict[str, Any]) -> None:
    model = library(str(exports), device="cpu", backend=backend, model_kwargs=dict(options))
    if backend == "onnx":
        from sentence_transformers import export_dynamic_quantized_onnx_model

        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(exports))
        return
    from sentence_transformers import export_static_quantized_openvino_model

    with tempfile.TemporaryDirectory() as calibration:  # in place of the data set that the helper would download
        lines = [
            json.dumps({"sentence": text}) for text in json.loads((exports.parent / "calibration.json").read_text())
        ]
        (Path(calibration) / "train.jsonl").write_text("\n".join(lines) + "\n")
        columns = {"dataset_config_name": "default", "dataset_split": "train", "column_name": "sentence"}
        export_static_quantized_openvino_model(model, None, str(exports), dataset_name=calibration, **columns)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = ["ok", getattr(worker, name)(**arguments)]
        except Exception as error:
            traceback.print_exc()
            answer = ["error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
