"""doctor: what is slow here, why and how to fix it, versions, and who owns each (op, device)."""

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import bertfast
from bertfast import _ext, _library, _torch
from bertfast._extras import install
from bertfast.nn import fp8_state
from bertfast.ops import onednn, products
from bertfast.triton import faster, verified

_GPU_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        if ".torch_products:" in _library.owners(key)[name]:
            return "torch's products, and passes of other ops"
        if key == "CUDA":
            return "cuBLAS + Triton" if composite else "Triton"
        return "chunked BLAS"
    if (registered := _torch.has_kernel(f"bertfast::{name}", key)) is None:
        return "unknown: this torch does not say"
    if registered:
        return "C++"
    return "oneDNN / BLAS + fused elementwise op" if name.startswith("linear") else "eager reference"


def _advice(extension: Any) -> list[dict[str, str]]:
    """What is slow on this machine: what, why, and the way to fix it."""
    found = []
    absent = _ext.absence()
    if absent is not None:
        found.append({"what": "CPU ops run as eager references", "why": absent[0], "fix": absent[1]})
    else:
        info = extension.build_info()
        if info["isa"] != info["isa_detected"]:
            fix = "unset BERTFAST_CPU_ISA"
            found.append(
                {
                    "what": f"kernels use {info['isa']}",
                    "why": f"BERTFAST_CPU_ISA lowers it from {info['isa_detected']}",
                    "fix": fix,
                }
            )
        elif info["isa"] == "portable":
            found.append(
                {
                    "what": "kernels use the portable build",
                    "why": "this processor has no AVX2",
                    "fix": "none: use a newer processor",
                }
            )
        if products.widens():
            found.append(
                {
                    "what": "bfloat16 is multiplied as float32, so it is no faster on large batches",
                    "why": "the processor has neither AMX nor a fast AVX512-BF16",
                    "fix": "prefer float32 on this processor, unless memory is short",
                }
            )
    if not onednn.available():
        fix = "use a torch build with oneDNN (torch.backends.mkldnn)"
        found.append(
            {"what": "inference cannot prepack weights", "why": "this torch has no oneDNN entry points", "fix": fix}
        )
    threads, cores = torch.get_num_threads(), _cores()
    if threads < cores:
        fix = f"torch.set_num_threads({cores}), or OMP_NUM_THREADS={cores} in the environment"
        found.append({"what": f"{threads} of {cores} cores work", "why": f"torch has {threads} threads", "fix": fix})
    if importlib.util.find_spec("transformers") is None:
        fix = install("hf")
        found.append({"what": "Hugging Face models stay as they are", "why": "transformers is absent", "fix": fix})
    if torch.cuda.is_available():
        found += _gpu_advice(verified.devices()[torch.cuda.current_device()])
    return found


def _gpu_advice(arch: int) -> list[dict[str, str]]:
    """What is slow on the GPU, of this architecture."""
    advice = []
    if importlib.util.find_spec("triton") is None:
        fix = install("gpu")
        advice.append({"what": "ops on the GPU run torch's own functions", "why": "Triton is absent", "fix": fix})
    elif refused := verified.gate(arch):
        by_reason: dict[str, list[str]] = {}
        for op, reason in refused.items():
            by_reason.setdefault(reason, []).append(op)
        fix = "run `make gpu` in bertfast's checkout"
        advice += [
            {"what": f"{', '.join(ops)} run torch's own functions on the GPU", "why": reason, "fix": fix}
            for reason, ops in by_reason.items()
        ]
    return advice + _stock_advice(arch)


def _stock_advice(arch: int) -> list[dict[str, str]]:
    """Which calls of Hugging Face models take stock's code on a GPU of this architecture unless they are asked not to."""
    fix = "bertfast.optimize(model, gpu_kernels=True) turns the kernels on"
    if importlib.util.find_spec("triton") is None or verified.default_gate(arch):
        why = f"not every op is verified on sm_{arch}"
        return [{"what": "Hugging Face models on the GPU stay stock", "why": why, "fix": fix}]
    why = "only whole inference calls, and all layers in training, are captured in CUDA graphs; eager calls launch more slowly"
    why += " than the GPU computes"
    advice = [{"what": "modules called one by one stay stock on the GPU", "why": why, "fix": fix}]
    for dtype in _GPU_DTYPES:
        for train, kind in ((False, "inference"), (True, "training")):
            name = f"{_name(dtype)} {kind}"
            if (reason := faster.dtype_reason(arch, dtype, train)) is not None:
                what = f"{name} without autocast to 16 bits stays stock on the GPU"
                advice.append({"what": what, "why": reason, "fix": fix})
            advice += [
                {"what": f"{name} near some sizes stays stock on the GPU", "why": faster.told(line), "fix": fix}
                for line in faster.slower(arch, dtype, train)
            ]
    return advice


def _passed(entry: verified.Entry) -> str:
    return f"verified on {entry['device']}, {entry['date'][:10]}, Triton {verified.triton_minor()}"


def gpu_op(op: str, arch: int) -> dict[str, str]:
    """What `op`, a folder of bertfast/ops, runs on an architecture, such as 90, and by what result or for what reason."""
    reason = verified.gate(arch).get(op)
    if reason is not None:
        return {"runs": "reference", "why": reason}
    entry = verified.verification(op, arch)
    if entry is None:
        return {"runs": "kernel", "why": "not verified, but allowed in this process"}
    return {"runs": "kernel", "why": _passed(entry)} | ({"note": entry["note"]} if "note" in entry else {})


def gpu_candidate(name: str, arch: int) -> dict[str, str]:
    """At which ops a candidate, such as "linear_gelu.cheap_erf", runs in place of the owner on an architecture, and why."""
    ops = verified.candidates()[name]
    runs = [op for op in ops if verified.running_candidate(op, arch) == name]
    if not runs:
        reason = verified.why_not_candidate(name, arch) or "another candidate is faster"
        return {"runs": "owner", "why": f"candidate for {', '.join(ops)}: {reason}"}
    entry, gains = verified.verification(name, arch), [(op, verified.gain(name, op, arch)) for op in runs]
    if entry is None or None in [gain for _, gain in gains]:
        return {"runs": "candidate", "why": "not verified and faster, but asked for in this process"}
    where = ", ".join(f"{op} ({gain:.2f} times as fast)" for op, gain in gains)
    why = f"in place of the owner of {where}: {_passed(entry)}"
    for op in [op for op in ops if op not in runs]:
        why += f"; {verified.why_not_candidate(name, arch, op) or f'another candidate is faster at {op}'}"
    return {"runs": "candidate", "why": why} | ({"note": entry["note"]} if "note" in entry else {})


def gpu_ops() -> dict[str, dict[str, dict[str, str]]]:
    """By architecture what each op and each candidate runs there: of this machine's GPUs, else of those that a result verifies."""
    archs = sorted(set(verified.devices())) if torch.cuda.is_available() else verified.known_architectures()
    return {
        f"sm_{arch}": {op: gpu_op(op, arch) for op in verified.folders()}
        | {name: gpu_candidate(name, arch) for name in verified.candidates()}
        for arch in archs
    }


def gpu_models() -> dict[str, dict[str, str]]:
    """By architecture, those of `gpu_ops`, and dtype: what a Hugging Face model on it does after `bertfast.optimize`."""
    return {
        name: {_name(dtype): _gpu_model(int(name[3:]), dtype) for dtype in _GPU_DTYPES} | {"fp8": _fp8(int(name[3:]))}
        for name in gpu_ops()
    }


def _fp8(arch: int) -> str:
    """What asking for precision fp8 gives on an architecture."""
    if arch < 10 * fp8_state.LEAST[0] + fp8_state.LEAST[1]:
        return f"an error: FP8 products begin with sm_{fp8_state.LEAST[0]}{fp8_state.LEAST[1]}"
    missing = [op for op in verified.gate(arch) if verified.is_asked_for(op)]
    kernels = (
        f"; torch's own functions, which are slow, run for {', '.join(missing)}, not verified on sm_{arch}"
        if missing
        else ""
    )
    return f'only where asked for, as by optimize(model, precision="fp8"){kernels}'


def _gpu_model(arch: int, dtype: torch.dtype) -> str:
    if verified.default_gate(arch):
        return f"stays stock: not every op is verified on sm_{arch}"
    reasons = [faster.dtype_reason(arch, dtype, train) for train in (False, True)]
    if all(reasons):
        # Autocast decides by the dtype that it casts to.
        return f"stays stock without autocast to 16 bits: {'; '.join(filter(None, reasons))}"
    kinds = ("whole inference calls", "all layers in training")
    captured = [train for train in (False, True) if reasons[train] is None]
    text = " and ".join(kinds[train] for train in captured)
    return f"{text} run from CUDA graphs, everything else is stock; {faster.remarks(arch, dtype, captured)}"


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
        "gpu_ops": gpu_ops(),
        "gpu_models": gpu_models(),
        "verified_architectures": verified.architectures(),
        "slow": _advice(extension),
    }
