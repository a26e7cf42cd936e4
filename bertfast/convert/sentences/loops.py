"""SentenceTransformer and CrossEncoder whose `encode`, `predict` and `rank` go through batches of equal lengths on a CPU.

Each is the stock class with another loop below `encode` or `predict`, whose arguments, checks, order and types of results stay the
library's own; so do pools, whose workers call the same loop. A call that wants more than one vector or score
for each text, and any call on another device than a CPU, goes through the library's loop.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from tqdm.autonotebook import tqdm

from bertfast.convert.counts import count
from bertfast.convert.sentences import batches, first_tokens, installed
from bertfast.nn import device as gpu

# What the library's `preprocess` gives for a batch of B inputs -> [B, ...].
Compute = Callable[[dict[str, Any]], Tensor]
FAST = "fast: batches of equal lengths"
FIRST_TOKENS = f"{FAST}, the first tokens of the last layer alone"


class _Progress:
    """The library's bar, which counts batches of `batch_size` whatever the batches really are."""

    def __init__(self, inputs: int, batch_size: int, shown: bool) -> None:
        self._bar = tqdm(total=-(-inputs // batch_size), desc="Batches", disable=not shown)
        self._inputs, self._batch_size, self._done = inputs, batch_size, 0

    def add(self, inputs: int) -> None:
        self._done += inputs
        passed = self._bar.total if self._done == self._inputs else self._done // self._batch_size
        self._bar.update(passed - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _by_length(
    model: Any,
    stock: Callable[..., Any],
    inputs: list[Any],
    *,
    prompt: str | None,
    batch_size: int,
    show_progress_bar: bool,
    device: Any = None,
    **arguments: Any,
) -> Any:
    """The loop of both classes in place of the library's, `stock`; `model.OWN` names the arguments that only one of them has."""
    own = {name: arguments.pop(name) for name in model.OWN if name in arguments}
    reason = _reason(model, inputs, installed.device_of(model, device), arguments) or model._own_reason(own)
    if reason is not None:
        count(model, f"the library's own batches: {reason}")
        options = {"prompt": prompt, "batch_size": batch_size, "show_progress_bar": show_progress_bar}
        return stock(inputs, device=device, **options, **own, **arguments)
    model.eval()
    how, compute = model._computing(prompt, own, arguments)
    count(model, how)
    return _gathered(model, inputs, batch_size, show_progress_bar, {"prompt": prompt, **arguments}, compute)


def _reason(model: Any, inputs: list[Any], device: torch.device, arguments: dict[str, Any]) -> str | None:
    if device.type != "cpu" or device.type in gpu.KINDS:
        return "a GPU has its captured calls for the sizes of the library's batches"
    return batches.model_reason(model) or batches.call_reason(model, inputs, arguments)


class FastSentenceTransformer(SentenceTransformer):
    """What `optimize` makes of a SentenceTransformer: `encode` gives what the library's gives, within rounding.

    On a CPU texts are computed in batches of equal lengths, without padding; other calls go through the library's loop.
    """

    OWN = ("output_value", "normalize_embeddings", "truncate_dim", "save_to_cpu")

    @torch.inference_mode()
    def _inference(self, inputs: list[Any], **arguments: Any) -> Any:
        return _by_length(self, super()._inference, inputs, **arguments)

    def _own_reason(self, own: dict[str, Any]) -> str | None:
        value = own["output_value"]
        return None if value == "sentence_embedding" else f"output_value is {value!r}"

    def _computing(self, prompt: str | None, own: dict[str, Any], arguments: dict[str, Any]) -> tuple[str, Compute]:
        first = first_tokens.read_alone(self, prompt)

        def embeddings(features: dict[str, Any]) -> Tensor:
            with first_tokens.asked_for(self) if first else nullcontext():
                vectors = self(features, **arguments)["sentence_embedding"]
            if own["truncate_dim"] is not None:
                vectors = vectors[..., : own["truncate_dim"]]
            return nn.functional.normalize(vectors, p=2, dim=1) if own["normalize_embeddings"] else vectors

        return FIRST_TOKENS if first else FAST, embeddings


class FastCrossEncoder(CrossEncoder):
    """What `optimize` makes of a CrossEncoder: `predict` and `rank` give what the library's give, within rounding.

    On a CPU pairs are computed in batches of equal lengths, without padding; other calls go through the library's loop.
    """

    OWN = ("activation_fn", "apply_softmax")

    @torch.inference_mode()
    def _inference(self, inputs: list[Any], **arguments: Any) -> Any:
        return _by_length(self, super()._inference, inputs, **arguments)

    def _own_reason(self, own: dict[str, Any]) -> str | None:
        return None

    def _computing(self, prompt: str | None, own: dict[str, Any], arguments: dict[str, Any]) -> tuple[str, Compute]:
        activation, num_labels = own["activation_fn"], self.num_labels

        def scores(features: dict[str, Any]) -> Tensor:
            values = self(features, **arguments)["scores"]
            if values.is_floating_point() and torch.finfo(values.dtype).bits < 32:
                values = values.float()
            if activation is not None:
                values = activation(values)
            if num_labels == 1 and values.ndim > 1:
                values = values.squeeze(-1)
            return values.softmax(dim=1) if own["apply_softmax"] and values.ndim > 1 else values

        return FAST, scores


def _gathered(
    model: Any, inputs: list[Any], batch_size: int, shown: bool, arguments: dict[str, Any], compute: Compute
) -> Tensor:
    """compute(features) of all batches, [len(inputs), ...] in the order of the inputs."""
    progress = _Progress(len(inputs), batch_size, shown)
    gathered = torch.empty(0)
    try:
        for rows, features in batches.batches(model, inputs, batch_size, arguments):
            values = compute(features)
            if gathered.shape[0] == 0:
                gathered = values.new_empty(len(inputs), *values.shape[1:])
            gathered[rows] = values
            progress.add(len(rows))
    finally:
        progress.close()
    return gathered


STOCK: dict[type[nn.Module], type[nn.Module]] = {
    FastSentenceTransformer: SentenceTransformer,
    FastCrossEncoder: CrossEncoder,
}
FAST_CLASSES: dict[type[nn.Module], type[nn.Module]] = {stock: fast for fast, stock in STOCK.items()}
for _fast, _stock in STOCK.items():
    _fast.__name__ = _stock.__name__  # what model cards and messages say; pickle goes by __qualname__
