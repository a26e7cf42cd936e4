"""`python -m benchmarks.pretraining`: our pre-training step beside stock transformers', on one corpus and from one seed.

`speed`: both loops take turns, a step each, on batches of as many tokens: stock pads to the longest of a batch, ours packs.
`convergence`: both start from the same weights and see the same batches, dropout off (its bits differ); loss curves and weights
must stay within the bands that Liger-Kernel's convergence tests use.
"""

import contextlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bertfast.bench.protocol import Spread
from bertfast.bench.run import environment
from bertfast.data.batches import Batch
from bertfast.data.corpus import Corpus, CorpusError
from bertfast.data.loader import PretrainLoader
from bertfast.data.pairs import PairOptions
from bertfast.data.plan import PretrainDataOptions
from bertfast.data.tokenizer import Tokenizer, load_tokenizer
from bertfast.models import BertConfig, BertForPreTraining
from bertfast.train.config import TrainConfig
from bertfast.train.optim import build_optimizer

RESULTS = Path(__file__).parent / "results"
SEED = 1234
FLOAT32, BFLOAT16 = "float32", "bfloat16"
DTYPES = (FLOAT32, BFLOAT16)
# layers x hidden: hidden, layers, heads
SIZES = {"4x256": (256, 4, 4), "6x384": (384, 6, 12), "12x768": (768, 12, 12)}
LEAST = 2.5  # times stock's real tokens a second that are asked for


@dataclass(frozen=True)
class Row:
    """A measurement of speed: model size, longest sequence, tokens of a batch (stock's with padding, ours without)."""

    size: str
    length: int
    tokens: int


ROWS = (Row("4x256", 128, 4096), Row("4x256", 512, 4096), Row("6x384", 128, 2048), Row("12x768", 128, 1024))


@dataclass(frozen=True)
class Band:
    """How far curves may part: |ours - stock| <= atol + rtol |stock| for losses, and the same with `weights` for parameters."""

    steps: int
    rtol: float
    atol: float
    weights: float


# Liger-Kernel's (test/convergence): float32 over its 32 steps, bfloat16 over all.
BANDS = {FLOAT32: Band(32, 2e-5, 1e-8, 5e-3), BFLOAT16: Band(100, 5e-2, 1e-2, 5e-2)}


class Side:
    """A model with its optimizer."""

    def __init__(self, model: nn.Module, dtype: str, rate: float):
        self.model, self.dtype = model.train(), dtype
        self.optimizer = build_optimizer(TrainConfig(steps=1, learning_rate=rate), model)

    def step(self, inputs: dict[str, Any]) -> float:
        """One update; returns the loss before it."""
        scope = torch.autocast("cpu", torch.bfloat16) if self.dtype == BFLOAT16 else contextlib.nullcontext()
        with scope:
            loss = self.model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def sides(size: str, vocabulary: int, length: int, dtype: str, dropout: float, rate: float) -> tuple[Side, Side]:
    """Stock (sdpa) and ours, of the same weights."""
    import transformers

    hidden, layers, heads = SIZES[size]
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(128, length),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    ours = BertForPreTraining(config)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        stock = transformers.BertForPreTraining.from_pretrained(folder, attn_implementation="sdpa")
    return Side(stock, dtype, rate), Side(ours, dtype, rate)


def stock_inputs(batch: Batch) -> dict[str, Tensor]:
    """A batch as stock takes it, [B, S]; a packed one is taken apart and padded to its longest sequence."""
    if batch.cu_seqlens is None:
        return {k: v for k, v in batch.inputs().items() if k not in ("masked_positions", "position_ids")}
    lengths = batch.cu_seqlens.diff()
    lengths = lengths[lengths > 0].tolist()

    def padded(tokens: Tensor, value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(tokens[: sum(lengths)].split(lengths)), True, value)

    return {
        "input_ids": padded(batch.input_ids, 0),
        "token_type_ids": padded(batch.token_type_ids, 0),
        "attention_mask": padded(torch.ones_like(batch.input_ids), 0),
        "labels": padded(batch.labels["labels"], -100),
        "next_sentence_label": batch.labels["next_sentence_label"][: len(lengths)],
    }


def _loader(corpus: Corpus, tokenizer: Tokenizer, row: Row, layout: Any) -> PretrainLoader:
    pairs = PairOptions(max_seq_length=row.length)
    # On a CPU tail padding would only cost time, and a stock loop pads to the longest.
    options = PretrainDataOptions(
        seed=SEED, token_budget=row.tokens, pairs=pairs, layout=layout, static_shapes=False
    )  # fmt: skip
    return PretrainLoader(corpus, tokenizer, options)


def speed(corpus: Corpus, tokenizer: Tokenizer, row: Row, dtype: str, turns: int) -> dict[str, Any]:
    """Whole updates, batches made in between included, a step of each side in turn; tokens/s are of real tokens."""
    both = sides(row.size, tokenizer.vocab_size, row.length, dtype, dropout=0.1, rate=1e-4)
    batches = [iter(_loader(corpus, tokenizer, row, layout)) for layout in ("padded", "packed")]
    rates: list[list[float]] = [[], []]
    positions, real = 0, 0
    for turn in range(turns + 2):
        for side, source, found in zip(both, batches, rates, strict=True):
            begin = time.perf_counter()
            batch = next(source)
            side.step(stock_inputs(batch) if side is both[0] else batch.inputs())
            if turn >= 2:
                found.append(batch.real_tokens / (time.perf_counter() - begin))
            if side is both[0]:
                positions, real = positions + batch.input_ids.numel(), real + batch.real_tokens
    ratio = Spread.of([ours / stock for stock, ours in zip(*rates, strict=True)])
    return {
        **asdict(row),
        "dtype": dtype,
        "turns": turns,
        "padding": 1 - real / positions,
        "tokens_per_second": {name: Spread.of(found).p50 for name, found in zip(("stock", "ours"), rates, strict=True)},
        "ratio": asdict(ratio),
    }


def convergence(
    corpus: Corpus,
    tokenizer: Tokenizer,
    dtype: str,
    steps: int,
    size: str = "4x256",
    tokens: int = 2048,
    rate: float = 1e-4,
) -> dict[str, Any]:
    """Both sides over the same batches without dropout: loss curves, and how far losses and weights have come apart."""
    row, band = Row(size, 128, tokens), BANDS[dtype]
    stock, ours = sides(size, tokenizer.vocab_size, row.length, dtype, dropout=0.0, rate=rate)
    curves: list[list[float]] = [[], []]
    for _, batch in zip(range(steps), _loader(corpus, tokenizer, row, "packed"), strict=False):
        curves[0].append(stock.step(stock_inputs(batch)))
        curves[1].append(ours.step(batch.inputs()))
    far = [abs(a - b) / (band.atol + band.rtol * abs(a)) for a, b in zip(*curves, strict=True)]
    theirs = dict(stock.model.named_parameters())
    weights = max(
        float(((p.detach() - theirs[name].detach()).abs() / (band.weights * (1 + theirs[name].detach().abs()))).max())
        for name, p in ours.model.named_parameters()
    )
    judged = far[: band.steps]
    return {
        "size": size,
        "dtype": dtype,
        "steps": steps,
        "band": asdict(band),
        "stock": curves[0],
        "ours": curves[1],
        "loss_of_band": max(judged),
        "loss_of_band_all_steps": max(far),
        "weights_of_band": weights,
        "passed": max(judged) <= 1 and weights <= 1,
    }


def _speed_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="pre-training step, real tokens a second: bertfast over stock transformers (sdpa)")
    for name in ("model", "length", "batch tokens", "dtype", "stock's padding", "ratio", "p20-p80", f">= {LEAST}"):
        table.add_column(name, justify="left" if name in ("model", "dtype") else "right")
    for r in rows:
        q = r["ratio"]
        met = "[green]yes[/]" if q["p50"] >= LEAST else "[red]no[/]"
        numbers = (f"{r['padding']:.0%}", f"{q['p50']:.2f}x", f"{q['p20']:.2f}-{q['p80']:.2f}", met)
        table.add_row(r["size"], str(r["length"]), str(r["tokens"]), r["dtype"], *numbers)
    return table


def _convergence_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="the same seed and batches through stock and ours",
        caption="shares of the band: 1 is its edge. Judged are the band's own steps and the weights after all",
    )
    for name in (
        "model",
        "dtype",
        "steps",
        "loss at first",
        "at last",
        "loss / band",
        "over all",
        "weights / band",
        "",
    ):
        table.add_column(name, justify="right")
    for r in rows:
        shares = (f"{r[k]:.2f}" for k in ("loss_of_band", "loss_of_band_all_steps", "weights_of_band"))
        verdict = "[green]ok[/]" if r["passed"] else "[red]FAILED[/]"
        losses = (f"{r['ours'][0]:.3f}", f"{r['ours'][-1]:.3f}")
        table.add_row(r["size"], r["dtype"], str(r["steps"]), *losses, *shares, verdict)
    return table


def plot(found: dict[str, Any], path: Path) -> None:
    """Ratios as bars, and both loss curves over one another with their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, curves = found["speed"], found["convergence"]
    figure, axes = plt.subplots(1, 1 + len(curves), figsize=(5.2 * (1 + len(curves)), 4.4), layout="constrained")
    bars, *others = axes
    at = range(len(rows))[::-1]
    ratios = [r["ratio"] for r in rows]
    middle = [q["p50"] for q in ratios]
    bars.barh(at, middle, color=["#1f6feb" if m >= LEAST else "#8a8f98" for m in middle], zorder=2)
    spread = [[q["p50"] - q["p20"] for q in ratios], [q["p80"] - q["p50"] for q in ratios]]
    bars.errorbar(middle, at, xerr=spread, fmt="none", ecolor="#24292f", capsize=3, zorder=3)
    for y, q in zip(at, ratios, strict=True):
        bars.text(q["p80"] + 0.06, y, f"{q['p50']:.2f}x", va="center", fontsize=9, fontweight="bold")
    bars.axvline(1, color="#24292f", linewidth=1, linestyle="--")
    bars.axvline(LEAST, color="#c4432b", linewidth=1, linestyle=":")
    bars.set_yticks(
        at, [f"{r['size']}, {r['length']}, {r['dtype']}\n{r['padding']:.0%} padding" for r in rows], fontsize=8.5
    )
    bars.set_xlim(0, max(q["p80"] for q in ratios) * 1.15)
    bars.set_title("real tokens/s over stock's (dotted: asked for)", fontsize=10)
    for axis, r in zip(others, curves, strict=True):
        axis.plot(r["stock"], color="#8a8f98", linewidth=3.5, label="stock transformers")
        axis.plot(r["ours"], color="#1f6feb", linewidth=1.2, label="bertfast")
        axis.set_title(f"{r['dtype']}: largest {r['loss_of_band']:.2f} of the band", fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel("MLM + NSP loss")
        axis.legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e3e6ea", zorder=0)
    about = found["environment"]
    figure.supxlabel(
        f"{about['processor']}, {about['threads']} threads, commit {about['commit']}", fontsize=8, color="#8a8f98"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    corpus: Annotated[Path, typer.Argument(help="folder that `bertfast data build` wrote")],
    only: Annotated[str | None, typer.Option(help="speed or convergence; both where not given")] = None,
    size: Annotated[list[str] | None, typer.Option(help=f"rows of this model: {', '.join(SIZES)}")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(DTYPES)}")] = None,
    turns: Annotated[int, typer.Option(min=1, help="counted steps of each side in a row of speed")] = 25,
    steps: Annotated[int, typer.Option(min=1, help="steps of the loss curves")] = 100,
    out: Annotated[Path, typer.Option(help="folder for pretraining.json and pretraining.png")] = RESULTS,
) -> None:
    """Pre-training beside stock transformers. Exit status 1 where a loss curve leaves its band."""
    for option, given, known in (
        ("--only", [only] if only else [], ("speed", "convergence")),
        ("--size", size or [], tuple(SIZES)),
        ("--dtype", dtype or [], DTYPES),
    ):
        if unknown := [name for name in given if name not in known]:
            raise typer.BadParameter(f"{option} {unknown[0]}: choose one of {', '.join(known)}")
    try:
        data = Corpus.open(corpus)
    except CorpusError as error:
        raise typer.BadParameter(str(error)) from None
    tokenizer = load_tokenizer(corpus / "tokenizer")
    found: dict[str, Any] = {"environment": environment(), "corpus": data.manifest, "speed": [], "convergence": []}
    console = Console(width=None if Console().is_terminal else 150)
    for kind in dtype or DTYPES:
        for row in ROWS if only != "convergence" else ():
            if not size or row.size in size:
                found["speed"].append(speed(data, tokenizer, row, kind, turns))
                console.print(
                    f"{row.size} {row.length} {kind}: {found['speed'][-1]['ratio']['p50']:.2f}x", highlight=False
                )
        if only != "speed":
            found["convergence"].append(convergence(data, tokenizer, kind, steps))
    out.mkdir(parents=True, exist_ok=True)
    (out / "pretraining.json").write_text(json.dumps(found, indent=1) + "\n")
    for rows, table in ((found["speed"], _speed_table), (found["convergence"], _convergence_table)):
        if rows:
            console.print(table(rows))
    if found["speed"] and found["convergence"]:
        plot(found, out / "pretraining.png")
    if not all(r["passed"] for r in found["convergence"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
