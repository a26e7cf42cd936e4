"""A model with a head of pre-training, its weights found in the checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertfast import models
from bertfast.models.loading import weight_shapes
from bertfast.tasks.device import choose
from bertfast.tasks.lines import DataError
from bertfast.tasks.problem import matching_tokenizer

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer


def load(folder: Path, device: str | torch.device, model: type[Any], head: str, lacks: str) -> tuple[Any, "Tokenizer"]:
    """A model of the class `model` from a checkpoint, and its tokenizer.

    Args:
        device: where the model is to be, as `tasks.device.choose` takes it.
        head: what the names of the head's weights begin with.
        lacks: goes on with the error "... has no" for weights without them: what is missing, and what has it.

    Raises:
        DeviceError: there is no such device; nothing was read then.
        DataError: the folder's weights have no such head (it would be filled with random numbers).
        FileNotFoundError, ValueError: as `from_pretrained` and `matching_tokenizer`.
    """
    at = choose(device)
    config = models.BertConfig.from_pretrained(folder)
    if not any(name.startswith(head) for name in weight_shapes(folder)):
        names = config.extra.get("architectures") or ["a model"]
        raise DataError(f"{folder}: {names[0]} has no {lacks}")
    tokenizer = matching_tokenizer(folder, config.vocab_size)
    return model.from_pretrained(folder).to(at), tokenizer
