"""Losses averaged over a whole optimizer step, however many micro-batches make it up.

Trainer counts the labels of a step (other than -100) and gives the number to heads as `num_items_in_batch`; it then leaves
their loss as it comes. transformers' encoder heads take the number and still average over their own micro-batch, so that
gradients at four micro-batches are four times as large as at one. Here a micro-batch's mean is weighed by its share of the
step's labels: the losses add up to the mean over all of them, as if the step were one batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bertfast.convert.counts import count
from bertfast.convert.options import option
from bertfast.convert.swapped import Swapped

NAME = "average_over_accumulation"
AVERAGED = "loss averaged over the labels of the whole step"
FastForward = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def averaged(fast_forward: FastForward) -> FastForward:
    """Weighs the loss of a head, which is a mean over labels other than -100, where the option and the call ask for it."""

    @functools.wraps(fast_forward)
    def averaging(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        items = kwargs.get("num_items_in_batch")
        call = self.arguments.bind(args, kwargs) if items is not None and option(self, NAME) is True else None
        labels = None if call is None else call.get("labels")
        if not isinstance(labels, Tensor):
            return fast_forward(self, args, kwargs)
        # Left out, so that a release whose heads divide by it themselves gives the mean as well.
        rest = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}
        outputs = fast_forward(self, args, rest)
        count(self, AVERAGED)
        if isinstance(outputs, tuple):
            return (_weighed(outputs[0], labels, items), *outputs[1:])
        if outputs.loss is not None:
            outputs.loss = _weighed(outputs.loss, labels, items)
        return outputs

    return averaging


def _weighed(loss: Tensor, labels: Tensor, items: Tensor | int) -> Tensor:
    """The loss [] times the share of the micro-batch in the step's labels; 0 where it has none and its mean is NaN."""
    labelled = labels.ne(-100).sum().to(loss.device)
    items = torch.as_tensor(items, device=loss.device).flatten()[0]  # DataParallel gives each replica a row
    return torch.where(labelled > 0, loss, torch.zeros_like(loss)) * (labelled / items).to(loss.dtype)


class FastAveragedHead(Swapped):
    """A head whose forward is stock's, but for its loss under gradient accumulation."""

    @averaged
    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.stock.forward(self, *args, **kwargs)
