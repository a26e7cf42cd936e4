"""The stage training: the trainer of `bertfast pretrain` beside a stock loop, loss curves first, then real tokens a second.

The trainer runs as it is, log and all; before each of its steps the stock side takes one of its own, so that both meet the same
drift of the machine. It is left before its first checkpoint. Text is synthetic, so that nothing but torch and transformers is
needed; ids are random, lengths as English Wikipedia's.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import measure as clocks
from benchmarks.gpu import results
from benchmarks.loader import synthetic, synthetic_vocabulary
from benchmarks.pretraining import measure
from bertfast.bench.protocol import Spread
from bertfast.data.batches import Batch
from bertfast.data.loader import PretrainLoader
from bertfast.train import journal
from bertfast.train.config import TrainConfig
from bertfast.train.loop import train
from bertfast.train.pretrain import PretrainTask, batch_options, build_model
from bertfast.train.pretrain_config import DataOptions, ModelOptions, PretrainConfig

STAGE_SECONDS = 480
DOCUMENTS = 4000
WARM_STEPS = 4  # the first of them is eager, the second captures
EAGER_TURNS = 5  # of the trainer without graphs
WORKERS = 1  # processes that make batches, for each side; the trainer's default
PRECISIONS = {measure.FLOAT32: "fp32", measure.BFLOAT16: "bf16"}
ROWS = (
    measure.Row("12x768", 128, 32768),
    measure.Row("12x768", 512, 32768),
    measure.Row("24x1024", 128, 16384),
    measure.Row("24x1024", 512, 16384),
)


class Enough(Exception):
    """Ends a run of the trainer after the steps that are measured."""


class Alternating:
    """A task's loader that hands out so many batches, calling `before` with each, and keeps the seconds of the steps.

    A step's time is from the trainer's wish for its batch to its wish for the next one, without what `before` took.
    """

    def __init__(self, loader: PretrainLoader, steps: int, before: Callable[[Batch], None], wait: Callable[[], None]):
        self.loader, self.steps, self.before, self.wait = loader, steps, before, wait
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    def __iter__(self) -> Generator[Batch, None, None]:
        with closing(iter(self.loader)) as batches:
            for _ in range(self.steps):
                begin = time.perf_counter()
                batch = next(batches)
                drawn = time.perf_counter() - begin
                self.before(batch)
                self.wait()
                begin = time.perf_counter()
                yield batch
                self.wait()
                self.seconds.append(drawn + time.perf_counter() - begin)
                self.tokens.append(batch.real_tokens)
        raise Enough

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


class InMemory(PretrainTask):
    """What `bertfast pretrain` trains, on a corpus in memory instead of a folder's."""

    def __init__(self, config: PretrainConfig) -> None:
        self.name, self.config = "pretrain", config
        self.options = batch_options(config.data, config.train.seed)
        self.corpus, self.held_out = synthetic(DOCUMENTS), None
        self.tokenizer: Any = synthetic_vocabulary()
        self.model = build_model(config.model, config.data.nsp, self.tokenizer, config.train.seed).train()
        self.sizes = self.model.config
        self.alternating: Alternating | None = None

    def stock(self, device: torch.device) -> measure.Side:
        """Stock transformers (sdpa) with these weights."""
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            model = transformers.BertForPreTraining.from_pretrained(folder, attn_implementation="sdpa")
        dtype = next(name for name, precision in PRECISIONS.items() if precision == self.config.train.precision)
        return measure.Side(model, dtype, self.config.train.learning_rate, device)

    def padded(self, device: torch.device) -> PretrainLoader:
        """The same corpus for a stock loop: batches padded to their longest, made and pinned as the trainer's are."""
        options, workers = (
            dataclasses.replace(self.options, layout="padded", static_shapes=False),
            self.config.data.workers,
        )
        pinned = device.type == "cuda"
        return PretrainLoader(self.corpus, self.tokenizer, options, workers=workers, pin_memory=pinned)

    def alternate(self, steps: int, before: Callable[[Batch], None], device: torch.device) -> Alternating:
        """Run the trainer for so many steps, `before` ahead of each."""

        def wait() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()

        self.before, self.steps, self.wait = before, steps, wait
        with suppress(Enough):
            train(self, self.config.train, Path(self.config.out), record=self.config)
        assert self.alternating is not None
        return self.alternating

    def loader(self, rank: int, ranks: int) -> Any:
        self.alternating = Alternating(super().loader(rank, ranks), self.steps, self.before, self.wait)
        return self.alternating


def _task(row: measure.Row, dtype: str, dropout: float, device: torch.device, folder: str, **options: Any) -> InMemory:
    hidden, layers, heads = measure.SIZES[row.size]
    positions = max(128, row.length)
    return InMemory(
        PretrainConfig(
            corpus="in memory",
            out=f"{folder}/run",
            model=ModelOptions(hidden=hidden, layers=layers, heads=heads, positions=positions, dropout=dropout),
            data=DataOptions(token_budget=row.tokens, max_seq_length=row.length, workers=WORKERS),
            train=TrainConfig(seed=measure.SEED, precision=PRECISIONS[dtype], device=device.type, **options),
        )
    )


def curve(dtype: str, device: torch.device, steps: int, size: str, tokens: int = 2048) -> results.Line:
    """Both sides over the same batches without dropout: loss curves, the trainer's from its own log."""
    row = measure.Row(size, 128, tokens)
    with tempfile.TemporaryDirectory() as folder:
        options = {"schedule": "constant", "warmup_steps": 0, "log_every": 1}
        task = _task(row, dtype, 0.0, device, folder, steps=steps + 1, **options)
        stock, losses = task.stock(device), []
        task.alternate(steps, lambda batch: losses.append(stock.step(measure.stock_inputs(batch))), device)
        log = journal.read(Path(folder) / "run" / "log.jsonl")
    ours = [line["loss"] for line in log if line["event"] == "train"]
    judged = measure.apart(stock.model, task.model, losses, ours, measure.BANDS[dtype])
    return {"size": size, "dtype": dtype, "steps": steps, **judged, "ok": judged["passed"]}


class _Speeds(NamedTuple):
    """Real tokens a second of each step, padding of stock's batches, how many graphs were replayed, and what the trainer said."""

    stock: list[float]
    ours: list[float]
    padding: float
    replays: int
    notes: list[str]


def _alternated(row: measure.Row, device: torch.device, steps: int) -> _Speeds:
    rates, sizes = [], []
    with tempfile.TemporaryDirectory() as folder:
        task = _task(row, measure.BFLOAT16, 0.1, device, folder, steps=10 * steps)
        stock = task.stock(device)
        with closing(iter(task.padded(device))) as batches:

            def before(_: Batch) -> None:
                begin = time.perf_counter()
                batch = next(batches)
                stock.step(measure.stock_inputs(batch))
                rates.append(batch.real_tokens / (time.perf_counter() - begin))
                sizes.append((batch.input_ids.numel(), batch.real_tokens))

            with clocks.Replays() as replays:
                timed = task.alternate(steps, before, device)
        notes = [line["text"] for line in journal.read(Path(folder) / "run" / "log.jsonl") if line["event"] == "note"]
    ours = [tokens / seconds for tokens, seconds in zip(timed.tokens, timed.seconds, strict=True)]
    positions, real = (sum(column) for column in zip(*sizes, strict=True))
    return _Speeds(rates[WARM_STEPS:], ours[WARM_STEPS:], 1 - real / positions, replays.count, notes)


def speed(row: measure.Row, device: torch.device, turns: int) -> results.Line:
    """Whole updates, batches made by as many processes for each side, a step of each in turn; tokens/s are of real tokens."""
    steps = turns + WARM_STEPS
    speeds = _alternated(row, device, steps)
    spreads = {"stock": speeds.stock, "ours": speeds.ours, "ours, eagerly": eager_rates(row, device)}
    return {
        **dataclasses.asdict(row),
        "dtype": measure.BFLOAT16,
        "trainer": "bertfast.train",
        "path": "captured" if 2 * speeds.replays > steps else "eager",
        "said": [note for note in speeds.notes if note.startswith("steps ")],
        "train": True,
        "turns": turns,
        "padding": speeds.padding,
        "tokens_per_second": {name: Spread.of(rate).p50 for name, rate in spreads.items()},
        "ratio": dataclasses.asdict(Spread.of([a / b for a, b in zip(speeds.ours, speeds.stock, strict=True)])),
        "ok": True,
    }


def eager_rates(row: measure.Row, device: torch.device) -> list[float]:
    """Real tokens a second of the trainer that launches kernel by kernel, alone and in a few steps."""
    steps = EAGER_TURNS + WARM_STEPS
    with tempfile.TemporaryDirectory() as folder:
        task = _task(row, measure.BFLOAT16, 0.1, device, folder, steps=10 * steps, cuda_graphs=False)
        timed = task.alternate(steps, lambda _: None, device)
    return [tokens / seconds for tokens, seconds in zip(timed.tokens, timed.seconds, strict=True)][WARM_STEPS:]


def cases(device: torch.device, steps: int = 100, turns: int = 15, size: str = "4x256") -> dict[str, Callable[[], Any]]:
    """Name to what runs it."""
    curves: dict[str, Callable[[], Any]] = {
        f"loss curve {size} {dtype}": lambda dtype=dtype: curve(dtype, device, steps, size) for dtype in measure.DTYPES
    }
    return curves | {
        f"pre-training {row.size} {row.length}, {row.tokens} tokens": lambda row=row: speed(row, device, turns)
        for row in ROWS
    }


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    device, deadline = torch.device("cuda"), clocks.Deadline(STAGE_SECONDS)
    for name, case in cases(device).items():
        if only not in name or name in done:
            continue
        if deadline.passed:
            yield results.line("training", name, ok=None, error=deadline.text)
            continue
        try:
            yield results.line("training", name, clocks=results.clocks(), **case())
        except Exception as problem:
            yield results.line("training", name, ok=False, error=clocks.explain(problem))
        finally:
            torch.cuda.empty_cache()
