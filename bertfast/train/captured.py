"""Steps from CUDA graphs: what `Step.run` launches op by op, replayed over static memory.

    M1  forward and backward of the first micro-batch; gradients written
    M2  of a further one; gradients added
    U   sums, gradient norm, whether all is finite, clipping, the optimizer

M1 and M2 are captured for each signature of batches: shapes, dtypes and the bound on the longest sequence. U is captured once. The
first step of a signature runs eagerly, the second captures, every later one replays.

Capturing runs a step twice. Forward and backward run eagerly first, their sums and the norm of every gradient are kept, the
gradients freed and the random generator put back; then they are captured, replayed and compared with that, bit by bit. Only
then are the weights updated, once. What fails, or differs, runs eagerly from then on, with the numbers of an eager run.

Gradients: the first M1 finds none, so that its backward makes them in the graphs' memory. They stay there: `.grad` is not set to
None between replays, U reads them at their addresses, M2 adds to them, and M1 of another signature begins with zeroing them. An
eager step between replays has gradients of its own, and puts these back.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bertfast import _torch
from bertfast.graphs import capturing, feed, steps
from bertfast.graphs.backend import Backend
from bertfast.models import BertPreTrainedModel
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.step import Step

_MAX_GRAPHS = 64  # of micro-batches: two for each signature
_UPDATE = "update"
# Between two runs of the same arithmetic, relative, where eager runs do not repeat their own bits (sums in any order).
_ROUNDING = 1e-3


def reason_against(model: nn.Module, config: TrainConfig, ranks: Ranks, late: bool) -> str | None:
    """Why steps of a run on a device that captures are not captured; None where they may be.

    model: the bare one. late: whether steps are read late, and updates withheld on the device until then.
    """
    if not config.cuda_graphs:
        return "cuda_graphs is false"
    if not late:
        return "every step is read before its update"
    if config.compile:
        return "the model is compiled"
    if ranks.size > 1 and config.parallel == "fsdp":
        return "FSDP shards the weights"
    if not isinstance(model, BertPreTrainedModel):
        return f"{type(model).__name__} is none of bertfast's models"
    return _attached(model)


def _attached(model: nn.Module) -> str | None:
    """That Python code is attached to the model, which a replay would not call."""
    if _torch.has_global_hooks():
        return "there are hooks on all modules"
    for name, module in model.named_modules():
        if any(
            getattr(module, hooks)
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        ):
            return f"{name or 'the model'} has a hook"
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"{name} has a hook"
    return None


class CapturedStep:
    """Runs a `Step` from graphs where it can.

    Attributes:
        reason: why steps run eagerly from now on; None while they may be captured.
    """

    def __init__(self, step: Step, device: Backend) -> None:
        """step: one that withholds updates on the device. device: where its model lies."""
        self.step, self.device = step, device
        self.reason: str | None = None
        self._feed = feed.Feed(device.device)
        self._procedures = steps.Procedures(device, _MAX_GRAPHS)
        self._parameters = [p for p in step.task.model.parameters() if p.requires_grad]
        self._gradients: list[Tensor | None] | None = None  # of the graphs
        self._repeats = True  # whether graphs gave the bits of eager steps

    def path(self) -> str | None:
        """Which path steps take, in words; None while nothing is known."""
        if self.reason is not None:
            return f"steps run eagerly: {self.reason}"
        if _UPDATE not in self._procedures:
            return None
        nbytes = self._procedures.nbytes + self._feed.nbytes
        remark = (
            ""
            if self._repeats
            else "; their numbers are those of eager steps to rounding, as of eager steps among themselves"
        )
        return f"steps are captured in CUDA graphs: {len(self._procedures)} graphs, {nbytes / 2**30:.1f} GiB{remark}"

    def run(self, batches: list[Any], rate: float, flags: Callable[[], list[bool]]) -> list[bool]:
        """As `Step.run`."""
        if self.reason is None and any(getattr(batch, "attention_mask", None) is not None for batch in batches):
            self._stop("batches are padded, and how many tokens their mask leaves would be asked of the device")
        if self.reason is not None:
            return self.step.run(batches, rate, flags)
        with self.device.active():
            self.step.prepare(batches, rate)
            keys = [("further" if i else "first", feed.signature(b), b.max_seqlen) for i, b in enumerate(batches)]
            return self._run(list(zip(keys, batches, strict=True)), flags)

    def _run(self, batches: list[tuple[Hashable, Any]], flags: Callable[[], list[bool]]) -> list[bool]:
        needed = [*(key for key, _ in batches), _UPDATE]
        if self._gradients is not None and not self._procedures.are_current(self._tensors()):
            self._clear()  # a weight was replaced, or a gradient
        if all(key in self._procedures for key in needed):
            if self.device.begin():
                try:
                    if not self.device.is_pending():
                        return self._replay(batches, flags)
                finally:
                    self.device.end()
        elif self._procedures.are_due(needed) and self.device.begin_capture():
            try:
                if not self.device.is_pending():
                    return self._capture(batches, flags)
            finally:
                self.device.end()
        with self._own_gradients():
            self._compute(batches)
            known = self.step.exchange(flags())
            self.step.update()
        self._procedures.came(needed)
        return known

    def _tensors(self) -> list[Tensor | None]:
        """What graphs read and write by address and others could replace."""
        return [*self._parameters, *(p.grad for p in self._parameters)]

    def _put(self, key: Hashable, batch: Any) -> Any:
        """The static batch, with these numbers. Shared by first and further micro-batches."""
        assert isinstance(key, tuple)
        return self._feed.put(batch, key[1:])

    def _replay(self, batches: list[tuple[Hashable, Any]], flags: Callable[[], list[bool]]) -> list[bool]:
        self.device.check()
        for key, batch in batches:
            self._put(key, batch)
            self._procedures.replay(key)
        known = self.step.exchange(flags())
        self._procedures.replay(_UPDATE)
        return known

    @contextmanager
    def _own_gradients(self) -> Iterator[None]:
        """Gradients that are newly made and freed at the end, beside those of the graphs."""
        for parameter in self._parameters:
            parameter.grad = None
        try:
            yield
        finally:
            self._set_gradients()

    def _set_gradients(self) -> None:
        """Let `.grad` be those of the graphs, or None where there are none."""
        gradients = self._gradients or [None] * len(self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _compute(self, batches: list[tuple[Hashable, Any]]) -> None:
        """Forward and backward of all micro-batches, eagerly; once more without graphs where they left too little memory."""
        generator, short = steps.Generator(self.device.device), False
        try:
            self._launch(batches)
        except Exception as error:
            if not len(self._procedures) or not capturing.is_out_of_memory(error):
                raise
            short = True
        if short:  # the error is gone, and with it what its frames held
            self._stop(capturing.NO_MEMORY)
            generator.restore()
            self._launch(batches)

    def _launch(self, batches: list[tuple[Hashable, Any]]) -> None:
        for number, (key, batch) in enumerate(batches):
            static = self._put(key, batch)
            if number:
                self.step.further(static)
            else:
                for parameter in self._parameters:
                    parameter.grad = None
                self.step.first(static)

    def _figures(self) -> list[Tensor]:
        """What two runs of the same micro-batches are compared by: sums [3 n + 3], and the norm of each gradient [p]."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return [self.step.shared.clone(), torch.stack(_torch.foreach("norm")(gradients))]

    def _capture(self, batches: list[tuple[Hashable, Any]], flags: Callable[[], list[bool]]) -> list[bool]:
        generator = steps.Generator(self.device.device)
        with self._own_gradients():
            self._compute(batches)
            expected = self._figures()
        self.device.wait()
        self.device.check()  # an id outside its table is the data's fault, not the capture's
        reason = self.reason  # there was no memory beside the graphs of other signatures
        if reason is None:
            generator.restore()
            reason = self._attempt(lambda: self._capture_micro_batches(batches))
        if reason is None and steps.differing(self._figures(), expected):
            reason = self._difference(batches, generator, expected)
        if reason is not None:
            self._stop(reason)
            generator.restore()
            self._compute(batches)
        known = self.step.exchange(flags())
        if reason is None and _UPDATE not in self._procedures:
            reason = self._attempt(self._capture_update)
            if reason is not None:
                self._stop(reason, keep_gradients=True)
        if reason is None:
            self._procedures.replay(_UPDATE)
            self._procedures.remember(self._tensors())
        else:
            self.step.update()
            self._set_gradients()
        return known

    def _attempt(self, make: Callable[[], None]) -> str | None:
        """Why capturing failed; None where it did not."""
        try:
            make()
        except IndexError:  # a launcher looked for what an earlier kernel reported of its ids
            raise
        except Exception as error:
            if capturing.is_out_of_memory(error):
                return capturing.NO_MEMORY
            return f"capturing raised {type(error).__name__}: {error}"
        return None

    def _capture_update(self) -> None:
        self.step.place()
        self._procedures.capture(_UPDATE, self.step.update, keep=True)

    def _capture_micro_batches(self, batches: list[tuple[Hashable, Any]]) -> None:
        """Capture what is missing, and replay all."""
        for number, (key, batch) in enumerate(batches):
            static = self._put(key, batch)
            if key not in self._procedures:
                owner = self._gradients is None
                if number:
                    self._procedures.capture(key, partial(self.step.further, static))
                else:
                    self._procedures.capture(key, partial(self._first, static), keep=owner)
                gradients = [p.grad for p in self._parameters]
                if owner:
                    self._gradients = gradients
                elif any(a is not b for a, b in zip(gradients, self._gradients or (), strict=True)):
                    raise RuntimeError("a parameter has a gradient in some batches alone")
            self._procedures.replay(key)
        self._procedures.make_room(key for key, _ in batches)

    def _first(self, static: Any) -> None:
        """M1: into gradients that are made, or into those that there are."""
        if self._gradients is not None:
            _torch.foreach("zero_")([gradient for gradient in self._gradients if gradient is not None])
        self.step.first(static)

    def _difference(
        self, batches: list[tuple[Hashable, Any]], generator: steps.Generator, expected: list[Tensor]
    ) -> str | None:
        """Why the gradients of a replay, which are there, are not to be used; None where they are as good as an eager run's."""
        replayed = self._figures()
        count = steps.differing(replayed, expected)
        generator.restore()
        gradients = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        with self._own_gradients():
            self._compute(batches)
            again = self._figures()
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.copy_(gradient)
        self.step.shared.copy_(replayed[0])
        apart = torch.stack(
            [((a - b).abs() / (b.abs() + 1e-12)).max().double() for a, b in zip(replayed, expected, strict=True)]
        )
        if steps.differing(again, expected) and float(apart.max()) <= _ROUNDING:
            self._repeats = False
            return None
        return (
            f"a replay differs from the eager step in {count} of {sum(len(each) for each in expected)} sums and norms"
        )

    def _stop(self, reason: str, *, keep_gradients: bool = False) -> None:
        """Run eagerly from now on. keep_gradients: `.grad` is still to be read."""
        failed = len(self._procedures) > 0 or self.reason is None
        self.reason = reason
        self._clear(keep_gradients)
        self._feed = feed.Feed(self.device.device)
        if failed and reason.startswith(("capturing", "a replay")):
            warnings.warn(
                f"bertfast: training steps could not be captured in graphs and run eagerly, which is slower: {reason}",
                UserWarning,
                stacklevel=2,
            )

    def _clear(self, keep_gradients: bool = False) -> None:
        """Forget all graphs."""
        self._gradients = None
        if not keep_gradients:
            self._set_gradients()
        self._procedures.clear()
        if self.device.in_turn():
            self.device.collect()
