"""Cases that run on the CPU as on a GPU: their inference calls are captured and replayed, after others of the same sizes."""

import contextlib
import warnings
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from captured import captured_on_cpu

from fuzz.build import Inputs
from fuzz.draw import Call, Case
from fuzz.subject import Subject

# What a route says where capturing failed: an error or other bits, which no case should meet.
FAILED = ("capturing it raised", "its replay")


def surroundings(case: Case) -> AbstractContextManager[Any]:
    return captured_on_cpu() if case.captured else contextlib.nullcontext()


def rehearse(subject: Subject, case: Case, call: Call, inputs: Inputs, seed: int) -> None:
    """Call the model as it will be called, with sequences and tokens in another order, so that sizes are captured and replayed.

    Every model of a case is rehearsed alike: a call may leave something behind, such as a table renormalised in place.
    """
    from fuzz.run import forward, mode

    if call.mode not in ("no_grad", "inference") or call.around != "plain":
        return
    dtype = next(subject.model.parameters()).dtype
    others = dict(inputs.kwargs)
    if (
        "input_ids" in others
    ):  # wrong ids are for the call itself: at padding, where these may come to lie, ours looks at none
        others["input_ids"] = others["input_ids"].clamp(0, case.config["vocab_size"] - 1)
    for _ in range(call.rehearsals):
        others = _in_another_order(others)
        torch.manual_seed(seed)
        with warnings.catch_warnings(), contextlib.suppress(Exception), mode(call):
            warnings.simplefilter("ignore")
            forward(subject.model, case, call, replace(inputs, kwargs=others), dtype)


def _in_another_order(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same sizes with other sequences at each place, and other ids at each token."""
    ids = kwargs.get("input_ids")
    if ids is None:
        return kwargs
    rolled = {
        name: value.roll(1, 0) if isinstance(value, torch.Tensor) and value.shape[:1] == ids.shape[:1] else value
        for name, value in kwargs.items()
    }
    return rolled | {"input_ids": ids.flatten().roll(1).view_as(ids)}


def failures(routes: Any) -> list[str]:
    return [how for how in routes if any(text in how for text in FAILED)]
