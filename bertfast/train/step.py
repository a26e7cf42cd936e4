"""One optimizer step: gradients of several micro-batches on several ranks, as if they were one batch.

    loss = sum over terms of  sum over micro-batches and ranks of (mean of the term x its targets) / (targets of the whole step)

so every target weighs the same, wherever it came from. transformers' Trainer adds the means of BERT's heads over
micro-batches instead, so that gradients grow with their number and targets of thin batches weigh more. Counts are
summed over ranks before the first backward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.train import optim
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks, accumulating
from bertfast.train.task import Task

Flags = Callable[[], list[bool]]
_EXTRA = ("tokens", "sequences", "squares")


class Window:
    """Sums of what was computed since the last log line, float64 on the device, read only when they are shown.

    For each term: loss times targets, right answers, targets; then real tokens, sequences, and the sum of squared lengths.
    """

    def __init__(self, terms: list[str], device: torch.device) -> None:
        self.terms = terms
        self.judged: set[str] = set()  # terms that count right answers
        self.steps = 0
        self.sums = torch.zeros(3 * len(terms) + len(_EXTRA), dtype=torch.float64, device=device)

    def add(self, sums: Tensor, judged: set[str]) -> None:
        self.sums += sums
        self.judged |= judged
        self.steps += 1

    def clear(self) -> None:
        self.sums.zero_()
        self.steps = 0

    def totals(self) -> dict[str, Any]:
        """Plain numbers: "loss" and the means of each term, accuracies, and counts of tokens, sequences and targets."""
        return totals(self.terms, self.judged, self.sums.tolist()) | {"steps": self.steps}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.tolist(), "steps": self.steps, "judged": sorted(self.judged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self.steps, self.judged = state["steps"], set(state["judged"])


def totals(terms: list[str], judged: set[str], sums: list[float]) -> dict[str, Any]:
    """Means and counts from the sums that `Window` keeps."""
    n = len(terms)
    found: dict[str, Any] = {"loss": 0.0}
    for i, term in enumerate(terms):
        loss, right, targets = sums[i], sums[n + i], sums[2 * n + i]
        mean = loss / max(1.0, targets)
        found["loss"] += mean
        prefix = "" if term == "loss" else f"{term}_"
        if prefix:
            found[f"{prefix}loss"] = mean
        if term in judged:
            found[f"{prefix}accuracy"] = right / max(1.0, targets)
    found["targets"] = {term: sums[2 * n + i] for i, term in enumerate(terms)}
    return found | dict(zip(_EXTRA, sums[3 * n :], strict=True))


@dataclass
class Gradients:
    """What the backward passes of a step left: gradients in the parameters, and these figures."""

    sums: Tensor  # as in Window, of this step and all ranks
    judged: set[str]
    norm: Tensor
    finite: bool  # the loss on every rank, and the gradient norm
    flags: list[bool]  # each true where it was on any rank


def squared_lengths(batch: Any) -> float:
    """The sum of squared sequence lengths, which attention's cost follows. The batch is still on the CPU."""
    if getattr(batch, "cu_seqlens", None) is not None:
        return float(batch.cu_seqlens.diff().double().square().sum())
    mask = getattr(batch, "attention_mask", None)
    return 0.0 if mask is None else float(mask.sum(-1).double().square().sum())


def gradients(
    task: Task, wrapped: nn.Module, batches: list[Any], config: TrainConfig, ranks: Ranks, flags: Flags
) -> Gradients:
    """Forward and backward of this rank's micro-batches of one step. No update is made.

    flags: asked after the last backward for what all ranks are to know (a signal came, a checkpoint is due).
    The one wait for the device is the reading of `finite` and `flags`.
    """
    terms = sorted(batches[0].counts)
    device = ranks.device
    own = torch.tensor([[batch.counts[term] for term in terms] for batch in batches], dtype=torch.float64)  # [m, n]
    targets = ranks.sum(own.sum(0).to(device))
    # DDP and FSDP average gradients over ranks, so the sum needs a factor.
    weights = (own.to(device) / targets.clamp(min=1) * ranks.size).float()  # [m, n]
    extra = [
        sum(b.real_tokens for b in batches),
        sum(b.sequences for b in batches),
        sum(squared_lengths(b) for b in batches),
    ]
    sums = torch.zeros(2, len(terms), dtype=torch.float64, device=device)  # loss times targets, right answers
    counts = own.to(device)
    judged: set[str] = set()
    for i, batch in enumerate(batches):
        with accumulating(wrapped, last=i == len(batches) - 1):
            batch = batch.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                found = task.terms(wrapped, batch)
            loss = torch.stack([found[term].mean.float() for term in terms]) @ weights[i]
            loss.backward()
        means = torch.stack([found[term].mean.detach() for term in terms]).double()
        # A term without targets is zero by contract; 0 x NaN must not hide that it is not.
        sums[0] += torch.where(counts[i] > 0, means * counts[i], means)
        for j, term in enumerate(terms):
            right = found[term].correct
            if right is not None:
                judged.add(term)
                sums[1, j] += right.detach()
    told = torch.tensor([*extra, *flags()], dtype=torch.float64).to(device)
    shared = ranks.sum(torch.cat((sums.flatten(), counts.sum(0), told)))
    step, raised = shared.split([3 * len(terms) + len(_EXTRA), len(told) - len(_EXTRA)])
    norm = optim.gradient_norm(task.model)
    finite = torch.isfinite(step).all() & torch.isfinite(norm)
    read = torch.cat((finite.double()[None], raised)).tolist()
    return Gradients(step, judged, norm, bool(read[0]), [value > 0 for value in read[1:]])
