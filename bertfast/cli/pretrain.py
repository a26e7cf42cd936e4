"""`bertfast pretrain`: from a corpus to a checkpoint that transformers loads."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bertfast.cli.common import console, tell_end, training
from bertfast.train.errors import EXIT_STATUSES
from bertfast.train.launcher import is_main


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp8 = "fp8"


class Parallel(StrEnum):
    ddp = "ddp"
    fsdp = "fsdp"


# Where the flags go in the configuration.
_PLACES = {
    "corpus": "corpus",
    "out": "out",
    "eval_corpus": "eval",
    "init": "model.init",
    "layers": "model.layers",
    "hidden": "model.hidden",
    "heads": "model.heads",
    "token_budget": "data.token_budget",
    "max_seq_length": "data.max_seq_length",
    "nsp": "data.nsp",
    "whole_word": "data.whole_word",
    "workers": "data.workers",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "batches_per_step": "train.batches_per_step",
    "optimizer": "train.optimizer",
    "learning_rate": "train.learning_rate",
    "warmup_steps": "train.warmup_steps",
    "precision": "train.precision",
    "seed": "train.seed",
    "threads": "train.threads",
    "parallel": "train.parallel",
    "log_every": "train.log_every",
    "eval_every": "train.eval_every",
    "save_every": "train.save_every",
    "tensorboard": "train.tensorboard",
}
EPILOG = (
    "On GPUs, without fsdp or compile, steps are captured in CUDA graphs; --set train.cuda_graphs=false runs them eagerly. "
    "The log says which of the two a run does, and why.\n\n"
    "Exit status: "
    + "; ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items())
    + (". torchrun itself ends with 1 and prints the status of each rank.")
)


def pretrain(
    corpus: Annotated[Path | None, typer.Argument(help="Folder that `bertfast data build` wrote.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; model/ in it is the result.")] = None,
    eval_corpus: Annotated[Path | None, typer.Option("--eval", help="A corpus that is held out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint in OUT.")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML with any option; flags go over it.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any option, as train.eps=1e-8; over file and flags.")
    ] = None,
    show_options: Annotated[bool, typer.Option("--options", help="Print all options with their defaults.")] = False,
    init: Annotated[Path | None, typer.Option(help="Begin from this checkpoint's weights and sizes.")] = None,
    layers: Annotated[int | None, typer.Option(help="12 where not given.")] = None,
    hidden: Annotated[int | None, typer.Option(help="768 where not given.")] = None,
    heads: Annotated[int | None, typer.Option(help="12 where not given.")] = None,
    token_budget: Annotated[int | None, typer.Option(help="Tokens of a micro-batch, 8192 where not given.")] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Tokens of a sample, 128 where not given.")] = None,
    nsp: Annotated[bool | None, typer.Option("--nsp/--no-nsp", help="Next-sentence prediction; on.")] = None,
    whole_word: Annotated[bool | None, typer.Option("--whole-word/--pieces", help="What is masked; pieces.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make batches, 1 where not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the whole run.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the corpus, instead of --steps.")] = None,
    batches_per_step: Annotated[int | None, typer.Option(help="Micro-batches of a step, over all ranks; 1.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or lamb.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="Highest of the schedule, 1e-4 where not given.")
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="A tenth of all steps where not given.")] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="bf16: autocast with float32 weights. fp8: that, the layers' products in FP8."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, masks and dropout; 0.")] = None,
    threads: Annotated[int | None, typer.Option(help="torch's threads; another number may change last bits.")] = None,
    parallel: Annotated[Parallel | None, typer.Option(help="Under torchrun; ddp.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between log lines, 10 where not given.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; at the end alone.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; at the end alone.")] = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="Write event files to OUT.")] = None,
) -> None:
    """Pre-train a BERT on a corpus: masked words and next sentences. For several ranks: torchrun -m bertfast pretrain ..."""
    given = locals()
    flags = {place: _plain(given[name]) for name, place in _PLACES.items()}
    run(flags, config, sets or [], resume, show_options)


def _plain(value: Any) -> Any:
    """A flag's value as it would stand in YAML."""
    return str(value) if isinstance(value, (Path, StrEnum)) else value


def run(flags: dict[str, Any], file: Path | None, sets: list[str], resume: bool, show_options: bool) -> None:
    """Resolve the options and train."""
    if show_options:
        from bertfast.train.pretrain_config import PretrainConfig
        from bertfast.train.settings import describe

        console.print(describe(PretrainConfig), markup=False, highlight=False, soft_wrap=True)
        return
    with training():
        from bertfast.train.pretrain_config import PretrainConfig
        from bertfast.train.run_folder import recorded
        from bertfast.train.settings import resolve

        if resume and file is None and flags["out"] is not None:
            file = recorded(Path(flags["out"]))
        chosen = resolve(PretrainConfig, file, flags, sets)
        # Only now: a wrong option is told at once, without seconds of imports.
        from bertfast.train.pretrain import pretrain as start

        outcome = start(chosen, resume)
    if not is_main():
        return
    tell_end(outcome, Path(chosen.out))
