"""One optimizer step: gradients of several micro-batches on several ranks, as if they were one batch, and the update.

    loss = sum over terms of  sum over micro-batches and ranks of (mean of the term x its targets) / (targets of the whole step)

so every target weighs the same, wherever it came from. transformers' Trainer adds the means of BERT's heads over
micro-batches instead, so that gradients grow with their number and targets of thin batches weigh more. Counts are
summed over ranks before the first backward.

Nothing in a step waits for a GPU: numbers of the host go there through pinned memory, what is computed stays there until
`Step.read`, and an update is withheld there from the first step on whose loss or gradient norm is not finite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.nn.joined import Held
from bertfast.train import one_pass, optim
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks, accumulating
from bertfast.train.flags import Flags
from bertfast.train.reduce import Reducer
from bertfast.train.task import Task
from bertfast.train.window import EXTRA, Window


@dataclass
class Reading:
    """What `Step.read` reads from the device.

    Attributes:
        bad: the first step whose loss or gradient norm was not finite, 0 for none.
        sums: as in `Window`, of that step, else of the last one.
        norm: the gradient norm of the same step, before clipping.
    """

    bad: int
    sums: list[float]
    norm: float


def squared_lengths(batch: Any) -> float:
    """The sum of squared sequence lengths, which attention's cost follows. The batch is still on the CPU."""
    if getattr(batch, "cu_seqlens", None) is not None:
        return float(batch.cu_seqlens.diff().double().square().sum())
    mask = getattr(batch, "attention_mask", None)
    return 0.0 if mask is None else float(mask.sum(-1).double().square().sum())


class Step:
    """What one step after another computes with, in tensors that stay where they are; m micro-batches of n loss terms.

    `prepare`, then `first` and `further` of the batches on the device, `exchange`, `judge` and `apply`: `run` does all of it.
    `first`, `further`, `judge` and `apply` call torch alone, always the same functions on the same memory, so that each may be
    captured: what changes from step to step is on the device.

    Attributes:
        rate: [] learning rate of the update; float32 on a GPU, float64 on a CPU.
        number: [] int64, steps that were judged.
        bad: [] int64, the first of them that was not finite; 0 for none.
        withheld: [] float32, 1 where `bad` is set, else 0. The optimizer then changes nothing.
        shared: [3 n + 3] float64, sums of this step as in `Window`; of all ranks from `exchange` on.
        record: [3 n + 4] float64, `shared` and the gradient norm of step `bad`, else of the last one.
        norm: [] the gradient norm before clipping, set by `judge`.
        window: sums since the last log line, without those from step `bad` on.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        ranks: Ranks,
        window: Window,
        micro_batches: int,
        *,
        number: int = 0,
        withholds: bool = True,
        lag: int = 0,
        reducer: Reducer | None = None,
        copies: Held | None = None,
    ) -> None:
        """
        Args:
            model: what is called, which is `task.model` or wraps it.
            optimizer: gets `rate` as its learning rate.
            micro_batches: of a step on this rank.
            number: steps before the first one.
            withholds: keep updates back on the device; where it is false, read between `judge` and `apply`.
            lag: steps until flags of several ranks are read.
            reducer: adds up gradients of several ranks in `exchange`, where `model` does not average them in its backward.
            copies: of the weights, which the model's products read.
        """
        self.task, self.model, self.optimizer, self.config, self.ranks = task, model, optimizer, config, ranks
        self.window, self.terms = window, window.terms
        device, n = ranks.device, len(window.terms)
        self._flags, self._reducer, self._copies = Flags(ranks, lag), reducer, copies
        self._placed: object = None  # where the tensors of a captured update lie
        # DDP and FSDP average gradients over ranks, so the sum needs a factor.
        self._factor = ranks.size if reducer is None else 1

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # What the host tells of a step: targets of each micro-batch, of all, tokens and so on, the learning rate.
        self._given = zeros(micro_batches * n + n + len(EXTRA) + 1)
        counts, self._told, self._rate = self._given.split([micro_batches * n, n + len(EXTRA), 1])
        self._counts = counts.view(micro_batches, n)
        self._targets = self._told[:n] if ranks.size == 1 else zeros(n)  # of all ranks
        self._weights = zeros(micro_batches, n, dtype=torch.float32)
        # The number of the present micro-batch, int64, and sums that begin with zeros as it does; then the others.
        whole = zeros(1 + 3 * n + len(EXTRA))
        self._fresh, self._rest = whole.split([1 + 2 * n, n + len(EXTRA)])
        self._row, self._sums, self.shared = whole[:1].view(torch.int64), self._fresh[1:], whole[1:]
        self.record = zeros(3 * n + len(EXTRA) + 1)
        self.rate = zeros(dtype=torch.float64 if device.type == "cpu" else torch.float32)
        self.number = torch.full((), number, dtype=torch.int64, device=device)
        self.bad, self.withheld = zeros(dtype=torch.int64), zeros(dtype=torch.float32)
        self.norm: Tensor = zeros(dtype=torch.float32)
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        if withholds:
            optimizer.found_inf = self.withheld  # type: ignore[attr-defined]  # torch's fused optimizers look there

    def run(
        self,
        batches: list[Any],
        rate: float,
        flags: Callable[[], list[bool]],
        check: Callable[[], object] | None = None,
    ) -> list[bool]:
        """A whole step, launched op by op.

        batches: this rank's micro-batches, on the CPU.
        rate: the learning rate of the update.
        flags: asked after the last backward for what all ranks are to know (a signal came, a checkpoint is due).
        check: called between `judge` and `apply`; what it raises keeps the update back.

        Returns each flag: this rank's own where it is alone, else whether it was up on any rank `lag` steps ago.
        """
        device = self.ranks.device
        self.prepare(batches, rate)
        for i, batch in enumerate(batches):
            with accumulating(self.model, last=i == len(batches) - 1):
                procedure = self.further if i else self.first
                procedure(batch.to(device, non_blocking=True))
        known = self.exchange(flags())
        self.judge()
        if check is not None:
            check()
        self.apply()
        self.optimizer.zero_grad(set_to_none=True)
        return known

    def prepare(self, batches: list[Any], rate: float) -> None:
        """Tell the device what the host knows of a step; several ranks add up their targets."""
        counts = [[float(batch.counts[term]) for term in self.terms] for batch in batches]
        numbers = [count for row in counts for count in row]
        numbers += [sum(column) for column in zip(*counts, strict=True)]
        numbers += [
            sum(batch.real_tokens for batch in batches),
            sum(batch.sequences for batch in batches),
            sum(squared_lengths(batch) for batch in batches),
            rate,
        ]
        told = torch.tensor(numbers, dtype=torch.float64)
        if self.ranks.device.type == "cuda":
            told = told.pin_memory()
        self._given.copy_(told, non_blocking=True)
        if self.ranks.size > 1:
            self._targets.copy_(self._told[: len(self.terms)])
            self.ranks.sum(self._targets)

    def first(self, batch: Any) -> None:
        """Forward and backward of the first micro-batch, which is on the device."""
        self._weights.copy_(self._counts / self._targets.clamp(min=1) * self._factor)
        self._fresh.zero_()
        self._rest.copy_(self._told)
        self.further(batch)

    def further(self, batch: Any) -> None:
        """Forward and backward of another micro-batch, which is on the device."""
        terms = self.terms
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.autocasts):
            outputs = self.task.terms(self.model, batch)
        weights = self._weights.index_select(0, self._row)[0]
        loss = torch.stack([outputs[term].mean.float() for term in terms]) @ weights
        loss.backward()
        counts = self._counts.index_select(0, self._row)[0]
        means = torch.stack([outputs[term].mean.detach() for term in terms]).double()
        # A term without targets is zero by contract; 0 x NaN must not hide that it is not.
        self._sums[: len(terms)] += torch.where(counts > 0, means * counts, means)
        for place, term in enumerate(terms, len(terms)):
            right = outputs[term].correct
            if right is not None:
                self.window.judged.add(term)
                self._sums[place] += right.detach()
        self._row.add_(1)

    def exchange(self, own: list[bool]) -> list[bool]:
        """Add up the sums of all ranks, and their gradients if no backward did; agree on what scales of FP8 follow.

        Returns the flags that are known now, as `run` has them.
        """
        if self._reducer is not None:
            self._reducer.sum()
        for amax in self._copies.amaxes() if self._copies is not None else ():
            self.ranks.largest(amax)
        return self._flags.exchange(self.shared, own)

    def update(self) -> None:
        """`judge` and `apply`."""
        self.judge()
        self.apply()

    def judge(self) -> None:
        """The gradient norm, and whether it and the losses are finite; the step's sums go to the window."""
        self.norm = optim.gradient_norm(self.task.model)
        finite = torch.isfinite(self.shared).all() & torch.isfinite(self.norm)
        self.number.add_(1)
        was_bad = self.bad != 0
        self.record.copy_(torch.where(was_bad, self.record, torch.cat((self.shared, self.norm.double()[None]))))
        self.bad.copy_(torch.where(was_bad | finite, self.bad, self.number))
        self.withheld.copy_(self.bad != 0)
        self.window.sums.add_(torch.where(self.bad == 0, self.shared, 0.0))

    def apply(self) -> None:
        """Clip the gradients and update the weights, and what products read in their place."""
        self.rate.copy_(self._rate[0])
        optim.update(self.optimizer, self.task.model, self.norm, self.config.max_grad_norm, self._copies)

    def place(self) -> None:
        """Before `update` is captured: note where the present gradients lie, which cannot be done in a capture."""
        if optim.in_one_pass(self.optimizer) and one_pass.runs("gradient_norm", self.ranks.device):
            with one_pass.placing() as self._placed:
                optim.gradient_norm(self.task.model)
                optim.update(self.optimizer, self.task.model, self.norm, self.config.max_grad_norm, self._copies)

    def read(self) -> Reading:
        """Wait for the device, and say what it found."""
        bad, *sums, norm = torch.cat((self.bad.double()[None], self.record)).tolist()
        return Reading(int(bad), sums, norm)
