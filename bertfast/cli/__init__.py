"""The command line. Thin: a command parses, calls, prints, and turns mistakes into one line."""

from typing import Annotated

import typer

import bertfast
from bertfast.cli import data, encode, fill_mask, finetune, measure, next_sentence, predict, pretrain
from bertfast.cli.examples import add_examples

app = typer.Typer(no_args_is_help=True, help="Fused kernels and unpadding for BERT encoders.")


def _version(value: bool) -> None:
    if value:
        print(bertfast.__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fused kernels and unpadding for BERT encoders: the same numbers, faster."""


for command in (
    measure.doctor,
    measure.verify,
    measure.bench,
    predict.predict,
    fill_mask.fill_mask,
    next_sentence.next_sentence,
):
    app.command()(command)
app.command(epilog=encode.EPILOG)(encode.encode)
app.add_typer(data.app, name="data")
app.command(epilog=pretrain.EPILOG)(pretrain.pretrain)
app.add_typer(finetune.app, name="finetune")
add_examples(app)
