"""What `bertfast encode` keeps of the model's own rate: reading, tokenizing, pooling and writing are to take a twentieth at most.

    python -m benchmarks.encode MODEL                    # the sentences of `make bench`, repeated to 2,000 lines
    python -m benchmarks.encode MODEL --input FILE --turns 9 --json out.json

Two sides take turns on the same texts and the same batches: the whole run from file to shards, and the model alone, from ids that
lie ready to the last hidden state. Ratios are taken turn by turn. The processor time of the process stands beside, being
the steadier of the two on a machine that is busy with other work. Exit status 1 where the median ratio is below the target.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

import bertfast
from bertfast.cli.common import check_target, console, fail, write_json
from bertfast.encoding import Encoder
from bertfast.encoding.readers import Input, Text
from bertfast.encoding.run import encode_files

TARGET = 0.95
SENTENCES = Path(bertfast.__file__).parent / "bench" / "data" / "sentences.txt"


@dataclass
class Turn:
    """Seconds of one turn, by the clock and of the processor: of the whole run and of the model alone."""

    whole: float
    alone: float
    whole_processor: float
    alone_processor: float


def timed(call: Callable[[], object]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(encoder: Encoder, path: Path, turns: int) -> tuple[int, list[Turn]]:
    """Tokens of the file, and the turns; the first, in which memory and files are made ready, is not among them."""
    tokenized = encoder.tokenize([item.text for item in Input([path]) if isinstance(item, Text)])
    batches = [(ids, lengths) for _, ids, lengths in encoder.batches(tokenized)]

    def alone() -> None:
        for ids, lengths in batches:
            hidden = encoder.hidden(ids, lengths)
        hidden[0, 0, 0].item()  # a GPU is waited for

    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns + 1):
            out = Path(folder) / str(turn)
            sides = [lambda out=out: encode_files(encoder, Input([path]), out), alone]
            order = (0, 1) if turn % 2 else (1, 0)
            seconds = {side: timed(sides[side]) for side in order}
            measured.append(Turn(seconds[0][0], seconds[1][0], seconds[0][1], seconds[1][1]))
    return int(tokenized.lengths.sum()), measured[1:]


def main(
    model: Annotated[str, typer.Argument(help="folder of a checkpoint, or its name on the hub")],
    source: Annotated[Path | None, typer.Option("--input", help="a text a line")] = None,
    lines: Annotated[int, typer.Option(help="of the sentences, where there is no --input")] = 2000,
    turns: Annotated[int, typer.Option(min=1)] = 5,
    precision: Annotated[str, typer.Option(help="float32|bfloat16|float16|int8")] = "float32",
    device: Annotated[str, typer.Option(help="auto|cpu|cuda")] = "auto",
    json: Annotated[Path | None, typer.Option(help="write the result here")] = None,
) -> None:
    """bertfast encode beside the model alone."""
    check_target("--json", json)
    try:
        encoder = Encoder(model, device=device, precision=precision)  # type: ignore[arg-type]
    except (ValueError, ImportError) as error:
        raise fail(str(error)) from None
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            texts = SENTENCES.read_text(encoding="utf-8").split("\n")
            texts = [text for text in texts if text.strip()]
            source = Path(folder) / "sentences.txt"
            source.write_text("\n".join((texts * (lines // len(texts) + 1))[:lines]) + "\n", encoding="utf-8")
        tokens, measured = measure(encoder, source, turns)
    clock = statistics.median(turn.alone / turn.whole for turn in measured)
    processor = statistics.median(turn.alone_processor / turn.whole_processor for turn in measured)
    whole, alone = (statistics.median(getattr(turn, side) for turn in measured) for side in ("whole", "alone"))
    table = Table(title=f"{model}, {precision}, {encoder.device}, {torch.get_num_threads()} threads, {tokens:,} tokens")
    for column in ("", "tokens/s", "seconds"):
        table.add_column(column, justify="right")
    for name, seconds in (("bertfast encode", whole), ("the model alone", alone)):
        table.add_row(name, f"{tokens / seconds:,.0f}", f"{seconds:.2f}")
    console.print(table)
    console.print(f"ratio {clock:.3f} by the clock, {processor:.3f} in processor time; the target is {TARGET}")
    if json is not None:
        turn_list = [asdict(turn) for turn in measured]
        write_json(json, {"tokens": tokens, "ratio": clock, "processor_ratio": processor, "turns": turn_list})
    if clock < TARGET:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
