"""`bertfast encode`: files of texts to shards of embeddings."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from bertfast.cli.common import console, fail, note, notes

EPILOG = (
    "A run that was stopped goes on with the same command and --resume: shards that are complete are checked and kept. "
    "Exit status: 0 done; 1 interrupted; 2 a mistake in input, options or output, which one line names."
)


Device = Annotated[str, typer.Option(help="auto: a GPU where there is one; auto|cpu|cuda")]


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class Form(StrEnum):
    parquet = "parquet"
    npy = "npy"
    safetensors = "safetensors"


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"


class InputFormat(StrEnum):
    text = "text"
    jsonl = "jsonl"
    parquet = "parquet"


@contextmanager
def _mistakes(device: str) -> Iterator[None]:
    """What a user can mend ends the command as one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise fail(f"{device} has no memory for this: lower --token-budget, or give --device cpu ({error})") from None
    except (ValueError, OSError, ImportError) as error:
        # Of a device the message begins with "device", so that a flag's two dashes fit before it.
        text = str(error)
        raise fail(f"--{text}" if text.startswith("device ") else text) from None


@notes()
def encode(
    model: Annotated[str, typer.Argument(help="folder of a checkpoint, or its name on the Hugging Face hub")],
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="text (one a line), JSONL or Parquet; .gz of the first two")
    ],
    out: Annotated[Path, typer.Option(help="folder of the shards, made where it is not there")],
    field: Annotated[str, typer.Option(help="of JSONL and Parquet: what holds the text")] = "text",
    id_field: Annotated[
        str | None, typer.Option(help="of JSONL and Parquet: what holds the id; numbers of lines where not given")
    ] = None,
    input_format: Annotated[InputFormat | None, typer.Option(help="whatever the files' endings say")] = None,
    encoding: Annotated[str | None, typer.Option(help="of text and JSONL; UTF-8 where not given")] = None,
    form: Annotated[Form, typer.Option("--format", help="of the shards")] = Form.parquet,
    dtype: Annotated[Dtype, typer.Option(help="of the embeddings on the disk")] = Dtype.float32,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="a column with the text (Parquet)")] = False,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="texts of a shard, which is what a stopped run loses")
    ] = 50_000,
    pooling: Annotated[
        str | None, typer.Option(help="mean|cls|max|...; the checkpoint's own where not given, else the mean")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="to length 1; the checkpoint's own where not given"),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="tokens of a text; the checkpoint's own where not given")
    ] = None,
    prompt_name: Annotated[str | None, typer.Option(help="of the checkpoint's prompts, such as query")] = None,
    prompt: Annotated[str | None, typer.Option(help="put before every text")] = None,
    precision: Annotated[Precision, typer.Option(help="what the model computes in")] = Precision.float32,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="tokens of a batch; 4096 on a CPU, 32768 on a GPU where not given")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the shards that are in OUT")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first line that cannot be encoded")] = False,
    device: Device = "auto",
) -> None:
    """Embed every text of files: pooled and normalised as the checkpoint says, in shards that are whole or absent.

    Lines that hold no text are left out, counted and named.
    """
    with _mistakes(device):
        from bertfast.encoding.encoder import Encoder
        from bertfast.encoding.progress import Progress, rates
        from bertfast.encoding.readers import Input
        from bertfast.encoding.run import encode_files

        texts = Input(inputs, field=field, id_field=id_field, kind=input_format, encoding=encoding)
        encoder = Encoder(
            model,
            device=device,
            precision=precision.value,
            pooling=pooling.split(",") if pooling else None,
            normalize=normalize,
            max_length=max_length,
            prompt_name=prompt_name,
            prompt=prompt,
            token_budget=token_budget,
        )
        if not encoder.recipe.stated and pooling is None:
            note(f"{model} does not say how it is pooled: the mean of all tokens is taken; --pooling says otherwise")
        try:
            with Progress() as progress:
                status = encode_files(
                    encoder, texts, out, form=form.value, dtype=dtype.value, keep_text=keep_text, shard_rows=shard_rows,
                    resume=resume, strict=strict, report=progress,
                )  # fmt: skip
        except KeyboardInterrupt:
            note(f"stopped; the complete shards in {out} are kept: go on with --resume")
            raise typer.Exit(1) from None
    if status.bad.counts:
        note(status.bad.summary())
    if status.truncated:
        note(f"{status.truncated:,} texts are longer than {encoder.tokenizer.max_length} tokens and were cut")
    if status.resumed_shards:
        console.print(f"{status.resumed:,} texts in {status.resumed_shards} shards were there already", highlight=False)
    if status.texts:
        console.print(f"encoded {status.texts:,} texts in {status.seconds:,.1f} s: {rates(status)}", highlight=False)
    count = status.texts + status.resumed
    console.print(
        f"{out}: {count:,} embeddings of {encoder.dimension} numbers, {status.shards} shards", highlight=False
    )
