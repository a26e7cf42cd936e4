"""`bertfast pretrain`: from a corpus to a checkpoint that transformers loads."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bertfast.cli.common import console, tell_end, training
from bertfast.cli.flags import command, flags_of
from bertfast.train.errors import EXIT_STATUSES
from bertfast.train.launcher import is_main
from bertfast.train.pretrain_config import PretrainConfig

EPILOG = (
    "Exit status: "
    + "; ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items())
    + (". torchrun itself ends with 1 and prints the status of each rank.")
)
_COMMON: dict[str, tuple[Any, Any]] = {
    "resume": (
        Annotated[bool, typer.Option("--resume", help="go on from the newest complete checkpoint in OUT")],
        False,
    ),
    "config": (Annotated[Path | None, typer.Option(help="YAML with any option; flags go over it")], None),
    "sets": (
        Annotated[list[str] | None, typer.Option("--set", help="any option, as train.eps=1e-8; over file and flags")],
        None,
    ),
    "options": (Annotated[bool, typer.Option("--options", help="print all options with their defaults")], False),
}


def _run(values: dict[str, Any], resume: bool, config: Path | None, sets: list[str] | None, options: bool) -> None:
    """Resolve the options and train."""
    if options:
        from bertfast.train.settings import describe

        console.print(describe(PretrainConfig), markup=False, highlight=False, soft_wrap=True)
        return
    with training():
        from bertfast.train.run_folder import recorded
        from bertfast.train.settings import resolve

        if resume and config is None and values["out"] is not None:
            config = recorded(Path(values["out"]))
        chosen = resolve(PretrainConfig, config, values, sets or ())
        # Only now: a wrong option is told at once, without seconds of imports.
        from bertfast.train.pretrain import pretrain as start

        outcome = start(chosen, resume)
    if not is_main():
        return
    tell_end(outcome, Path(chosen.out))


pretrain = command(
    "pretrain",
    flags_of(PretrainConfig, "Corpus and run"),
    _run,
    "Pre-train a BERT on a corpus: masked words and next sentences. For several ranks: torchrun -m bertfast pretrain ...",
    extra=_COMMON,
)
