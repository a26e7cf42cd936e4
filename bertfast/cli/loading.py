"""What commands share that load a model of our own: the device that is asked for, and mistakes as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bertfast.cli.common import fail, one_line
from bertfast.options import option

DEVICE = option("auto", "auto: a GPU where there is one", choices=("auto", "cpu", "cuda"))
"""In the words of `finetune`, which makes its flag from `train.device`."""


def chosen_device(device: str) -> torch.device:
    """The device of `--device`; one that is not there is told before anything is loaded."""
    from bertfast.tasks.device import DeviceError, choose

    try:
        return choose(device)
    except DeviceError as error:
        raise fail(f"--{error}") from None


@contextmanager
def enough_memory(device: torch.device, remedy: str = "free some") -> Iterator[None]:
    """A device without the memory ends the command as one line; remedy: what to do about it, besides taking another device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise fail(f"{device} has no memory for this model: {remedy}, or give --device cpu ({error})") from None


@contextmanager
def mistakes(device: torch.device) -> Iterator[None]:
    """What a user can fix about a model of our own and its data ends the command as one line."""
    try:
        from bertfast.data.tokenizer import TokenizerError
        from bertfast.models import ConfigError, WeightsError
        from bertfast.tasks.lines import DataError
    except ImportError as error:
        raise fail(str(error)) from None
    errors = (DataError, TokenizerError, ConfigError, WeightsError, FileNotFoundError, ImportError)
    with enough_memory(device), one_line(*errors):
        yield
