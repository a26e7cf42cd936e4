"""Whole calls of our own models, each as one CUDA graph: a training step with its optimizer, and inference, beside their targets.

A row is one model on one batch. Its sides run in turn in one process: bfloat16 by the owners of all ops, bfloat16 with the
candidates, and FP8 with the candidates. Weights are bfloat16; a training step is that of `bertfast pretrain` (MLM + NSP, dropout
0.1, clipping, AdamW), from the batch on the device to the new weights. All tokens of a batch are real.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu import measure, results
from bertfast import _library
from bertfast.bench.protocol import Spread
from bertfast.data.batches import Batch
from bertfast.graphs import backend
from bertfast.models import BertConfig, BertForPreTraining, BertModel
from bertfast.nn import joined
from bertfast.nn.fp8_state import Recipe
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.optim import build_optimizer
from bertfast.train.step import Step
from bertfast.train.task import Term
from bertfast.train.window import Window
from bertfast.triton import verified

SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}  # hidden size, layers, heads
VOCABULARY = 30522
MASKED = 0.15
WARM_CALLS = 4
FP8_PRODUCT = "fp8_linear"
TERMS = ("mlm", "nsp")
OWNERS, CANDIDATES, FP8 = "bf16 by owners", "bf16 by candidates", "fp8"


@dataclass(frozen=True)
class Target:
    """Real tokens or sequences a second on an H200: what was measured before, the goal, and what would be more than that."""

    before: float | None
    goal: float
    moonshot: float | None


@dataclass(frozen=True)
class Row:
    """One model on one batch.

    Attributes:
        model: of SIZES.
        lengths: of the batch's sequences; `longest` bounds them.
        targets: by precision, "bf16" and "fp8", in tokens a second of training and sequences a second of inference.
    """

    name: str
    model: str
    train: bool
    lengths: tuple[int, ...]
    longest: int
    targets: dict[str, Target]

    @property
    def unit(self) -> str:
        return "tokens/s" if self.train else "sequences/s"

    @property
    def count(self) -> int:
        """Of what the rate counts, in one call."""
        return sum(self.lengths) if self.train else len(self.lengths)


def ragged(tokens: int, longest: int, mean: int) -> tuple[int, ...]:
    """Lengths that add up to `tokens`: a fifth are `longest`, the others spread evenly. The same every time."""
    generator = torch.Generator().manual_seed(1)

    def drawn() -> float:
        return float(torch.rand(1, generator=generator))

    lengths, left = [], tokens
    while left > 8:
        length = longest if drawn() < 0.2 else int(8 + drawn() * (2 * mean - 8 - 0.2 * longest))
        lengths.append(max(8, min(length, longest, left)))
        left -= lengths[-1]
    return tuple(lengths)


ROWS = (
    Row(
        "BERT-large training step, packed <= 512, 16,384 tokens",
        "large",
        True,
        ragged(16384, 512, 254),
        512,
        {"bf16": Target(223e3, 245e3, 300e3), "fp8": Target(None, 320e3, 400e3)},
    ),
    Row(
        "BERT-base training step, S = 128, 16,384 tokens",
        "base",
        True,
        (128,) * 128,
        128,
        {"bf16": Target(713e3, 860e3, 1.0e6), "fp8": Target(None, 1.1e6, 1.4e6)},
    ),
    Row(
        "BERT-base inference, 128 x 128",
        "base",
        False,
        (128,) * 128,
        128,
        {"bf16": Target(20.3e3, 23e3, 26e3), "fp8": Target(None, 33e3, 40e3)},
    ),
    Row(
        "BERT-large inference, SQuAD lengths <= 384, 16,384 tokens",
        "large",
        False,
        ragged(16384, 384, 160),
        384,
        {"bf16": Target(3.6e3, 4.1e3, None), "fp8": Target(None, 6.2e3, 8.2e3)},
    ),
    Row(
        "BERT-base training step, S = 128, 65,536 tokens",
        "base",
        True,
        (128,) * 512,
        128,
        {"bf16": Target(784e3, 860e3, 1.0e6), "fp8": Target(None, 1.1e6, 1.4e6)},
    ),
)


def batch_of(row: Row) -> Batch:
    """The row's batch with random ids, on the CPU."""
    generator = torch.Generator().manual_seed(2)
    tokens = sum(row.lengths)

    def integers(low: int, high: int, count: int) -> torch.Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    ids, masked = integers(1000, VOCABULARY, tokens), max(1, int(MASKED * tokens) // 64 * 64)
    places = torch.randperm(tokens, generator=generator)[:masked].sort().values
    labels = torch.full((tokens,), -100)
    labels[places] = ids[places]
    to_predict = {"labels": labels, "masked_positions": places, "next_sentence_label": integers(0, 2, len(row.lengths))}
    return Batch(
        input_ids=ids,
        token_type_ids=integers(0, 2, tokens),
        position_ids=torch.cat([torch.arange(length) for length in row.lengths]),
        labels=to_predict if row.train else {},
        counts={"mlm": masked, "nsp": len(row.lengths)},
        real_tokens=tokens,
        sequences=len(row.lengths),
        max_seqlen=row.longest,
        cu_seqlens=torch.tensor([0, *row.lengths]).cumsum(0).to(torch.int32),
    )


def config_of(row: Row) -> BertConfig:
    hidden, layers, heads = SIZES[row.model]
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=512,
    )


class _Task:
    """What a training step computes."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def terms(self, model: torch.nn.Module, batch: Batch) -> dict[str, Term]:
        out = model(**batch.inputs())
        return {"mlm": Term(out.mlm_loss, out.mlm_correct), "nsp": Term(out.nsp_loss, out.nsp_correct)}


def replaying(once: backend.Function, pool: str, device: torch.device) -> Callable[[], Any]:
    """What replays a call from one graph, made after a few eager calls; the call itself where the device captures nothing.

    Inside the turn of a capture nothing captures on its own account.

    Raises:
        RuntimeError: while another thread captures.
    """
    capturing = backend.of(device)
    if capturing is None:
        return once
    if not capturing.begin_capture():
        raise RuntimeError("another thread captures on this device")
    try:
        for _ in range(WARM_CALLS):
            once()
        graph = capturing.capture(once, pool)
    finally:
        capturing.end()

    def replay() -> None:
        if not capturing.begin():
            raise RuntimeError("another thread captures on this device")
        try:
            graph.replay(once)
        finally:
            capturing.end()

    return replay


def training_step(row: Row, batch: Batch, fp8: bool, device: torch.device, held: ExitStack) -> Callable[[], Any]:
    """A function that replays the row's whole training step. held: closes when no step is asked for any more."""
    with device:
        model = BertForPreTraining(config_of(row)).bfloat16().train()
    if fp8:
        model.bert.encoder.fp8 = Recipe()
    copies = held.enter_context(joined.held(model))  # as the trainer does
    config = TrainConfig(steps=1, learning_rate=1e-4)
    task: Any = _Task(model)
    optimizer, window = build_optimizer(config, model), Window(list(TERMS), device)
    step = Step(task, model, optimizer, config, Ranks(0, 1, device), window, 1, copies=copies)
    on_device = batch.to(device)
    step.prepare([batch], config.learning_rate)

    def once() -> tuple[torch.Tensor, ...]:
        step.first(on_device)
        step.update()
        optimizer.zero_grad(set_to_none=True)
        return (step.shared,)

    return replaying(once, backend.TRAINING, device)


def inference(row: Row, batch: Batch, fp8: bool, device: torch.device, held: ExitStack) -> Callable[[], Any]:
    """A function that replays the row's inference, from ids on the device to hidden states."""
    with device:
        model = BertModel(config_of(row), add_pooling_layer=False).bfloat16().eval()
    model.encoder.infer_fp8 = fp8
    inputs = batch.to(device).inputs()

    @torch.no_grad()
    def once() -> tuple[torch.Tensor, ...]:
        return (model(**inputs).last_hidden_state,)

    return replaying(once, backend.INFERENCE, device)


Sides = dict[str, tuple[Callable[[], AbstractContextManager[None]], bool]]


def sides(order: tuple[str, ...]) -> Sides:
    """Name to (who runs the ops, whether in FP8). order: of candidates, of several for an op the first runs."""
    return {
        OWNERS: (lambda: verified.prefer(candidates=False), False),
        CANDIDATES: (lambda: verified.prefer(candidates=order), False),
        FP8: (lambda: verified.prefer(candidates=order), True),
    }


@contextmanager
def asked() -> Iterator[set[str]]:
    """The ops whose functions are asked for meanwhile: what a call ran, whatever it was asked to do."""
    ops: set[str] = set()
    resolved = _library.resolved

    def noting(name: str, key: str) -> Callable[..., Any]:
        ops.add(name)
        return resolved(name, key)

    with mock.patch.object(_library, "resolved", noting):
        yield ops


def build(
    row: Row, order: tuple[str, ...], device: torch.device, held: ExitStack
) -> dict[str, Callable[[], Any] | str]:
    """What runs each side, or why it does not."""
    batch = batch_of(row)
    made: dict[str, Callable[[], Any] | str] = {}
    for name, (chosen, fp8) in sides(order).items():
        try:
            with chosen(), asked() as ops:  # a replay asks nobody who runs the ops
                thunk = (training_step if row.train else inference)(row, batch, fp8, device, held)
            made[name] = "its products did not run in FP8" if fp8 and FP8_PRODUCT not in ops else thunk
        except Exception as problem:  # the other sides still have something to say
            made[name] = measure.explain(problem)
    return made


def rates(row: Row, spreads: dict[str, Spread | str]) -> dict[str, results.Line]:
    """Seconds and the rate of each side; of one that failed why."""
    return {
        name: {"error": spread}
        if isinstance(spread, str)
        else {"p20": spread.p20, "p50": spread.p50, "p80": spread.p80, "rate": row.count / spread.p50}
        for name, spread in spreads.items()
    }


def best(measured: dict[str, results.Line], precision: str) -> float | None:
    """The best rate of a precision, "bf16" or "fp8"; None where nothing of it was measured."""
    reached = [side["rate"] for name, side in measured.items() if name.startswith(precision) and "rate" in side]
    return max(reached, default=None)


def missed(row: Row, measured: dict[str, results.Line]) -> list[str]:
    """The goals of a row that were not reached, in words."""
    words = []
    for precision, target in row.targets.items():
        rate = best(measured, precision)
        if rate is None:
            words.append(f"{row.name}, {precision}: not measured, goal {target.goal:,.0f} {row.unit}")
        elif rate < target.goal:
            words.append(f"{row.name}, {precision}: {rate:,.0f} of {target.goal:,.0f} {row.unit}")
    return words


def run_row(
    stage: str, row: Row, order: tuple[str, ...], device: torch.device, clock: measure.Clock, budget: float = 3.0
) -> results.Line:
    """One line with every side of a row; ok where both sides in bfloat16 ran."""
    with ExitStack() as held:
        made = build(row, order, device, held)
        thunks = {name: thunk for name, thunk in made.items() if not isinstance(thunk, str)}
        spreads: dict[str, Spread | str] = {name: why for name, why in made.items() if isinstance(why, str)}
        spreads |= measure.take_turns(thunks, clock, budget, fewest=5, most=30)
    measured = rates(row, {name: spreads[name] for name in made})
    ok = all("rate" in measured[name] for name in (OWNERS, CANDIDATES))
    about = {"unit": row.unit, "tokens": sum(row.lengths), "sequences": len(row.lengths), "train": row.train}
    error = "; ".join(f"{name}: {side['error']}" for name, side in measured.items() if "error" in side)
    return results.line(stage, row.name, ok=ok, **about, sides=measured, error=error, clocks=results.clocks())


def told(row: Row, line: results.Line) -> Iterator[str]:
    """A line's sides in words."""
    for name, side in line["sides"].items():
        if "rate" in side:
            yield f"{row.name}, {name}: {1e3 * side['p50']:.2f} ms, {side['rate']:,.0f} {row.unit}"
        else:
            yield f"{row.name}, {name}: {side['error'][:200]}"
