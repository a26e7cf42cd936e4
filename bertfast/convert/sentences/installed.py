"""The installed sentence-transformers, where bertfast depends on more than its public classes. No other file names its private
parts: `_inference`, the loop over sentences below `encode` and `predict`, which workers of a pool call too, and
`_resolve_inference_device`. Both came with 6.0; where they are missing or take other arguments, `fits` is false.
"""

import inspect
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

_ENCODE = {
    "prompt",
    "batch_size",
    "show_progress_bar",
    "output_value",
    "normalize_embeddings",
    "truncate_dim",
    "device",
}
_PREDICT = {"prompt", "batch_size", "show_progress_bar", "activation_fn", "apply_softmax", "device"}


def fits() -> bool:
    """Whether the library's loops are those that bertfast knows."""
    for stock, known in ((SentenceTransformer, _ENCODE), (CrossEncoder, _PREDICT)):
        loop = getattr(stock, "_inference", None)
        if loop is None or not known <= set(inspect.signature(loop).parameters):
            return False
        if not hasattr(stock, "_resolve_inference_device"):
            return False
    return True


def device_of(model: Any, device: Any) -> torch.device:
    """Where a call computes, the model moved there."""
    return model._resolve_inference_device(device)
