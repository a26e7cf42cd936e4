"""The device that a command's model runs on: what `--device` and `train.device` may say, and the errors of a wrong one."""

import torch

DEVICES = ("auto", "cpu", "cuda")


class DeviceError(ValueError):
    """A device that is unknown or not there. The message begins with "device", so that a flag's two dashes fit before it."""


def choose(device: str | torch.device = "auto") -> torch.device:
    """The device of a name: "auto" is a GPU where torch sees one, else the CPU. A torch.device is taken as it is.

    Raises:
        DeviceError: another name, or "cuda" where torch sees no GPU.
    """
    if isinstance(device, torch.device):
        return device
    if device not in DEVICES:
        raise DeviceError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device is cuda, and torch sees no GPU; choose cpu, or install torch with CUDA")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
