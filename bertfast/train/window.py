"""Sums of what was computed since the last log line, and the figures that are made of them."""

from typing import Any

import torch

EXTRA = ("tokens", "sequences", "squares")


class Window:
    """Sums since the last log line, float64 on the device, read only when they are shown.

    For each term: loss times targets, right answers, targets; then real tokens, sequences, and the sum of squared lengths.
    """

    def __init__(self, terms: list[str], device: torch.device) -> None:
        self.terms = terms
        self.judged: set[str] = set()  # terms that count right answers
        self.steps = 0
        self.sums = torch.zeros(3 * len(terms) + len(EXTRA), dtype=torch.float64, device=device)

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
    figures: dict[str, Any] = {"loss": 0.0}
    for i, term in enumerate(terms):
        loss, right, targets = sums[i], sums[n + i], sums[2 * n + i]
        mean = loss / max(1.0, targets)
        figures["loss"] += mean
        prefix = "" if term == "loss" else f"{term}_"
        if prefix:
            figures[f"{prefix}loss"] = mean
        if term in judged:
            figures[f"{prefix}accuracy"] = right / max(1.0, targets)
    figures["targets"] = {term: sums[2 * n + i] for i, term in enumerate(terms)}
    return figures | dict(zip(EXTRA, sums[3 * n :], strict=True))
