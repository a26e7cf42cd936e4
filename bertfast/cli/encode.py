"""`bertfast encode`: files of texts to shards of embeddings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from bertfast.cli.common import console, note, notes, one_line
from bertfast.cli.flags import simple
from bertfast.cli.loading import DEVICE, chosen_device, enough_memory
from bertfast.options import option

EPILOG = (
    "A run that was stopped goes on with the same command and --resume: shards that are complete are checked and kept. "
    "Exit status: 0 done; 2 a mistake in input, options or output, which one line names; 130 interrupted."
)


@dataclass(kw_only=True)
class EncodeOptions:
    """What `bertfast encode` takes."""

    model: str = option(help="folder of a checkpoint, or its name on the Hugging Face hub", argument=True)
    inputs: list[Path] = option(help="text (one a line), JSONL or Parquet; .gz of the first two", argument=True)
    out: Path = option(help="folder of the shards, made where it is not there")
    field: str = option("text", "of JSONL and Parquet: what holds the text")
    id_field: str | None = option(None, "of JSONL and Parquet: what holds the id; numbers of lines where not given")
    input_format: str | None = option(None, "overrides the files' endings", choices=("text", "jsonl", "parquet"))
    encoding: str | None = option(None, "of text and JSONL; UTF-8 where not given")
    format: str = option("parquet", "of the shards", choices=("parquet", "npy", "safetensors"))
    dtype: str = option("float32", "of the embeddings on the disk", choices=("float32", "float16"))
    keep_text: bool = option(False, "a column with the text (Parquet)", flags=("--keep-text",))
    shard_rows: int = option(50_000, "texts of a shard, which is what a stopped run loses", low=1)
    pooling: list[str] | None = option(
        None, "mean, cls, max, ..., or several with commas; the checkpoint's own where not given, else the mean"
    )
    normalize: bool | None = option(None, "to length 1, or not; the checkpoint's own where not given")
    truncate_dim: int | None = option(
        None,
        "numbers kept of an embedding, the first ones; of length 1 with --normalize; the checkpoint's own where not given",
        low=1,
    )
    max_length: int | None = option(None, "tokens of a text; the checkpoint's own where not given", low=1)
    prompt_name: str | None = option(
        None, "of the checkpoint's prompts, such as query; its own default where not given"
    )
    prompt: str | None = option(
        None, 'put before every text, in place of a named one; "" for none, not even its default'
    )
    precision: str = option("float32", "what the model computes in", choices=("float32", "bfloat16", "float16", "int8"))
    token_budget: int | None = option(
        None, "tokens of a batch; 4096 on a CPU and 32768 on a GPU where not given", low=1
    )
    resume: bool = option(False, "go on with the shards that are in OUT", flags=("--resume",))
    strict: bool = option(False, "stop at the first line that cannot be encoded", flags=("--strict",))
    device: str = DEVICE


@notes()
def _run(options: EncodeOptions) -> None:
    at = chosen_device(options.device)
    with enough_memory(at, "lower --token-budget"), one_line(ValueError, OSError, ImportError):
        from bertfast.encoding.encoder import Encoder
        from bertfast.encoding.progress import Progress
        from bertfast.encoding.readers import Input
        from bertfast.encoding.run import encode_files

        texts = Input(
            options.inputs,
            field=options.field,
            id_field=options.id_field,
            kind=options.input_format,
            encoding=options.encoding,
        )
        encoder = Encoder(
            options.model,
            device=at,
            precision=options.precision,  # type: ignore[arg-type]
            pooling=options.pooling,
            normalize=options.normalize,
            truncate_dim=options.truncate_dim,
            max_length=options.max_length,
            prompt_name=options.prompt_name,
            prompt=options.prompt,
            token_budget=options.token_budget,
        )
        if not encoder.recipe.stated and options.pooling is None:
            note(
                f"{options.model} does not say how it is pooled: the {_taken(encoder)} is taken; --pooling says otherwise"
            )
        try:
            with Progress() as progress:
                status = encode_files(
                    encoder,
                    texts,
                    options.out,
                    form=options.format,
                    dtype=options.dtype,
                    keep_text=options.keep_text,
                    shard_rows=options.shard_rows,
                    resume=options.resume,
                    strict=options.strict,
                    report=progress,
                )
        except KeyboardInterrupt:
            note(f"stopped; the complete shards in {options.out} are kept: go on with --resume")
            raise typer.Exit(130) from None
    _tell(status, encoder, options.out)


def _taken(encoder: Any) -> str:
    return "mean of all tokens" if encoder.recipe.pooling == ("mean",) else "last token, as of a causal language model,"


def _tell(status: Any, encoder: Any, out: Path) -> None:
    """What a run made, and what it left out."""
    from bertfast.encoding.progress import rates

    if status.bad.counts:
        note(status.bad.listing(out))
    if status.truncated:
        note(f"cut to {encoder.tokenizer.max_length} tokens: {_count(status.truncated, 'text')}")
    for number in status.damaged:
        note(f"shard {number} was missing or did not match its checksum, and was made again")
    if status.resumed_shards:
        kept = f"{_count(status.resumed, 'text')} in {_count(status.resumed_shards, 'shard')}"
        console.print(f"there already: {kept}", highlight=False)
    if status.texts:
        took = f"{status.seconds:,.1f} s: {rates(status)}"
        console.print(f"encoded {_count(status.texts, 'text')} in {took}", highlight=False)
    count = _count(status.texts + status.resumed, "embedding")
    shards = _count(status.shards, "shard")
    console.print(f"{out}: {count} of {encoder.dimension} numbers, {shards}", highlight=False)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


encode = simple(
    "encode",
    EncodeOptions,
    _run,
    "Embed every text of files: pooled and normalised as the checkpoint says, in shards that are whole or absent.\n\n"
    "Lines that hold no text are left out, counted and named.",
)
