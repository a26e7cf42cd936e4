"""What commands share that load a model of our own: the device that is asked for, and mistakes as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bertfast.cli.common import fail
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
def mistakes(device: torch.device) -> Iterator[None]:
    """What a user can fix ends the command as one line."""
    try:
        from bertfast.data.tokenizer import TokenizerError
        from bertfast.models import ConfigError, WeightsError
        from bertfast.tasks.lines import DataError
    except ImportError as error:
        raise fail(str(error)) from None
    try:
        yield
    except (DataError, TokenizerError, ConfigError, WeightsError, FileNotFoundError, ImportError) as error:
        raise fail(str(error)) from None
    except torch.OutOfMemoryError as error:
        raise fail(f"{device} has no memory for this model: free some, or give --device cpu ({error})") from None
