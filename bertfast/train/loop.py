"""The training loop: steps, evaluation, checkpoints, and what stops it. The order of one step:

draw this rank's micro-batches -> gradients (step.py) -> not finite? stop, nothing was updated -> clip, update
-> log -> evaluate -> checkpoint -> a signal? stop

On a GPU a step waits for nothing: whether steps were finite is read before a log line, an evaluation and a checkpoint, and every
`READ_EVERY` steps. From the first one that was not, the device has withheld the updates (`Step`), and its batches are still here.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bertfast import graphs
from bertfast.graphs import backend as backends
from bertfast.nn import BertEncoder, joined
from bertfast.train import bad_batch, captured, distributed, fp8, memory, optim, schedule, state
from bertfast.train.checkpoint import FORMAT, Checkpoint, Store, load
from bertfast.train.config import TrainConfig
from bertfast.train.errors import CheckpointError, StoppedError
from bertfast.train.files import Files, write_folder
from bertfast.train.log import RunLog
from bertfast.train.reduce import Reducer
from bertfast.train.run_folder import RunFolder
from bertfast.train.signals import Stop
from bertfast.train.step import Reading, Step
from bertfast.train.task import Task
from bertfast.train.window import Window, totals
from bertfast.triton import verified

# On a GPU: steps, and micro-batches of a rank, after which it is read whether all were finite. Until then their batches are kept.
READ_EVERY, KEPT = 32, 128
FLAGS_LAG = 2  # steps after which several ranks read each other's flags on a GPU


@dataclass
class Outcome:
    """How a run ended: `finished` is false where `stop_at` ended it before its last step."""

    step: int
    total_steps: int
    finished: bool
    evaluation: dict[str, float] = field(default_factory=dict)


def train(
    task: Task,
    config: TrainConfig,
    run: Path,
    *,
    record: Any = None,
    resume: bool = False,
    files: Files | None = None,
    read_every: int | None = None,
) -> Outcome:
    """Train `task.model` in place, from the beginning or from the newest complete checkpoint in `run`.

    record: the dataclass that goes to RUN/config.yaml and is compared when resuming; `config` where there is none.
    files: the steps on the disk, for tests.
    read_every: steps between readings of whether all were finite, at most; None for 1 on a CPU and `READ_EVERY` on a GPU. From 2
        on updates are withheld on the device, and flags of several ranks are read `FLAGS_LAG` steps late.

    Under torchrun every rank calls this. The resumed run equals the one that was never stopped bit for bit (weights,
    optimizer, logged losses) on the same kind of machine with the same number of ranks and threads; with another
    number of threads or ranks to rounding, the latter where dropout is off.
    Raises ConfigError, CheckpointError, NotFiniteError, DiskFullError, OutOfMemoryError, StoppedError.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with distributed.join(config.device) as ranks, Stop() as stop:
        # Before there is a folder, so that the corrected command finds none in its way.
        config.micro_batches(ranks.size)
        fp8.check(task.model, config, ranks)
        with (
            RunFolder(run, record or config, resume, ranks) as folder,
            kernels(config.gpu_kernels),
            fp8.running(config, ranks.device),
        ):
            trainer = Trainer(task, config, folder, resume, ranks, stop, files, read_every)
            trainer.notes += kernel_notes(ranks.device) + fp8.notes(config, ranks.device)
            return trainer.fit()


def kernels(wanted: bool) -> AbstractContextManager[None]:
    """Whether ops run their kernels on a GPU, where they are verified, or torch's own functions."""
    return nullcontext() if wanted else verified.torch_only()


def kernel_notes(device: torch.device) -> list[str]:
    """What a run says of ops that run torch's own functions on its GPU; nothing on a CPU, or where all kernels run."""
    if device.type != "cuda":
        return []
    major, minor = torch.cuda.get_device_capability(device)
    text = verified.explain(10 * major + minor)
    verified.notice(10 * major + minor)  # said by the run's log: no warning beside it
    return [] if text is None else [text]


class Trainer:
    """One run on one rank; `train` is the way in."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        folder: RunFolder,
        resume: bool,
        ranks: distributed.Ranks,
        stop: Stop,
        files: Files | None,
        read_every: int | None = None,
    ) -> None:
        self.task, self.config, self.ranks, self.stop = task, config, ranks, stop
        self.per_rank = config.micro_batches(ranks.size)
        self.folder = folder
        self.files = files or Files()
        self.store = Store(self.folder.checkpoints, config.keep, self.files)
        state.seed_all(config.seed, ranks.rank)
        if config.narrow_stream:
            for module in task.model.modules():
                if isinstance(module, BertEncoder):
                    module.narrow_stream = True
        if config.gradient_checkpointing:
            task.model.gradient_checkpointing_enable()  # type: ignore[operator]
        task.model.to(ranks.device)
        self.scales = fp8.Scales(task.model, config) if config.precision == "fp8" else None
        self.loader = task.loader(ranks.rank, ranks.size)
        self.total = config.total_steps(self.loader.batches_per_epoch())
        self.step = 0
        self.saved: int | None = None  # step of the last checkpoint
        self.rate = 0.0  # learning rate of the last update
        self.read_every = read_every or (1 if ranks.device.type == "cpu" else READ_EVERY)
        self._unread: dict[int, list[Any]] = {}  # batches of the steps since the last reading
        self._on_device: Step | None = None  # made with the first batch, whose loss terms it needs
        self._captured: captured.CapturedStep | None = None
        self._copies: joined.Held | None = None  # of the weights, while `fit` holds them
        self._path: str | None = None  # which steps take, as the log says it
        self.window: Window | None = None
        self.notes: list[str] = []
        resumed = self._find() if resume else None
        if resumed:
            state.restore_model(task.model, resumed.model)
        self._device = backends.of(ranks.device)  # what captures on it
        self._why_eager = captured.reason_against(task.model, config, ranks, self.read_every > 1)
        self.reducer: Reducer | None = None
        if ranks.size > 1 and self._device is not None and self._why_eager is None:
            self.reducer, self.wrapped = Reducer(task.model, ranks), task.model
        else:
            self.wrapped = distributed.wrap(task.model, ranks, config.parallel)
        self.called: Any = torch.compile(self.wrapped) if config.compile else self.wrapped
        self.optimizer = optim.build_optimizer(config, task.model)
        if resumed:
            self._restore(resumed)
        self._confirmed = self.scales is None  # that layers are computed in FP8
        self.log = RunLog(self.folder.path, config, task, ranks, self.step, self.total)

    def _find(self) -> Checkpoint | None:
        """The newest complete checkpoint; says what was passed over or cleaned away."""
        stale = self.store.clean() if self.ranks.main else []
        path, passed_over = self.store.latest()
        self.notes += [f"removed {name}, which a stopped run left half-written" for name in stale] + passed_over
        if path is None:
            if passed_over:
                raise CheckpointError(f"{self.folder.checkpoints}: no complete checkpoint; {'; '.join(passed_over)}")
            self.notes.append("there is no checkpoint yet: the run begins at step 0")
            return None
        self.notes.append(f"resumed from {path.name}")
        return load(path)

    def _restore(self, found: Checkpoint) -> None:
        if found.state["task"] != self.task.name:
            raise CheckpointError(f"the checkpoint is of task {found.state['task']}, this is {self.task.name}")
        state.restore_optimizer(self.task.model, self.optimizer, found.optimizer)
        if self.scales is not None:
            self.scales.restore(found.scales)
        self.loader.load_state_dict(found.state["loader"])
        self.step = self.saved = found.step
        self.total = found.state["total_steps"]
        self.window = Window(found.state["terms"], self.ranks.device)
        self.window.load_state_dict(found.state["window"])
        state.restore_rng(found.rng, self.ranks, self.config.seed, found.step)
        before, now = found.state.get("threads"), torch.get_num_threads()
        if self.ranks.device.type == "cpu" and before not in (None, now):
            self.notes.append(f"torch had {before} threads and now has {now}: results may differ in their last bits")

    def fit(self) -> Outcome:
        """Run to the last step, `stop_at`, or whatever comes first."""
        end = min(self.total, self.config.stop_at or self.total)
        evaluation: dict[str, float] = {}
        self.task.model.train()
        # An error keeps its traceback alive, and with it this iterator: its workers end now, not when the process wants to.
        with self.log, joined.held(self.task.model) as self._copies, closing(iter(self.loader)) as batches:
            for note in self.notes:
                self.log.note(note)
            due = self._clock()
            while self.step < end:
                drawn = [next(batches) for _ in range(self.per_rank)]
                stopping, timely = self._one_step(drawn, lambda: [self.stop.received is not None, next(due)])
                last = self.step == end
                logging = self._every(self.config.log_every) or self.step == self.total
                evaluating = self._every(self.config.eval_every) or self.step == self.total
                saving = self._every(self.config.save_every) or timely or stopping or last
                if logging or evaluating or saving or self._is_full():
                    reading = self._read()
                if logging:
                    self._log(reading.norm)
                if evaluating:
                    evaluation = self._evaluate()
                if saving:
                    self._save()
                if stopping and not last:
                    number = self.stop.received or 15
                    raise StoppedError(
                        f"stopped by signal {number} after step {self.step} of {self.total}; its checkpoint is "
                        f"saved. Go on with --resume",
                        number,
                    )
            if self.step == self.total:
                self._export()
        return Outcome(self.step, self.total, self.step == self.total, evaluation)

    def _every(self, steps: int | None) -> bool:
        return steps is not None and self.step % steps == 0

    def _clock(self) -> Iterator[bool]:
        """Whether `save_minutes` have gone by on the main rank, whose clock counts for all."""
        last = time.monotonic()
        while True:
            minutes = self.config.save_minutes
            due = self.ranks.main and minutes is not None and time.monotonic() - last >= 60 * minutes
            last = time.monotonic() if due else last
            yield due

    def _one_step(self, batches: list[Any], flags: Callable[[], list[bool]]) -> list[bool]:
        """Gradients and the update. Where every step is read, raises before the update if something is not finite."""
        if self._on_device is None:
            self._on_device = self._make_step(batches[0])
        self.rate = self.learning_rate()
        self._unread[self.step + 1] = batches
        # Layers are not captured by themselves: either the whole step is, or the log says why it is not.
        with graphs.suspended(), memory.guard(self.task.model, self.config, self.ranks, self.step + 1, batches):
            if self._captured is not None:
                known = self._captured.run(batches, self.rate, flags)
            else:
                known = self._on_device.run(batches, self.rate, flags, self._read if self.read_every == 1 else None)
        if not self._confirmed and self.scales is not None:
            self.scales.confirm()
            self._confirmed = True
        assert self.window is not None
        self.window.steps += 1
        self.step += 1
        self.log.advance(self.step)
        if self._captured is not None and self._captured.path() != self._path:
            self._path = self._captured.path()
            if self._path is not None:
                self.log.note(self._path)
        return known

    def _make_step(self, batch: Any) -> Step:
        """What steps compute with, for the loss terms of this batch."""
        if self.window is None:
            self.window = Window(sorted(batch.counts), self.ranks.device)
        late = self.read_every > 1
        step = Step(
            self.task,
            self.called,
            self.optimizer,
            self.config,
            self.ranks,
            self.window,
            self.per_rank,
            number=self.step,
            withholds=late,
            lag=FLAGS_LAG if late else 0,
            reducer=self.reducer,
            copies=self._copies,
        )
        if self._device is not None:  # where nothing could be captured, nothing is said of it
            if self._why_eager is None:
                self._captured = captured.CapturedStep(step, self._device)
            else:
                self.log.note(f"steps run eagerly: {self._why_eager}")
        return step

    def _is_full(self) -> bool:
        """Whether as many steps or batches are unread as may be."""
        return len(self._unread) >= self.read_every or len(self._unread) * self.per_rank >= KEPT

    def _read(self) -> Reading:
        """Wait for the device. NotFiniteError where a step's loss or gradient norm was not finite; its batches are saved."""
        assert self._on_device is not None
        assert self.window is not None
        reading = self._on_device.read()
        if reading.bad:
            figures = totals(self.window.terms, self.window.judged, reading.sums)
            batches = self._unread[reading.bad]
            bad_batch.stop(self.folder.path, reading.bad, batches, figures, reading.norm, self.saved, self.ranks)
        self._unread.clear()
        return reading

    def learning_rate(self) -> float:
        """Of the next update."""
        warmup = self.config.warmup(self.total)
        return self.config.learning_rate * schedule.factor(self.config.schedule, self.step, self.total, warmup)

    def _log(self, norm: float) -> None:
        assert self.window is not None
        peak = memory.peak_gib(self.ranks.device)
        self.log.train(self.step, self.window.totals(), norm, self.rate, self.loader.epoch, peak)
        self.window.clear()

    def _evaluate(self) -> dict[str, float]:
        """Evaluation draws no random numbers that training would have drawn, so how often it runs changes nothing."""
        before = state.take_rng(self.ranks.device)
        self.task.model.eval()
        self.task.step = self.step
        with (
            self._paused(),
            torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.autocasts),
        ):
            found = self.task.evaluate(self.wrapped if self.config.parallel == "fsdp" else self.task.model)
        self.task.model.train()
        state.put_rng(before, self.ranks.device)
        if found:
            self.log.evaluation(self.step, found)
        return found

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Time in which no training happens is left out of tokens/s."""
        begun = time.perf_counter()
        yield
        self.log.paused(time.perf_counter() - begun)

    def _save(self) -> None:
        if self.saved == self.step:
            return
        with self._paused():
            assert self.window is not None
            checkpoint = Checkpoint(
                step=self.step,
                model=state.model_tensors(self.task.model),
                optimizer=state.optimizer_tensors(self.task.model, self.optimizer),
                rng=state.rng_tensors(self.ranks),
                scales={} if self.scales is None else self.scales.tensors(),
                state={
                    "task": self.task.name,
                    "total_steps": self.total,
                    "ranks": self.ranks.size,
                    "threads": torch.get_num_threads(),
                    "loader": self.loader.state_dict(),
                    "terms": self.window.terms,
                    "window": self.window.state_dict(),
                },
            )
            self._on_main(lambda: self.store.save(checkpoint, self.task.save))
            self.saved = self.step

    def _export(self) -> None:
        """RUN/model/: the weights alone, whole or absent."""
        tensors = state.model_tensors(self.task.model)

        def fill(folder: Path) -> None:
            self.files.write_tensors(folder / "model.safetensors", tensors)
            self.task.save(folder)

        facts = {**FORMAT, "format": "bertfast-model", "step": self.step}
        self._on_main(lambda: write_folder(self.folder.model, fill, facts, self.files))

    def _on_main(self, write: Any) -> None:
        """Run `write` on the main rank; where it fails there, every rank raises."""
        error: Exception | None = None
        if self.ranks.main:
            try:
                write()
            except Exception as found:
                error = found
        failed = self.ranks.agree(error is not None)
        if error is not None:
            raise error
        if failed:
            raise CheckpointError("rank 0 could not write; its message says why")
