"""`python -m benchmarks.fp8`: what products in FP8 do to a model, on a CPU by the references of the ops.

`curves CORPUS` (`draw` shows its results again): pre-training of a small model from one seed, over the same batches and with the
same elements dropped, by several recipes of FP8 beside bfloat16; how far loss curves part, and the held-out loss afterwards.
`sentences`: MiniLM's sentence embeddings in FP8 beside bfloat16, against float32.
"""

import json
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.pretraining.measure import BANDS, BFLOAT16
from bertfast.bench.cases import minilm_folder, sentence_batches
from bertfast.bench.run import environment
from bertfast.data.batches import Batch
from bertfast.data.corpus import Corpus
from bertfast.data.loader import PretrainLoader
from bertfast.data.pairs import PairOptions
from bertfast.data.plan import PretrainDataOptions
from bertfast.data.tokenizer import load_tokenizer
from bertfast.models import BertConfig, BertForPreTraining, BertModel
from bertfast.nn import device
from bertfast.nn.fp8_state import Recipe
from bertfast.train.config import TrainConfig
from bertfast.train.optim import build_optimizer

RESULTS = Path(__file__).parent / "results"
SEED, HIDDEN, LAYERS, HEADS, LENGTH, TOKENS, RATE, WARMUP = 1234, 256, 4, 4, 64, 512, 5e-4, 30
LAST = 100  # steps whose mean loss is compared
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Variant:
    """A way to train: in float32, in bfloat16 by autocast, or with products in FP8 by a recipe."""

    name: str
    autocast: bool = True
    fp8: Recipe | None = None


E4M3 = torch.float8_e4m3fn
VARIANTS = (
    Variant("bfloat16"),
    Variant("delayed, e5m2 gradients", fp8=Recipe()),
    Variant("delayed, e4m3 gradients", fp8=Recipe(gradients=E4M3)),
    Variant("all layers", fp8=Recipe(last=0)),
    Variant("current, e5m2 gradients", fp8=Recipe(current=True)),
    Variant("weight gradients in bfloat16", fp8=Recipe(weight_gradients=False)),
    Variant("scales of the last step alone", fp8=Recipe(history=1)),
    Variant("all but the last two layers", fp8=Recipe(last=2)),
    Variant("float32", autocast=False),
)


def batches(folder: Path, seed: int) -> Iterable[Batch]:
    options = PretrainDataOptions(
        seed=seed, token_budget=TOKENS, pairs=PairOptions(max_seq_length=LENGTH), layout="packed", static_shapes=False
    )
    return PretrainLoader(Corpus.open(folder), load_tokenizer(folder / "tokenizer"), options)


def train(variant: Variant, corpus: Path, steps: int) -> dict[str, Any]:
    """The loss of every step, and the masked-LM loss of the trained model on held-out text, in float32."""
    torch.manual_seed(SEED)
    vocabulary = load_tokenizer(corpus / "train" / "tokenizer").vocab_size
    sizes = BertConfig(vocabulary, HIDDEN, LAYERS, HEADS, 4 * HIDDEN, max_position_embeddings=128)
    model = BertForPreTraining(sizes).train()
    model.base.encoder.fp8 = variant.fp8
    optimizer = build_optimizer(TrainConfig(steps=steps, learning_rate=RATE), model)
    losses, begin = [], time.perf_counter()
    with device.on_cpu():
        for step, batch in enumerate(islice(batches(corpus / "train", SEED), steps), 1):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, step / WARMUP)
            with torch.autocast("cpu", torch.bfloat16) if variant.autocast else nullcontext():
                loss = model(**batch.inputs()).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    seconds = time.perf_counter() - begin
    return {"name": variant.name, "losses": losses, "held_out": held_out(model, corpus / "eval"), "seconds": seconds}


@torch.no_grad()
def held_out(model: Any, corpus: Path) -> float:
    """Masked-LM loss in nats a masked token."""
    model.eval()
    total, count = 0.0, 0
    for batch in islice(batches(corpus, SEED + 1), 8):
        targets = batch.counts["mlm"]
        total, count = total + float(model(**batch.inputs()).mlm_loss) * targets, count + targets
    return total / count


def compared(run: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """How far a run's losses are from the base's: the largest share of the band, and the mean difference of the last steps."""
    band = BANDS[BFLOAT16]
    pairs = list(zip(run["losses"], base["losses"], strict=True))
    return {
        **run,
        "of_band": max(abs(a - b) / (band.atol + band.rtol * abs(b)) for a, b in pairs),
        "last": math.fsum(a - b for a, b in pairs[-LAST:]) / len(pairs[-LAST:]),
        "held_out_difference": run["held_out"] - base["held_out"],
    }


def curves_table(runs: list[dict[str, Any]]) -> Table:
    table = Table(title=f"loss beside bfloat16, {LAYERS} x {HIDDEN}", caption="share of the band: 1 is its edge")
    for name in ("products", "last loss", "largest share of the band", f"mean of the last {LAST}", "held out"):
        table.add_column(name, justify="left" if name == "products" else "right")
    for run in runs:
        base = run is runs[0]
        shares = ("", "") if base else (f"{run['of_band']:.3f}", f"{run['last']:+.4f}")
        held = f"{run['held_out']:.4f}" + ("" if base else f" ({run['held_out_difference']:+.4f})")
        table.add_row(run["name"], f"{run['losses'][-1]:.3f}", *shares, held)
    return table


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Loss curves, and their differences from bfloat16's smoothed over steps, with the band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, apart) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    base = torch.tensor(runs[0]["losses"])
    width = min(10, len(base))
    for run in runs:
        losses = torch.tensor(run["losses"])
        style = {"color": "black", "linewidth": 2.0} if run is runs[0] else {"linewidth": 1.0}
        curves.plot(losses.unfold(0, width, 1).mean(1), label=run["name"], **style)
        if run is not runs[0]:
            apart.plot((losses - base).unfold(0, width, 1).mean(1), linewidth=1.2)
    curves.set(title=f"loss, mean of {width} steps", xlabel="step", ylabel="nats")
    apart.set(title=f"difference from bfloat16, mean of {width} steps", xlabel="step", ylabel="nats")
    band = BANDS[BFLOAT16]
    apart.text(
        0.02,
        0.02,
        f"the band is {band.atol + band.rtol * float(base[-1]):.2f} wide at the end",
        transform=apart.transAxes,
    )
    for axis in (curves, apart):
        axis.grid(alpha=0.3)
    apart.axhline(0, color="black", linewidth=0.8)
    curves.legend()  # of both: colours are the same
    figure.savefig(path, dpi=110)


@app.command()
def curves(
    corpus: Annotated[Path, typer.Argument(help="folder that `bertfast data build --holdout` wrote")],
    steps: Annotated[int, typer.Option(min=1)] = 300,
    only: Annotated[list[str] | None, typer.Option(help="the name of a variant, beside bfloat16")] = None,
    out: Annotated[Path, typer.Option(help="folder for fp8_curves.json and fp8_curves.png")] = RESULTS,
) -> None:
    """Loss curves of FP8 beside bfloat16. Exit status 1 where the default recipe's leaves the band."""
    console = Console(width=None if Console().is_terminal else 150)
    runs: list[dict[str, Any]] = []
    for variant in VARIANTS:
        if runs and only and variant.name not in only:
            continue
        run = train(variant, corpus, steps)
        seconds = run.pop("seconds")
        runs.append(compared(run, runs[0] if runs else run))
        console.print(f"{variant.name}: {run['losses'][-1]:.3f} in {seconds:.0f} s", highlight=False)
        results = {
            "environment": environment(),
            "sizes": {"hidden": HIDDEN, "layers": LAYERS, "heads": HEADS, "length": LENGTH, "tokens": TOKENS},
            "rate": RATE,
            "band": asdict(BANDS[BFLOAT16]),
            "runs": runs,
        }
        (out / "fp8_curves.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(out)
    default = [run for run in runs if run["name"] == VARIANTS[1].name]
    if any(run["of_band"] > 1 for run in default):
        raise typer.Exit(1)


def embeddings(model: Any, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Hidden states [T, E] of all real tokens, and means over tokens of each sentence, of length 1."""
    tokens, means = [], []
    for batch in batches:
        mask = batch.attention_mask.bool()
        y = model(batch.input_ids, batch.attention_mask).last_hidden_state.float()
        tokens.append(y[mask])
        means.append((y * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(tokens), torch.nn.functional.normalize(torch.cat(means), dim=-1)


@app.command()
def draw(out: Annotated[Path, typer.Option(help="folder of fp8_curves.json")] = RESULTS) -> None:
    """The table and the picture of what `curves` wrote, of a run that is still going on too."""
    runs = json.loads((out / "fp8_curves.json").read_text())["runs"]
    Console(width=None if Console().is_terminal else 150).print(curves_table(runs))
    plot(runs, out / "fp8_curves.png")


@app.command("sentences")
def sentences_command(
    out: Annotated[Path, typer.Option(help="folder for fp8_sentences.json")] = RESULTS,
) -> None:
    """MiniLM's sentence embeddings in bfloat16 and in FP8, against float32's."""
    folder = minilm_folder()
    batches = sentence_batches(folder)
    with torch.no_grad():
        exact, exact_means = embeddings(BertModel.from_pretrained(folder), batches)
        exact_alike = exact_means @ exact_means.t()
        pairs = torch.triu(torch.ones_like(exact_alike, dtype=torch.bool), 1)
        rows = []
        model = BertModel.from_pretrained(folder, dtype=torch.bfloat16)
        for name in ("bfloat16", "fp8"):
            with device.on_cpu():
                model.set_precision("fp8" if name == "fp8" else None)
                tokens, means = embeddings(model, batches)
            cosines = (means * exact_means).sum(-1)
            rows.append(
                {
                    "products": name,
                    "sentences": len(means),
                    "token_error": float((tokens - exact).norm() / exact.norm()),
                    "cosine_mean": float(cosines.mean()),
                    "cosine_least": float(cosines.min()),
                    "similarity_error": float((means @ means.t() - exact_alike)[pairs].abs().max()),
                    "similarity_correlation": float(
                        torch.corrcoef(torch.stack(((means @ means.t())[pairs], exact_alike[pairs])))[0, 1]
                    ),
                }
            )
    table = Table(title="MiniLM against float32")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.5f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 150).print(table)
    (out / "fp8_sentences.json").write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app()
