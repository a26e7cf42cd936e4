"""What a device can multiply at its best: the denominator of model FLOPs utilisation.

A GPU whose matrix rate `make gpu` has measured is compared with that (`matrix_rates.json`, of a dense product of 8192 cubed),
another one with the dense rate of its maker's data sheet. A CPU has no honest data sheet, so its matrix rate is measured once in
each run. `peak` names the denominator in words.
"""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

FILE = Path(__file__).with_name("matrix_rates.json")  # written by `python -m benchmarks.gpu verified`

# (name of the device contains, bf16 FLOP/s, fp32 FLOP/s without TF32); the first that fits counts
_GPUS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("A10", 125e12, 31.2e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)
_SIZE, _RUNS = 1024, 5


@cache
def _measured(dtype: torch.dtype) -> float:
    a = torch.ones(_SIZE, _SIZE, dtype=dtype)
    times = []
    for _ in range(_RUNS + 1):  # the first is a warm-up, and never the shortest
        begun = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - begun)
    return 2 * _SIZE**3 / min(times)


@cache
def _measured_gpus() -> dict[str, dict[str, Any]]:
    """Name of the device to its rates in FLOP/s by precision, and when and at which commit they were measured."""
    return json.loads(FILE.read_text(encoding="utf-8"))


class Peak(NamedTuple):
    """The matrix rate that a run is compared with.

    Attributes:
        flops: FLOP/s of one device; None where none is known.
        words: what the number is, for the log.
    """

    flops: float | None
    words: str


def peak(device: torch.device, precision: str) -> Peak:
    """The matrix rate of a device in "fp32" (without TF32 on a GPU) or "bf16", with which "fp8" is compared too: not all of its
    products are in FP8."""
    precision = "fp32" if precision == "fp32" else "bf16"
    if device.type == "cpu":
        # bfloat16 is only storage on many processors, whose float32 is then the faster way.
        dtypes = (torch.float32,) if precision == "fp32" else (torch.float32, torch.bfloat16)
        rate = max(_measured(dtype) for dtype in dtypes)
        return Peak(rate, f"{_rate(rate)}, the matrix rate measured here on {torch.get_num_threads()} thread(s)")
    name = torch.cuda.get_device_name(device)
    part, half, single = next((row for row in _GPUS if row[0] in name), ("", None, None))
    sheet = half if precision == "bf16" else single
    measured = _measured_gpus().get(name)
    if measured is not None:
        rate = measured[precision]
        words = f"{_rate(rate)}, {precision} products measured on {name} ({measured['date']}, {measured['commit']})"
        return Peak(rate, words if sheet is None else f"{words}; its data sheet says {_rate(sheet)}")
    if sheet is None:
        return Peak(None, f"no matrix rate known for {name}")
    return Peak(sheet, f"{_rate(sheet)}, data sheet of {part}, {precision}")


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s"
