"""What a device can multiply at its best: the denominator of model FLOPs utilisation.

GPUs: dense matrix FLOP/s of the makers' data sheets. A CPU has no honest data sheet, so its matrix rate is measured once, and
the utilisation is stated as a share of that.
"""

import time
from functools import cache

import torch

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


def peak(device: torch.device, precision: str) -> tuple[float | None, str]:
    """Matrix FLOP/s in "fp32" or "bf16" and what they are, or None for a GPU that is not in the table."""
    if device.type == "cpu":
        # bfloat16 is only storage on many processors, whose float32 is then the faster way.
        dtypes = (torch.float32,) if precision == "fp32" else (torch.float32, torch.bfloat16)
        return max(_measured(dtype) for dtype in dtypes), f"measured matrix rate of {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device)
    for part, half, single in _GPUS:
        if part in name:
            return (half if precision == "bf16" else single), f"data sheet of {part}"
    return None, f"no peak known for {name}"
