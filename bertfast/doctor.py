"""doctor: who owns each (op, device), versions, what is slow here and why, and how to mend it."""

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import bertfast
from bertfast import _ext, _library, _torch
from bertfast.ops import onednn, products
from bertfast.triton import verified


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package) if importlib.util.find_spec(package) else None
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def owner(name: str, key: str) -> str:
    """What runs `bertfast::name` on a dispatch key, "CPU" or "CUDA", in plain words."""
    if name in _library.owners(key):
        composite = name.startswith("linear")
        if key == "CUDA":
            return "cuBLAS + Triton" if composite else "Triton"
        return "chunked BLAS"
    if (registered := _torch.has_kernel(f"bertfast::{name}", key)) is None:
        return "unknown: this torch does not say"
    if registered:
        return "C++"
    return "oneDNN / BLAS + fused elementwise op" if name.startswith("linear") else "eager reference"


def _advice(extension: Any) -> list[dict[str, str]]:
    """What is slow on this machine: what, why, and the way to mend it."""
    found = []
    absent = _ext.absence()
    if absent is not None:
        found.append({"what": "CPU ops run as eager references", "why": absent[0], "mend": absent[1]})
    else:
        info = extension.build_info()
        if info["isa"] != info["isa_detected"]:
            mend = "unset BERTFAST_CPU_ISA"
            found.append(
                {
                    "what": f"kernels use {info['isa']}",
                    "why": f"BERTFAST_CPU_ISA lowers it from {info['isa_detected']}",
                    "mend": mend,
                }
            )
        elif info["isa"] == "portable":
            found.append(
                {
                    "what": "kernels use the portable build",
                    "why": "this processor has no AVX2",
                    "mend": "none: use a newer processor",
                }
            )
        if products.widens():
            found.append(
                {
                    "what": "bfloat16 is multiplied as float32, so it is no faster on large batches",
                    "why": "the processor has neither AMX nor a fast AVX512-BF16",
                    "mend": "prefer float32 on this processor, unless memory is short",
                }
            )
    if not onednn.available():
        mend = "use a torch build with oneDNN (torch.backends.mkldnn)"
        found.append(
            {"what": "inference cannot prepack weights", "why": "this torch has no oneDNN entry points", "mend": mend}
        )
    threads, cores = torch.get_num_threads(), _cores()
    if threads < cores:
        mend = f"torch.set_num_threads({cores}), or OMP_NUM_THREADS={cores} in the environment"
        found.append({"what": f"{threads} of {cores} cores work", "why": f"torch has {threads} threads", "mend": mend})
    if importlib.util.find_spec("transformers") is None:
        mend = "pip install 'bertfast[hf]'"
        found.append({"what": "Hugging Face models stay as they are", "why": "transformers is absent", "mend": mend})
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        missing = verified.missing(10 * major + minor)
        if importlib.util.find_spec("triton") is None:
            mend = "pip install 'bertfast[gpu]'"
            found.append({"what": "models on the GPU stay stock", "why": "Triton is absent", "mend": mend})
        elif missing:
            found.append(
                {
                    "what": "models on the GPU stay stock",
                    "why": f"{len(missing)} GPU ops have kernels that were not verified on sm_{major}{minor}",
                    "mend": "run `make gpu` in bertfast's checkout, or bertfast.optimize(model, unverified_kernels=True)",
                }
            )
    return found


def examine() -> dict[str, Any]:
    """Everything `bertfast doctor` prints, as plain types."""
    extension = _ext.load()
    return {
        "versions": {
            "bertfast": bertfast.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "triton", "transformers", "safetensors", "tokenizers")},
        },
        "extension": extension.build_info() if extension else None,
        "extension_absent": _ext.why_absent(),
        "processor": processor(),
        "features": extension.cpu_features() if extension else {},
        "threads": torch.get_num_threads(),
        "cores": _cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "owners": {name: {key: owner(name, key) for key in ("CPU", "CUDA")} for name in _library.names()},
        "verified_architectures": verified.architectures(),
        "slow": _advice(extension),
    }
