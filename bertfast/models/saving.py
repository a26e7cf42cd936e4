"""save_pretrained: config.json and model.safetensors as transformers writes them."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.models.files import replace_file, safetensors
from bertfast.models.loading import WEIGHTS_NAME

if TYPE_CHECKING:
    from bertfast.models.bert import BertPreTrainedModel


def _storable(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta or type(tensor) not in (Tensor, torch.nn.Parameter):
        kind = "on the meta device" if tensor.is_meta else type(tensor).__name__
        raise ValueError(
            f"save_pretrained: {name} is {kind} and holds no whole weight: gather the parameters first "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True) and give state_dict"
        )
    return tensor.detach().to("cpu").contiguous()


def save(model: "BertPreTrainedModel", folder: Path, state_dict: dict[str, Tensor] | None) -> None:
    """As `BertPreTrainedModel.save_pretrained`."""
    expected = set(model.state_dict())
    given = model.state_dict() if state_dict is None else state_dict
    if set(given) != expected:
        raise ValueError(
            f"save_pretrained: state_dict is not one of {type(model).__name__}: "
            f"it lacks {sorted(expected - set(given))} and has {sorted(set(given) - expected)} besides"
        )
    tensors = {name: _storable(name, tensor) for name, tensor in given.items()}
    config = model.config.replace()
    config.extra.pop("torch_dtype", None)  # the older name of "dtype"
    dtype = str(tensors[next(name for name in tensors if name.endswith("word_embeddings.weight"))].dtype)
    config.extra |= {"architectures": [type(model).__name__], "dtype": dtype.removeprefix("torch.")}
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(
        folder / WEIGHTS_NAME, lambda path: safetensors().torch.save_file(tensors, path, metadata={"format": "pt"})
    )
    config.save_pretrained(folder)
